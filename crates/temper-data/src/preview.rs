//! What a model will see: rows as their tokens, and which of them are learned.

use std::fmt;

use crate::{error::Result, examples::Examples, tokenizer::Tokenizer};

/// A row as its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewRow {
    /// Where each of its segments came from, such as `chat.jsonl line 3`.
    pub sources: Vec<String>,
    /// Its tokens.
    pub tokens: Vec<PreviewToken>,
}

/// A token of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewToken {
    /// Its id.
    pub id: u32,
    /// The text that it adds; empty for all but the last token of a character that several make.
    pub text: String,
    /// Whether it is learned.
    pub trained: bool,
    /// Whether a segment begins here.
    pub first: bool,
}

/// The first `n` rows of `examples`.
///
/// # Errors
/// When the tokenizer's decoder fails.
pub fn preview(examples: &Examples, tokenizer: &Tokenizer, n: usize) -> Result<Vec<PreviewRow>> {
    (0..examples.len().min(n)).map(|row| PreviewRow::new(examples, tokenizer, row)).collect()
}

impl PreviewRow {
    fn new(examples: &Examples, tokenizer: &Tokenizer, row: usize) -> Result<Self> {
        let (ids, runs) = (examples.ids(row), examples.trained(row));
        let mut tokens = Vec::with_capacity(ids.len());
        for segment in examples.segments(row) {
            let start = tokens.len();
            let ids = &ids[start..start + segment as usize];
            for (i, (text, &id)) in tokenizer.pieces(ids)?.into_iter().zip(ids).enumerate() {
                let trained = runs.iter().any(|run| run.contains(&(start + i)));
                tokens.push(PreviewToken { id, text, trained, first: i == 0 });
            }
        }
        let sources = examples.sources(row).iter().map(ToString::to_string).collect();
        Ok(Self { sources, tokens })
    }

    /// The row for a terminal: what is learned in bold green, the rest dim, a line before each segment. Without `colour`,
    /// what is learned stands between `⟦` and `⟧`.
    #[must_use]
    pub fn display(&self, colour: bool) -> impl fmt::Display {
        let (learned, other, end) = if colour { ("\x1b[1;32m", "\x1b[2m", "\x1b[0m") } else { ("⟦", "", "⟧") };
        let mut out = String::new();
        let mut sources = self.sources.iter();
        for segment in self.tokens.chunk_by(|_, next| !next.first) {
            out.push_str(&format!("── {} ──\n", sources.next().map_or("", String::as_str)));
            for run in segment.chunk_by(|a, b| a.trained == b.trained) {
                out.push_str(if run[0].trained { learned } else { other });
                run.iter().for_each(|token| out.push_str(&token.text));
                out.push_str(if run[0].trained || colour { end } else { "" });
            }
            out.push('\n');
        }
        out
    }
}
