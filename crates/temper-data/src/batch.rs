//! Rows side by side.

use crate::{examples::Examples, tokenizer::Encoded};

/// Rows side by side, right-padded to the longest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// The rows, as numbered by their [`Examples`].
    pub rows: Vec<u32>,
    /// Rows B.
    pub batch: usize,
    /// Tokens S of the longest row.
    pub seq: usize,
    /// Token ids `[B, S]`, row by row.
    pub ids: Vec<i32>,
    /// 0 for the first text and for padding, 1 for the second, `[B, S]`.
    pub type_ids: Vec<i32>,
    /// Tokens of the segments of each row, in order; they sum up to its length without padding. No segment sees another. A row that is no
    /// pack is one segment.
    pub segments: Vec<Vec<u32>>,
    /// Whether a token is a target, to be said from the tokens before it in its segment, `[B, S]`: never the first one of
    /// a segment, nor padding. Empty where a task's targets are no tokens.
    pub trained: Vec<bool>,
}

impl TokenBatch {
    /// Texts that are no rows of a data set, in their order.
    #[must_use]
    pub fn from_encoded(texts: &[Encoded], pad_id: u32) -> Self {
        let seq = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let pad = |values: Vec<i32>, fill: i32| {
            values.into_iter().chain(std::iter::repeat(fill)).take(seq).collect::<Vec<_>>()
        };
        Self {
            rows: (0..texts.len() as u32).collect(),
            batch: texts.len(),
            seq,
            ids: texts
                .iter()
                .flat_map(|text| pad(text.ids.iter().map(|&id| id as i32).collect(), pad_id as i32))
                .collect(),
            type_ids: texts
                .iter()
                .flat_map(|text| pad(text.type_ids.iter().map(|&id| i32::from(id)).collect(), 0))
                .collect(),
            segments: texts.iter().map(|text| vec![text.ids.len() as u32]).collect(),
            trained: Vec::new(),
        }
    }

    pub(crate) fn new(examples: &Examples, rows: &[u32], pad_id: u32) -> Self {
        let segments: Vec<Vec<u32>> = rows.iter().map(|&row| examples.segments(row as usize)).collect();
        let lengths: Vec<u32> = segments.iter().map(|row| row.iter().sum()).collect();
        let seq = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut ids = vec![pad_id as i32; rows.len() * seq];
        let mut type_ids = vec![0; rows.len() * seq];
        let mut trained = vec![false; if examples.is_causal() { ids.len() } else { 0 }];
        for (i, &row) in rows.iter().enumerate() {
            let (row, length) = (row as usize, lengths[i] as usize);
            let from = examples.parts(row).flat_map(|part| examples.part_ids(part));
            ids[i * seq..].iter_mut().zip(from).for_each(|(to, &id)| *to = id as i32);
            type_ids[i * seq + examples.boundary(row)..i * seq + length].fill(1);
            for run in examples.trained(row) {
                trained[i * seq + run.start..i * seq + run.end].fill(true);
            }
        }
        Self { rows: rows.to_vec(), batch: rows.len(), seq, ids, type_ids, segments, trained }
    }

    /// Tokens of each row without padding, `[B]`.
    #[must_use]
    pub fn lengths(&self) -> Vec<u32> {
        self.segments.iter().map(|row| row.iter().sum()).collect()
    }

    /// Tokens of all rows, padding not counted.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.segments.iter().flatten().map(|&length| u64::from(length)).sum()
    }
}
