//! Measuring a language model: loss and perplexity of all rows and of each file, and answers that it generates.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use temper_data::Examples;
use temper_nn::Pass;

use super::{Causal, CausalLm, Generated, Generation, choice};
use crate::metrics::{Metric, Scores};
use crate::{Error, Evaluation, Ranks, Sample, Sum, Task, by_length};

/// What is measured by generating: the model answers the last trained part of each row, greedily.
#[derive(Debug, Clone)]
pub struct Judge {
    /// Any of `exact_match`, `regex_match` and `choice_accuracy`.
    pub metrics: Vec<Metric>,
    /// What of an answer `regex_match` compares.
    pub answer: Option<Regex>,
    /// Rows whose answers are kept to be shown.
    pub samples: usize,
    /// How answers are generated.
    pub generation: Generation,
}

pub(super) fn evaluate(
    model: &CausalLm,
    ranks: &Ranks,
    causal: &Causal,
    examples: &Examples,
    rows: usize,
) -> Result<Evaluation, Error> {
    let mut scores = losses(model, ranks, causal, examples, rows)?;
    if !scores[Metric::Loss.name()].is_finite() {
        return Ok(Evaluation { scores, ..Evaluation::default() });
    }
    let judge = &causal.judge;
    let generates = |metric: &Metric| matches!(metric, Metric::ExactMatch | Metric::RegexMatch);
    let all = judge.metrics.iter().any(generates);
    let asked = if all { examples.len() } else { judge.samples.min(examples.len()) };
    let questions: Vec<Question> = (0..asked).filter_map(|row| Question::of(examples, row)).collect();
    let samples = answers(model, ranks, causal, &questions, rows)?;
    if judge.metrics.contains(&Metric::ChoiceAccuracy) {
        let share = choice::accuracy(model, ranks, examples, causal.pad_id)?;
        scores.extend(share.map(|share| (Metric::ChoiceAccuracy.name().to_owned(), share)));
    }
    for &metric in judge.metrics.iter().filter(|metric| generates(metric)) {
        let right = samples.iter().filter(|sample| judge.accepts(metric, sample)).count();
        scores.insert(metric.name().to_owned(), right as f64 / samples.len() as f64);
    }
    let samples = samples.into_iter().take(judge.samples).collect();
    Ok(Evaluation { scores, samples, logits: Vec::new() })
}

/// Loss and perplexity; where rows come from several files, the loss of each too.
pub(super) fn losses(
    model: &CausalLm,
    ranks: &Ranks,
    causal: &Causal,
    examples: &Examples,
    rows: usize,
) -> Result<Scores, Error> {
    let mut files: BTreeMap<&Path, Vec<u32>> = BTreeMap::new();
    (0..examples.len()).for_each(|row| files.entry(examples.source(row).path).or_default().push(row as u32));
    let names = short_names(&files.keys().copied().collect::<Vec<_>>());
    let loss = |rows: &[u32], pass: &Pass| model.cross_entropy(&CausalLm::collate(causal, examples, rows, 0), pass);
    let measure = |order| Sum::of(ranks, &by_length(examples, order, rows), loss);
    let sums = files.into_values().map(measure).collect::<Result<Vec<Sum>, _>>()?;
    let loss = sums.iter().fold(Sum::default(), |all, &sum| all + sum).mean();
    let mut scores =
        Scores::from([(Metric::Loss.name().to_owned(), loss), (Metric::Perplexity.name().to_owned(), loss.exp())]);
    if sums.len() > 1 {
        let of_file = |(name, sum): (String, Sum)| (format!("loss_{name}"), sum.mean());
        scores.extend(names.into_iter().zip(sums).map(of_file));
    }
    Ok(scores)
}

/// What tells each of `paths` from the others: its stem; where others have that too its name, then with as many
/// directories as it takes.
fn short_names(paths: &[&Path]) -> Vec<String> {
    fn candidates(path: &Path) -> impl Iterator<Item = String> {
        let parts: Vec<&std::ffi::OsStr> = path.iter().collect();
        let ending =
            |path: &Path, from: usize| path.iter().skip(from).collect::<std::path::PathBuf>().display().to_string();
        let stem = path.with_extension("");
        let whole = path.to_owned();
        (0..parts.len()).rev().flat_map(move |from| [ending(&stem, from), ending(&whole, from)])
    }
    let own = |path: &Path, name: &String| {
        paths.iter().all(|other| *other == path || candidates(other).all(|candidate| candidate != *name))
    };
    let name =
        |path: &&Path| candidates(path).find(|name| own(path, name)).unwrap_or_else(|| path.display().to_string());
    paths.iter().map(name).collect()
}

/// A row whose last trained part is asked for.
struct Question {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl Question {
    /// The last trained part of a row is the answer, what comes before it the prompt. None where nothing comes before.
    fn of(examples: &Examples, row: usize) -> Option<Self> {
        let span = examples.trained(row).pop()?;
        let ids = examples.ids(row);
        let (prompt, answer) = (ids[..span.start].to_vec(), ids[span].to_vec());
        (!prompt.is_empty()).then_some(Self { prompt, answer })
    }
}

/// What the model answers, in the order of the questions; nothing where its output is no number.
fn answers(
    model: &CausalLm,
    ranks: &Ranks,
    causal: &Causal,
    questions: &[Question],
    rows: usize,
) -> Result<Vec<Sample>, Error> {
    let how = &causal.judge.generation;
    let text = |ids: &[u32]| causal.tokenizer.decode(ids).unwrap_or_default().trim().to_owned();
    let mut order: Vec<usize> = (0..questions.len()).collect();
    order.sort_by_key(|&at| questions[at].prompt.len());
    let batches: Vec<&[usize]> = order.chunks(rows.max(1)).collect();
    let generated = ranks.map(&batches, |batch, pass| {
        let prompts: Vec<Vec<u32>> = batch.iter().map(|&at| questions[at].prompt.clone()).collect();
        let generated = match model.generate(&prompts, how, pass, &mut |_, _| true) {
            Ok(generated) => generated,
            Err(temper_models::Error::Device(failed)) => return Err(failed),
            Err(error) => {
                tracing::warn!("{error}: {} rows count as not answered", prompts.len());
                vec![Generated::default(); prompts.len()]
            }
        };
        Ok(generated.into_iter().map(|Generated { ids, .. }| ids).collect::<Vec<_>>())
    })?;
    let mut samples = vec![Sample::default(); questions.len()];
    for (&at, ids) in order.iter().zip(generated.into_iter().flatten()) {
        let Question { prompt, answer } = &questions[at];
        let end = answer.iter().position(|id| how.end_ids.contains(id)).unwrap_or(answer.len());
        samples[at] = Sample { prompt: text(prompt), expected: text(&answer[..end]), answer: text(&ids) };
    }
    Ok(samples)
}

impl Judge {
    /// Whether an answer is right.
    fn accepts(&self, metric: Metric, sample: &Sample) -> bool {
        match (metric, &self.answer) {
            (Metric::RegexMatch, Some(regex)) => {
                let expected = last_match(regex, &sample.expected);
                expected.is_some() && expected == last_match(regex, &sample.answer)
            }
            _ => sample.expected == sample.answer,
        }
    }
}

/// The first group of the last match, or the whole of it.
fn last_match<'a>(regex: &Regex, text: &'a str) -> Option<&'a str> {
    let found = regex.captures_iter(text).last()?;
    found.get(1).or_else(|| found.get(0)).map(|found| found.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Sampling;

    #[test]
    fn files_are_told_apart_by_as_little_as_it_takes() {
        let names = |paths: &[&str]| short_names(&paths.iter().map(Path::new).collect::<Vec<_>>()).join(" ");
        assert_eq!(names(&["/data/a.jsonl", "/data/b.csv"]), "a b");
        assert_eq!(names(&["/data/a.jsonl", "/data/a.csv", "/data/c.csv"]), "a.jsonl a.csv c");
        assert_eq!(names(&["/x/en/dev.jsonl", "/x/de/dev.jsonl", "/x/it/test.jsonl"]), "en/dev de/dev test");
        assert_eq!(names(&["/x/en/1/dev.jsonl", "/x/de/1/dev.jsonl"]), "en/1/dev de/1/dev");
        assert_eq!(names(&["a.csv", "x/a.csv"]), "a.csv x/a");
        assert_eq!(names(&["a/x.csv", "a/x.jsonl", "b/x.csv", "x.jsonl.gz"]), "a/x.csv a/x.jsonl b/x x.jsonl.gz");
    }

    #[test]
    fn answers_are_compared_whole_or_by_what_counts() {
        let generation = Generation {
            max_new_tokens: 1,
            end_ids: vec![],
            sampling: Sampling::default(),
            max_positions: 1,
            first: 0,
        };
        let answer = Some(Regex::new(r"#### (-?[0-9.,]+)").unwrap());
        let judge = Judge { metrics: vec![], answer, samples: 0, generation };
        let accepts = |metric, expected: &str, answer: &str| {
            let [expected, answer] = [expected, answer].map(str::to_owned);
            judge.accepts(metric, &Sample { prompt: String::new(), expected, answer })
        };
        assert!(accepts(Metric::ExactMatch, "yes", "yes") && !accepts(Metric::ExactMatch, "yes", "yes."));
        assert!(accepts(Metric::RegexMatch, "2+2\n#### 4", "#### 5 no: #### 4"));
        assert!(!accepts(Metric::RegexMatch, "#### 4", "#### 5") && !accepts(Metric::RegexMatch, "four", "four"));
    }
}
