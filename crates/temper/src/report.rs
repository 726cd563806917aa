//! `report.html`: what a run did, on one page that needs nothing beside itself.
//!
//! [`ReportData`] is what the page says; [`render`] writes the page, [`render_svg_curves`] the two curves of a model card,
//! [`render_runs`] a page of several runs.

mod charts;
mod curves;
mod grid;
mod overlay;
mod page;
mod scale;
mod tables;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use temper_engine::Event;
use temper_tasks::Sample;

use crate::events::Record;
use crate::progress::reason_words;

pub use curves::render_svg_curves;
pub use grid::{Cell, Table};
pub use overlay::render_runs;
pub use page::render;

/// Everything that a report says. What is empty or `None` has no place on the page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// Name of the run.
    pub name: String,
    /// One line under the name, such as `sequence-classification · all-MiniLM-L6-v2 · LoRA r=8`.
    pub summary: String,
    /// The recipe as it was written.
    pub recipe: String,
    /// The plan, table by table.
    pub plan: Vec<Section>,
    /// Statistics of the data, split by split.
    pub data: Vec<Split>,
    /// The training reports, in order of the step.
    pub steps: Vec<StepPoint>,
    /// The evaluations, in order of the step.
    pub evaluations: Vec<EvaluationPoint>,
    /// Name of the metric that says which evaluation is the best, such as `accuracy`.
    pub metric: String,
    /// The step of the best evaluation.
    pub best_step: Option<u64>,
    /// What the metric is without training.
    pub baseline: Option<Baseline>,
    /// Parameters that are trained.
    pub trainable_parameters: u64,
    /// All parameters, the trained ones included.
    pub parameters: u64,
    /// Which label was taken for which, on the evaluation rows of the best checkpoint.
    pub confusion: Option<Confusion>,
    /// The errors of which the model was surest, worst first.
    pub errors: Vec<WorstError>,
    /// What the model of the best checkpoint says to evaluation rows.
    pub samples: Vec<Sample>,
    /// Seconds of training, evaluations included.
    pub seconds: f64,
    /// Tokens trained on, padding not counted.
    pub tokens: u64,
    /// The most memory that the process held, in bytes.
    pub peak_memory: Option<u64>,
    /// The step after which that process began.
    pub peak_since: u64,
    /// What it ran on, such as `CPU (flex), 8 threads`.
    pub device: String,
    /// Names and versions of what it ran with.
    pub versions: Vec<(String, String)>,
    /// Why training ended, such as `finished`.
    pub ended: String,
    /// When training ended: RFC 3339, UTC.
    pub time: String,
}

/// A table of the plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// Its title, such as `Adapter`.
    pub title: String,
    /// Keys and values.
    pub rows: Vec<(String, String)>,
}

/// A baseline of the metric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// What it is, such as `most frequent label`.
    pub name: String,
    /// Its score.
    pub value: f64,
}

/// A training report: [`Event::Step`] as it is drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepPoint {
    /// Steps done.
    pub step: u64,
    /// Passes over the training rows done.
    pub epoch: f64,
    /// Mean loss per target.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global gradient norm before clipping; infinite if it overflowed.
    pub grad_norm: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
}

/// An evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationPoint {
    /// Steps done.
    pub step: u64,
    /// One value per metric.
    pub scores: BTreeMap<String, f64>,
}

/// Statistics of a split of the data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Its name, such as `train`.
    pub name: String,
    /// Number of rows.
    pub rows: u64,
    /// Number of tokens.
    pub tokens: u64,
    /// Rows that were cut at the greatest length.
    pub truncated: u64,
    /// How many rows have how many tokens; [`bins`] makes it.
    pub lengths: Vec<Bin>,
    /// How many rows have which label.
    pub labels: Vec<(String, u64)>,
}

/// A bar of a histogram: `count` rows have at least `from` and fewer than `to` tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bin {
    /// The least length in it.
    pub from: u64,
    /// The least length beyond it.
    pub to: u64,
    /// Rows in it.
    pub count: u64,
}

/// A confusion matrix.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    /// Names of the labels.
    pub labels: Vec<String>,
    /// `counts[true label][predicted label]`.
    pub counts: Vec<Vec<u64>>,
}

/// A row that the model got wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorstError {
    /// The text.
    pub text: String,
    /// The true label.
    pub label: String,
    /// The predicted label.
    pub predicted: String,
    /// Probability that the model gave to its prediction.
    pub probability: f64,
}

impl ReportData {
    /// Takes in what a run logged: the curves, the best step, tokens, time and why it ended.
    pub fn add_events(&mut self, records: &[Record]) {
        for Record { time, event } in records {
            match event {
                Event::Step { step, epoch, loss, lr, grad_norm, tokens, tokens_per_second, .. } => {
                    self.tokens = *tokens;
                    self.steps.push(StepPoint {
                        step: *step,
                        epoch: *epoch,
                        loss: *loss,
                        lr: *lr,
                        grad_norm: grad_norm.unwrap_or(f64::INFINITY),
                        tokens_per_second: *tokens_per_second,
                    });
                }
                Event::Evaluated { step, scores, best, .. } => {
                    if *best {
                        self.best_step = Some(*step);
                    }
                    self.evaluations.push(EvaluationPoint { step: *step, scores: scores.0.clone() });
                }
                Event::Stopped { reason, seconds, .. } => {
                    self.seconds = *seconds;
                    self.ended = reason_words(*reason).to_owned();
                    self.time.clone_from(time);
                }
                Event::Refused { .. } | Event::Resumed { .. } | Event::Saved { .. } => {}
            }
        }
    }

    /// The score of the best evaluation.
    fn best_score(&self) -> Option<f64> {
        let best = self.evaluations.iter().find(|evaluation| Some(evaluation.step) == self.best_step)?;
        best.scores.get(&self.metric).copied()
    }
}

/// A histogram of `lengths` in at most 32 bars of equal, round width.
pub fn bins(lengths: &[usize]) -> Vec<Bin> {
    let Some(&longest) = lengths.iter().max() else { return Vec::new() };
    let width = (scale::round_step(longest as f64 / 31.0).max(1.0)) as usize;
    let mut bins: Vec<Bin> = (0..=longest / width)
        .map(|index| Bin { from: (index * width) as u64, to: ((index + 1) * width) as u64, count: 0 })
        .collect();
    lengths.iter().for_each(|length| bins[length / width].count += 1);
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use temper_engine::StopReason;

    #[test]
    fn events_become_curves() {
        let record = |event| Record { time: "2026-01-02T03:04:05.000Z".into(), event };
        let evaluated = |step, best| Event::Evaluated {
            step,
            scores: temper_engine::Scores(BTreeMap::from([("accuracy".into(), step as f64 / 10.0)])),
            best,
            ms: 1.0,
        };
        let step = Event::Step {
            step: 5,
            steps: 9,
            epoch: 0.5,
            loss: 0.25,
            lr: 1e-4,
            grad_norm: Some(1.5),
            loss_scale: None,
            skipped: None,
            tokens: 512,
            tokens_per_second: 2e3,
            step_ms: 256.0,
            communication_ms: None,
            communication_bytes: None,
        };
        let stopped = Event::Stopped { step: 9, reason: StopReason::Finished, seconds: 2.5 };
        let mut data = ReportData { metric: "accuracy".into(), ..Default::default() };
        data.add_events(&[step, evaluated(5, true), evaluated(9, false), stopped].map(record));
        assert_eq!((data.steps.len(), data.steps[0].loss, data.tokens), (1, 0.25, 512));
        assert_eq!((data.best_step, data.best_score()), (Some(5), Some(0.5)));
        assert_eq!((data.ended.as_str(), data.seconds), ("finished", 2.5));
    }

    #[test]
    fn bins_hold_every_length_once() {
        let lengths: Vec<usize> = (0..=512).collect();
        let bins = bins(&lengths);
        assert!(bins.len() <= 32, "{}", bins.len());
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<u64>(), 513);
        assert!(bins.windows(2).all(|pair| pair[0].to == pair[1].from));
        assert_eq!(super::bins(&[3, 3]).last(), Some(&Bin { from: 3, to: 4, count: 2 }));
        assert!(super::bins(&[]).is_empty());
    }
}
