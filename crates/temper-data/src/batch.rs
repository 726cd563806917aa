//! Rows side by side.

use crate::examples::Examples;

/// Rows side by side, right-padded to the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Tokens of each row without padding, `[B]`.
    pub lengths: Vec<u32>,
}

impl TokenBatch {
    pub(crate) fn new(examples: &Examples, rows: &[u32], pad_id: u32) -> Self {
        let lengths: Vec<u32> = rows.iter().map(|&row| examples.length(row as usize) as u32).collect();
        let seq = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut ids = vec![pad_id as i32; rows.len() * seq];
        let mut type_ids = vec![0; rows.len() * seq];
        for (i, &row) in rows.iter().enumerate() {
            let row = row as usize;
            let from = examples.ids(row);
            ids[i * seq..].iter_mut().zip(from).for_each(|(to, &id)| *to = id as i32);
            type_ids[i * seq + examples.boundary(row)..i * seq + from.len()].fill(1);
        }
        Self { rows: rows.to_vec(), batch: rows.len(), seq, ids, type_ids, lengths }
    }
}
