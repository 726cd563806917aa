//! Tokenised rows.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    batch::TokenBatch,
    labels::{Column, Label},
    pack::{Packs, Part},
    store::Tokens,
};

/// Tokenised rows with their labels: a view of some rows of what was read, or of packs of them. Tokens live in memory below 64 MiB, beyond
/// that in an unlinked temporary file that is memory-mapped.
#[derive(Clone)]
pub struct Examples {
    pub(crate) rows: Arc<Rows>,
    pub(crate) store: Arc<Store>,
    names: Arc<[String]>,
}

/// What a row of a view is.
pub(crate) enum Rows {
    /// A row of the store.
    Each(Vec<u32>),
    /// Parts of rows of the store.
    Packs(Packs),
}

/// Everything that was read of one list of files.
#[derive(Default)]
pub(crate) struct Store {
    pub tokens: Tokens,
    /// The tokens of row r end here.
    pub ends: Vec<u64>,
    /// Tokens of row r that belong to the first text; the others belong to the second.
    pub first: Vec<u32>,
    /// Tokens cut off row r.
    pub lost: Vec<u32>,
    pub lines: Vec<u32>,
    pub labels: Column,
    /// For causal language models.
    pub trained: Option<Trained>,
    /// Of the rows that have choices, the completions, the right one first.
    pub choices: HashMap<u32, Vec<Choice>>,
    pub files: Vec<FileRows>,
}

/// Which tokens are learned.
#[derive(Default)]
pub(crate) struct Trained {
    /// The runs of row r end here.
    ends: Vec<u64>,
    /// Within their row, ascending and apart.
    runs: Vec<Range<u32>>,
}

impl Trained {
    pub(crate) fn push(&mut self, runs: Vec<Range<u32>>) {
        self.runs.extend(runs);
        self.ends.push(self.runs.len() as u64);
    }

    fn of(&self, row: usize) -> &[Range<u32>] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.runs[start..self.ends[row] as usize]
    }
}

impl Store {
    /// The tokens of a row.
    fn ids(&self, row: usize) -> &[u32] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.tokens.as_slice()[start as usize..self.ends[row] as usize]
    }

    fn file(&self, row: usize) -> &FileRows {
        &self.files[self.files.partition_point(|file| file.start <= row) - 1]
    }

    /// Weight of the file that a row came from.
    pub(crate) fn weight(&self, row: u32) -> f64 {
        self.file(row as usize).weight
    }
}

/// A prompt with a completion, the token that ends it left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The tokens of both.
    pub ids: Vec<u32>,
    /// Where the completion begins.
    pub start: usize,
}

/// A file and where its rows begin.
pub(crate) struct FileRows {
    pub path: PathBuf,
    pub unit: &'static str,
    pub weight: f64,
    pub start: usize,
}

/// Where a row came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// The file.
    pub path: &'a Path,
    /// `line` for text files, `row` for columnar ones.
    pub unit: &'static str,
    /// Line of the file or number of the row, from 1.
    pub line: u32,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        write!(formatter, "{name} {} {}", self.unit, self.line)
    }
}

impl Examples {
    pub(crate) fn new(store: Arc<Store>, rows: Vec<u32>, names: Arc<[String]>) -> Self {
        Self { rows: Arc::new(Rows::Each(rows)), store, names }
    }

    pub(crate) fn with_rows(&self, rows: Rows) -> Self {
        Self { rows: Arc::new(rows), ..self.clone() }
    }

    /// Those rows from which something is learned: a step of none of them would have no loss.
    #[must_use]
    pub(crate) fn only(&self, learned: impl Fn(usize) -> bool) -> Self {
        if (0..self.len()).all(&learned) {
            return self.clone();
        }
        let rows = (0..self.len()).filter(|row| learned(*row));
        match &*self.rows {
            Rows::Each(all) => self.with_rows(Rows::Each(rows.map(|row| all[row]).collect())),
            Rows::Packs(_) => {
                let mut packs = Packs::default();
                rows.for_each(|row| packs.push(&self.parts(row).collect::<Vec<_>>()));
                self.with_rows(Rows::Packs(packs))
            }
        }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        match &*self.rows {
            Rows::Each(rows) => rows.len(),
            Rows::Packs(packs) => packs.ends.len(),
        }
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Token ids of a row, special tokens included.
    #[must_use]
    pub fn ids(&self, row: usize) -> Cow<'_, [u32]> {
        let mut parts = self.parts(row).map(|part| self.part_ids(part));
        match (parts.next(), parts.next()) {
            (Some(one), None) => Cow::Borrowed(one),
            (first, second) => first.into_iter().chain(second).chain(parts).flatten().copied().collect(),
        }
    }

    /// Number of tokens of a row.
    #[must_use]
    pub fn length(&self, row: usize) -> usize {
        self.parts(row).map(|part| part.len()).sum()
    }

    /// Tokens of each segment of a row, in order: a text or conversation that sees no other. Rows that are no packs have
    /// one.
    #[must_use]
    pub fn segments(&self, row: usize) -> Vec<u32> {
        self.parts(row).map(|part| part.to - part.from).collect()
    }

    /// Tokens of a row that are targets, ascending and apart; the first token of a segment never is. Empty for tasks
    /// whose targets are no tokens.
    #[must_use]
    pub fn trained(&self, row: usize) -> Vec<Range<usize>> {
        let Some(trained) = &self.store.trained else { return Vec::new() };
        let mut start = 0;
        let mut runs = Vec::new();
        for part in self.parts(row) {
            for run in trained.of(part.row as usize) {
                let (from, to) = (run.start.max(part.from + 1), run.end.min(part.to));
                if from < to {
                    runs.push(start + (from - part.from) as usize..start + (to - part.from) as usize);
                }
            }
            start += part.len();
        }
        runs
    }

    /// Number of leading tokens of type 0; those after it are of type 1 (the second text of a pair).
    #[must_use]
    pub fn boundary(&self, row: usize) -> usize {
        match &*self.rows {
            Rows::Each(rows) => self.store.first[rows[row] as usize] as usize,
            Rows::Packs(_) => self.length(row),
        }
    }

    /// Tokens of a row that `max_length` cut off.
    #[must_use]
    pub fn lost(&self, row: usize) -> usize {
        self.parts(row).map(|part| self.store.lost[part.row as usize] as usize).sum()
    }

    /// The completions of a row to choose between, the right one first; none where it has no choices.
    #[must_use]
    pub fn choices(&self, row: usize) -> &[Choice] {
        self.store.choices.get(&(self.at(row) as u32)).map_or(&[], Vec::as_slice)
    }

    /// Label of a row.
    #[must_use]
    pub fn label(&self, row: usize) -> Label {
        self.store.labels.get(self.at(row), self.names.len())
    }

    /// Names of the classes or labels, by index; none for scores and texts without labels.
    #[must_use]
    pub fn label_names(&self) -> &[String] {
        &self.names
    }

    /// Where a row came from; of a pack, its first segment.
    #[must_use]
    pub fn source(&self, row: usize) -> Source<'_> {
        self.place(self.at(row))
    }

    /// Where each segment of a row came from.
    #[must_use]
    pub fn sources(&self, row: usize) -> Vec<Source<'_>> {
        self.parts(row).map(|part| self.place(part.row as usize)).collect()
    }

    /// Weight of the file that a row came from.
    #[must_use]
    pub fn weight(&self, row: usize) -> f64 {
        self.store.file(self.at(row)).weight
    }

    /// Runs of rows of equal weight, and their weights.
    pub(crate) fn runs(&self) -> Vec<(Range<usize>, f64)> {
        let mut runs: Vec<(Range<usize>, f64)> = Vec::new();
        for row in 0..self.len() {
            let weight = self.weight(row);
            match runs.last_mut() {
                Some((rows, last)) if *last == weight => rows.end = row + 1,
                _ => runs.push((row..row + 1, weight)),
            }
        }
        runs
    }

    /// Some rows, right-padded to the longest of them.
    #[must_use]
    pub fn batch(&self, rows: &[u32], pad_id: u32) -> TokenBatch {
        TokenBatch::new(self, rows, pad_id)
    }

    pub(crate) fn active(&self, row: usize) -> &[u32] {
        self.store.labels.active(self.at(row))
    }

    pub(crate) fn fingerprint(&self, row: usize) -> u64 {
        self.store.labels.fingerprint(self.at(row))
    }

    pub(crate) fn is_causal(&self) -> bool {
        self.store.trained.is_some()
    }

    /// The parts of a row; a row that is no pack is its only part.
    pub(crate) fn parts(&self, row: usize) -> impl Iterator<Item = Part> {
        let (whole, packed) = match &*self.rows {
            Rows::Each(rows) => {
                let row = rows[row];
                (Some(Part { row, from: 0, to: self.store.ids(row as usize).len() as u32 }), &[][..])
            }
            Rows::Packs(packs) => {
                let start = if row == 0 { 0 } else { packs.ends[row - 1] as usize };
                (None, &packs.parts[start..packs.ends[row] as usize])
            }
        };
        whole.into_iter().chain(packed.iter().copied())
    }

    /// The tokens of a part.
    pub(crate) fn part_ids(&self, part: Part) -> &[u32] {
        &self.store.ids(part.row as usize)[part.from as usize..part.to as usize]
    }

    /// The row of the store that a row begins with.
    fn at(&self, row: usize) -> usize {
        match &*self.rows {
            Rows::Each(rows) => rows[row] as usize,
            Rows::Packs(packs) => {
                let start = if row == 0 { 0 } else { packs.ends[row - 1] as usize };
                packs.parts[start].row as usize
            }
        }
    }

    fn place(&self, at: usize) -> Source<'_> {
        let file = self.store.file(at);
        Source { path: &file.path, unit: file.unit, line: self.store.lines[at] }
    }
}
