//! Files to rows in tokens: a thread parses, the others tokenise.

use std::{ops::Range, path::Path, sync::mpsc};

use rayon::prelude::*;

use crate::{
    causal::{Causal, Seen},
    config::{FileTable, Files, Format},
    error::{Error, Result},
    examples::{Choice, FileRows, Store, Trained},
    hash::RowHash,
    labels::Labels,
    source::{Body, Columns, Place, Record, SourceFile},
    store::TokenWriter,
    tokenizer::Tokenizer,
};

/// Rows, and bytes of text, that are tokenised at a time.
const CHUNK: (usize, usize) = (4096, 4 << 20);

/// Everything that was read of one list of files.
pub(crate) struct Rows {
    pub store: Store,
    pub hashes: Vec<RowHash>,
    /// For causal language models: rows, by their place, and what was seen of them.
    pub observed: Vec<(String, Seen)>,
}

/// How files become rows.
pub(crate) struct Reader<'a> {
    pub columns: &'a Columns,
    pub tokenizer: &'a Tokenizer,
    pub max_length: usize,
    /// For causal language models.
    pub causal: Option<&'a Causal<'a>>,
}

/// A row in tokens.
struct Row {
    ids: Vec<u32>,
    /// Tokens of type 0.
    first: usize,
    lost: usize,
    hash: RowHash,
    causal: Option<Learned>,
}

/// What a causal language model learns of a row.
struct Learned {
    runs: Vec<Range<u32>>,
    choices: Vec<Choice>,
    seen: Seen,
}

/// Rows of one list of files, as they come in.
struct Collected {
    writer: TokenWriter,
    rows: Rows,
}

impl Reader<'_> {
    /// Reads files one after the other.
    pub(crate) fn read(
        &self,
        field: &'static str,
        files: &Files,
        base_dir: &Path,
        labels: &mut Labels,
    ) -> Result<Rows> {
        let trained = self.causal.map(|_| Trained::default());
        let store = Store { labels: labels.column(), trained, ..Store::default() };
        let rows = Rows { store, hashes: Vec::new(), observed: Vec::new() };
        let mut collected = Collected { writer: TokenWriter::new(), rows };
        for (source, weight) in sources(field, files, base_dir)? {
            self.file(&source, weight, labels, &mut collected)?;
        }
        collected.rows.store.tokens = collected.writer.finish()?;
        Ok(collected.rows)
    }

    fn file(&self, source: &SourceFile, weight: f64, labels: &mut Labels, to: &mut Collected) -> Result<()> {
        let (path, unit) = (source.path.as_path(), source.unit());
        let start = to.rows.store.ends.len();
        to.rows.store.files.push(FileRows { path: path.to_owned(), unit, weight, start });
        let mut first_format = None;
        let (send, receive) = mpsc::sync_channel::<Vec<Record>>(2);
        std::thread::scope(|scope| {
            let parser = scope.spawn(|| parse(source, self.columns, send));
            for chunk in receive {
                let row = |record| self.row(record, Place { path, unit, line: record.line });
                let encoded: Vec<Row> = chunk.par_iter().map(row).collect::<Result<_>>()?;
                for (record, row) in chunk.into_iter().zip(encoded) {
                    let place = Place { path, unit, line: record.line };
                    same_format(&mut first_format, &record.body).map_err(|message| place.error(message))?;
                    labels.push(record.label, &mut to.rows.store.labels).map_err(|message| place.error(message))?;
                    to.push(row, &place)?;
                }
                if to.rows.store.ends.len() > u32::MAX as usize {
                    return Err(Error::file(path, "more than 4294967295 rows in all; train on fewer files"));
                }
            }
            parser.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn row(&self, record: &Record, place: Place) -> Result<Row> {
        let fail = |message: String| place.error(message);
        match (&record.body, self.causal, self.columns) {
            (Body::Cells(format, cells), Some(causal), Columns::Causal(layout)) => {
                let sample = layout.sample(*format, cells.clone()).map_err(fail)?;
                let row = causal.encode(&sample).map_err(fail)?;
                let (first, lost) = (row.ids.len(), row.full_length - row.ids.len());
                let learned = Learned { runs: row.trained, choices: row.choices, seen: row.seen };
                Ok(Row { ids: row.ids, first, lost, hash: row.hash, causal: Some(learned) })
            }
            (Body::Texts(text, pair), ..) => {
                let encoded = self
                    .tokenizer
                    .encode(text, pair.as_deref(), self.max_length)
                    .map_err(|e| place.error(e.to_string()))?;
                let first = encoded.type_ids.iter().position(|&t| t != 0).unwrap_or(encoded.ids.len());
                if encoded.type_ids[first..].iter().any(|&t| t != 1) {
                    return Err(place.error("the tokenizer gives segments other than 0…0 1…1, as XLNet's does"));
                }
                let lost = encoded.full_length - encoded.ids.len();
                Ok(Row { ids: encoded.ids, first, lost, hash: RowHash::new(text, pair.as_deref()), causal: None })
            }
            (Body::Cells(..), ..) => Err(place.error("its columns are those of a causal language model")),
        }
    }
}

impl Collected {
    fn push(&mut self, row: Row, place: &Place) -> Result<()> {
        let Rows { store, hashes, observed } = &mut self.rows;
        store.ends.push(self.writer.push(&row.ids)?);
        store.first.push(row.first as u32);
        store.lost.push(row.lost as u32);
        store.lines.push(u32::try_from(place.line).unwrap_or(u32::MAX));
        hashes.push(row.hash);
        if let (Some(Learned { runs, choices, seen }), Some(trained)) = (row.causal, &mut store.trained) {
            trained.push(runs);
            if !choices.is_empty() {
                store.choices.insert(store.lines.len() as u32 - 1, choices);
            }
            if !seen.is_nothing() {
                observed.push((place.to_string(), seen));
            }
        }
        Ok(())
    }
}

/// Every row of a file has the format of its first.
fn same_format(first: &mut Option<Format>, body: &Body) -> Result<(), String> {
    let Body::Cells(format, _) = body else { return Ok(()) };
    match first.get_or_insert(*format) {
        first if first == format => Ok(()),
        first => Err(format!(
            "its columns are those of {}, and those of the first row {}",
            crate::layout::name(*format),
            crate::layout::name(*first)
        )),
    }
}

/// The files, and how often each is seen.
fn sources(field: &'static str, files: &Files, base_dir: &Path) -> Result<Vec<(SourceFile, f64)>> {
    let entries = files.entries();
    if entries.is_empty() {
        return Err(Error::Config { field, message: "it names no file".into() });
    }
    let source = |FileTable { path, weight, .. }: FileTable| {
        if !(weight.is_finite() && weight > 0.0 && weight <= 1000.0) {
            let message = format!("the weight {weight} of {path} is not in (0, 1000]");
            return Err(Error::Config { field, message });
        }
        let found = base_dir.join(&path);
        match std::path::absolute(&path) {
            Ok(here) if !found.exists() && here.exists() => {
                let hint = format!("paths begin at the recipe's directory: the file here is {}", here.display());
                Err(Error::file(&found, format!("there is no such file; {hint}")))
            }
            _ => Ok((SourceFile::find(found)?, weight)),
        }
    };
    entries.into_iter().map(source).collect()
}

/// Sends a file's records on in chunks. A receiver that went away is not an error here: it has its own.
fn parse(source: &SourceFile, columns: &Columns, send: mpsc::SyncSender<Vec<Record>>) -> Result<()> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    let mut gone = false;
    let result = source.read(columns, &mut |record| {
        bytes += record.body.bytes();
        chunk.push(record);
        if chunk.len() == CHUNK.0 || bytes >= CHUNK.1 {
            bytes = 0;
            if send.send(std::mem::take(&mut chunk)).is_err() {
                gone = true;
                // Any error ends the reading; the receiver reports its own.
                return Err(Error::file(&source.path, "reading was stopped"));
            }
        }
        Ok(())
    });
    if !gone {
        let _ = send.send(chunk);
    }
    result
}
