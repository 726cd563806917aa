//! Tokenised rows.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    batch::TokenBatch,
    labels::{Column, Label},
    store::Tokens,
};

/// Tokenised rows with their labels: a view of some rows of what was read. Tokens live in memory below 64 MiB, beyond
/// that in an unlinked temporary file that is memory-mapped.
#[derive(Clone)]
pub struct Examples {
    pub(crate) rows: Vec<u32>,
    pub(crate) store: Arc<Store>,
    names: Arc<[String]>,
}

/// Everything that was read of one list of files.
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
    pub files: Vec<FileRows>,
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
        Self { rows, store, names }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Token ids of a row, special tokens included.
    #[must_use]
    pub fn ids(&self, row: usize) -> &[u32] {
        let at = self.at(row);
        let start = if at == 0 { 0 } else { self.store.ends[at - 1] };
        &self.store.tokens.as_slice()[start as usize..self.store.ends[at] as usize]
    }

    /// Number of tokens of a row.
    #[must_use]
    pub fn length(&self, row: usize) -> usize {
        let at = self.at(row);
        (self.store.ends[at] - if at == 0 { 0 } else { self.store.ends[at - 1] }) as usize
    }

    /// Number of leading tokens of type 0; those after it are of type 1 (the second text of a pair).
    #[must_use]
    pub fn boundary(&self, row: usize) -> usize {
        self.store.first[self.at(row)] as usize
    }

    /// Tokens of a row that `max_length` cut off.
    #[must_use]
    pub fn lost(&self, row: usize) -> usize {
        self.store.lost[self.at(row)] as usize
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

    /// Where a row came from.
    #[must_use]
    pub fn source(&self, row: usize) -> Source<'_> {
        let at = self.at(row);
        let file = self.file(at);
        Source { path: &file.path, unit: file.unit, line: self.store.lines[at] }
    }

    /// Weight of the file that a row came from.
    #[must_use]
    pub fn weight(&self, row: usize) -> f64 {
        self.file(self.at(row)).weight
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

    fn at(&self, row: usize) -> usize {
        self.rows[row] as usize
    }

    fn file(&self, at: usize) -> &FileRows {
        &self.store.files[self.store.files.partition_point(|file| file.start <= at) - 1]
    }
}
