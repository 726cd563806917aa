//! Whether the answers of a language model can be measured on rows.

use regex::Regex;
use temper_data::{Examples, Tokenizer};
use temper_tasks::Metric;

use crate::provenance::Answers;

/// The answers that rows ask for.
pub struct Expected<'a> {
    of: &'a Answers,
    /// How many tokens each has.
    lengths: Vec<usize>,
    /// How many `answer` matches, if it is a regular expression.
    matched: Option<usize>,
    /// Whether any row has choices.
    choices: bool,
}

impl Answers {
    /// What is asked for in `rows`.
    pub fn expected(&self, rows: &Examples, tokenizer: &Tokenizer) -> Expected<'_> {
        let regex = self.answer.as_ref().and_then(|answer| Regex::new(answer).ok());
        let mut expected = Expected {
            of: self,
            lengths: Vec::new(),
            matched: regex.is_some().then_some(0),
            choices: (0..rows.len()).any(|row| !rows.choices(row).is_empty()),
        };
        for row in 0..rows.len() {
            let Some(run) = rows.trained(row).pop().filter(|run| run.start > 1) else { continue };
            expected.lengths.push(run.len());
            if let (Some(regex), Some(matched)) = (&regex, &mut expected.matched) {
                let text = tokenizer.decode(&rows.ids(row)[run]).unwrap_or_default();
                *matched += usize::from(regex.is_match(&text));
            }
        }
        expected
    }
}

impl Expected<'_> {
    /// Why `metric`, one of answers, says nothing on these rows.
    pub fn unmeasured(&self, metric: Metric) -> Option<&'static str> {
        match metric {
            Metric::ChoiceAccuracy => {
                (!self.choices).then_some("needs evaluation rows with `prompt`, `completion` and a list of `choices`")
            }
            _ if self.lengths.is_empty() => {
                Some("needs evaluation rows that ask something: these are learned from their beginning")
            }
            Metric::RegexMatch => (self.matched == Some(0))
                .then_some("can never be right: `answer` in [task] matches none of the expected answers"),
            _ => None,
        }
    }

    /// Warns of expected answers that count as wrong whatever the model says.
    pub fn warn(&self) {
        let all = self.lengths.len();
        if let Some(found) = self.matched.filter(|found| *found < all) {
            tracing::warn!("`answer` in [task] matches {found} of {all} expected answers; the others count as wrong");
        }
        let most = self.of.max_new_tokens;
        let long = self.lengths.iter().filter(|length| **length > most.saturating_add(1)).count();
        if long > 0 && self.of.metrics.iter().any(|metric| *metric != Metric::ChoiceAccuracy) {
            tracing::warn!(
                "{long} expected answers are longer than task.max_new_tokens = {most} (the longest {}): the model cannot give them",
                self.lengths.iter().max().unwrap_or(&0)
            );
        }
    }
}
