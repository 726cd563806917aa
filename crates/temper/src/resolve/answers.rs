//! Whether the answers of a language model can be measured on rows.

use std::ops::Range;

use regex::Regex;
use temper_data::{Examples, Tokenizer};
use temper_tasks::Metric;

use crate::provenance::Answers;

impl Answers {
    /// Why `metric`, one of answers, says nothing on these rows.
    pub fn unmeasured(&self, metric: Metric, rows: &Examples, tokenizer: &Tokenizer) -> Option<&'static str> {
        let all = || 0..rows.len();
        match metric {
            Metric::ChoiceAccuracy => all()
                .all(|row| rows.choices(row).is_empty())
                .then_some("needs evaluation rows with `prompt`, `completion` and a list of `choices`"),
            _ if all().all(|row| expected(rows, row).is_none()) => {
                Some("needs evaluation rows that ask something: these are learned from their beginning")
            }
            Metric::RegexMatch => self
                .matched(rows, tokenizer)
                .is_some_and(|(found, _)| found == 0)
                .then_some("can never be right: `answer` in [task] matches none of the expected answers"),
            _ => None,
        }
    }

    /// Warns of expected answers that count as wrong whatever the model says.
    pub fn warn(&self, rows: &Examples, tokenizer: &Tokenizer) {
        if let Some((found, all)) = self.matched(rows, tokenizer).filter(|(found, all)| found < all) {
            tracing::warn!("`answer` in [task] matches {found} of {all} expected answers; the others count as wrong");
        }
        let lengths: Vec<usize> = (0..rows.len()).filter_map(|row| Some(expected(rows, row)?.len())).collect();
        let long = lengths.iter().filter(|length| **length > self.max_new_tokens + 1).count();
        if long > 0 && self.metrics.iter().any(|metric| *metric != Metric::ChoiceAccuracy) {
            tracing::warn!(
                "{long} expected answers are longer than task.max_new_tokens = {} (the longest {}): the model cannot give them",
                self.max_new_tokens,
                lengths.iter().max().unwrap_or(&0)
            );
        }
    }

    /// How many of the expected answers `answer` matches, and of how many, if it is a regular expression.
    fn matched(&self, rows: &Examples, tokenizer: &Tokenizer) -> Option<(usize, usize)> {
        let regex = Regex::new(self.answer.as_ref()?).ok()?;
        let text = |row| Some(tokenizer.decode(&rows.ids(row)[expected(rows, row)?]).unwrap_or_default());
        let texts = (0..rows.len()).filter_map(text);
        Some(texts.fold((0, 0), |(found, all), text| (found + usize::from(regex.is_match(&text)), all + 1)))
    }
}

/// The tokens of the answer that a row asks for.
fn expected(rows: &Examples, row: usize) -> Option<Range<usize>> {
    rows.trained(row).pop().filter(|run| run.start > 1)
}
