//! What the data are: counts of each split, and what the audit found.

use serde::Serialize;

use crate::{examples::Examples, labels::Label};

/// What the data are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataReport {
    /// Tokens kept of each row.
    pub max_length: usize,
    /// The training rows.
    pub train: SplitReport,
    /// The evaluation rows.
    pub eval: SplitReport,
    /// The chat template, where there are conversations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateReport>,
    /// Whether each row is a text that a causal language model learns whole.
    #[serde(skip)]
    pub plain: bool,
    /// What looks wrong, worst first.
    pub findings: Vec<Finding>,
}

impl DataReport {
    /// The findings that make training pointless.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error)
    }
}

/// A chat template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateReport {
    /// Its file, or its name.
    pub origin: String,
    /// The day that it writes into what it renders, `2026-11-21`; none if it writes none. A run that goes on needs the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// Variables that it was given and does not read.
    #[serde(skip)]
    pub unread: Vec<String>,
}

/// What a causal language model sees of one split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PackReport {
    /// Tokens that are targets.
    pub trained_tokens: u64,
    /// Rows after packing, or after cutting long texts into pieces.
    pub packs: usize,
    /// Share of the `packs` × `max_length` tokens that are no padding, in [0, 1].
    pub efficiency: f64,
}

/// Counts of one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitReport {
    /// Rows.
    pub rows: usize,
    /// Rows of each class or label, by index.
    pub labels: Vec<LabelCount>,
    /// Smallest and largest score.
    pub scores: Option<[f32; 2]>,
    /// Lengths in tokens, after cutting.
    pub lengths: LengthStats,
    /// Tokens, after cutting.
    pub tokens: u64,
    /// Rows that `max_length` cut.
    pub truncated_rows: usize,
    /// Tokens that were cut off.
    pub tokens_lost: u64,
    /// Share of tokens that the vocabulary does not know, in [0, 1].
    pub unknown_share: f64,
    /// For causal language models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<PackReport>,
}

/// Rows of one class or label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelCount {
    /// Its name.
    pub name: String,
    /// Rows that have it.
    pub rows: usize,
}

/// Lengths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct LengthStats {
    /// Shortest row.
    pub min: usize,
    /// Mean.
    pub mean: f64,
    /// Median (nearest rank).
    pub p50: usize,
    /// 95th percentile (nearest rank).
    pub p95: usize,
    /// Longest row.
    pub max: usize,
}

/// Something that looks wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Its kind, for programs: `duplicate-rows`, `leakage`, …
    pub code: &'static str,
    /// What was found, where, and what to do.
    pub message: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Training would be pointless.
    Error,
    /// The result is likely worse, or its measure false.
    Warning,
    /// Good to know.
    Info,
}

impl SplitReport {
    pub(crate) fn new(examples: &Examples, unknown_id: Option<u32>) -> Self {
        let rows = examples.len();
        let mut labels: Vec<LabelCount> =
            examples.label_names().iter().map(|name| LabelCount { name: name.clone(), rows: 0 }).collect();
        let mut scores: Option<[f32; 2]> = None;
        let mut lengths = Vec::with_capacity(rows);
        let (mut tokens, mut unknown, mut truncated_rows, mut tokens_lost) = (0, 0, 0, 0);
        for row in 0..rows {
            examples.active(row).iter().for_each(|&id| labels[id as usize].rows += 1);
            if let Label::Score(score) = if labels.is_empty() { examples.label(row) } else { Label::None } {
                let [low, high] = scores.unwrap_or([score, score]);
                scores = Some([low.min(score), high.max(score)]);
            }
            let ids = examples.ids(row);
            lengths.push(ids.len());
            tokens += ids.len() as u64;
            unknown += unknown_id.map_or(0, |id| ids.iter().filter(|&&token| token == id).count() as u64);
            truncated_rows += usize::from(examples.lost(row) > 0);
            tokens_lost += examples.lost(row) as u64;
        }
        let unknown_share = if tokens == 0 { 0.0 } else { unknown as f64 / tokens as f64 };
        Self {
            rows,
            labels,
            scores,
            lengths: stats(lengths),
            tokens,
            truncated_rows,
            tokens_lost,
            unknown_share,
            packing: None,
        }
    }

    /// Adds what became of the rows: `packed`.
    pub(crate) fn pack(&mut self, packed: &Examples, max_length: usize) {
        let targets = |row| packed.trained(row).iter().map(|run| run.len() as u64).sum::<u64>();
        let (packs, room) = (packed.len(), packed.len() * max_length);
        let tokens: usize = (0..packs).map(|row| packed.length(row)).sum();
        let efficiency = if room == 0 { 0.0 } else { tokens as f64 / room as f64 };
        self.packing = Some(PackReport { trained_tokens: (0..packs).map(targets).sum(), packs, efficiency });
    }
}

fn stats(mut lengths: Vec<usize>) -> LengthStats {
    lengths.sort_unstable();
    let (Some(&min), Some(&max)) = (lengths.first(), lengths.last()) else { return LengthStats::default() };
    let rank = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100).max(1) - 1];
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    LengthStats { min, mean, p50: rank(50), p95: rank(95), max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(stats(vec![]), LengthStats::default());
        assert_eq!(stats(vec![7]), LengthStats { min: 7, mean: 7.0, p50: 7, p95: 7, max: 7 });
        let expected = LengthStats { min: 1, mean: 50.5, p50: 50, p95: 95, max: 100 };
        assert_eq!(stats((1..=100).rev().collect()), expected);
    }
}
