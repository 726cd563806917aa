//! Files to a data set: read, tokenise, number the labels, split, audit.

use std::{path::Path, sync::Arc, sync::mpsc};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    audit,
    config::{DataConfig, FileTable, Files},
    error::{Error, Result},
    examples::{Examples, FileRows, Store},
    labels::{LabelKind, Labels},
    report::{DataReport, SplitReport},
    source::{Columns, Place, Record, SourceFile},
    split,
    store::TokenWriter,
    tokenizer::{Encoded, Tokenizer},
};

/// Rows, and bytes of text, that are tokenised at a time.
const CHUNK: (usize, usize) = (4096, 4 << 20);

/// Training and evaluation rows, and what an audit says of them.
pub struct Dataset {
    /// Rows to train on.
    pub train: Examples,
    /// Rows to evaluate on; none when `eval_fraction = 0`.
    pub eval: Examples,
    /// Counts, and what looks wrong.
    pub report: DataReport,
}

/// Reads the files of `config` (relative to `base_dir`) into tokens, at most `max_length` a row.
///
/// The split by `eval_fraction` depends on `seed` and the rows' content only, keeps the share of each class, and keeps
/// duplicates on one side.
///
/// # Errors
/// When a file, a column, a label or a row cannot be read; the message says where. Findings of the audit are not errors
/// here: see [`DataReport::findings`].
pub fn load(
    config: &DataConfig,
    base_dir: &Path,
    kind: LabelKind,
    tokenizer: &Tokenizer,
    max_length: usize,
    seed: u64,
) -> Result<Dataset> {
    let fraction = config.resolved_eval_fraction()?;
    let added = tokenizer.added_tokens(config.text_pair.is_some());
    if max_length <= added {
        let message = format!("{max_length} leaves no room for text beside {added} special tokens");
        return Err(Error::Config { field: "max_length", message });
    }
    let mut labels = Labels::new(kind, &config.label)?;
    let columns =
        Columns { text: config.text.clone(), pair: config.text_pair.clone(), label: labels.source(&config.label) };
    let mut read =
        |field, files| Reader { columns: &columns, tokenizer, max_length }.read(field, files, base_dir, &mut labels);
    let mut train = read("train", &config.train)?;
    let mut eval = config.eval.as_ref().map(|files| read("eval", files)).transpose()?;
    let mut label_columns = vec![&mut train.store.labels];
    label_columns.extend(eval.as_mut().map(|eval| &mut eval.store.labels));
    let names: Arc<[String]> = labels.finish(&mut label_columns).into();

    let all: Vec<u32> = (0..train.hashes.len() as u32).collect();
    let store = Arc::new(train.store);
    let (train_rows, eval_rows) = split::by_content(&train.hashes, &store.labels, fraction, seed);
    let pick = |rows: &[u32]| rows.iter().map(|&row| train.hashes[row as usize]).collect::<Vec<_>>();
    let (train_hashes, eval, eval_hashes) = match eval {
        None => (pick(&train_rows), Examples::new(store.clone(), eval_rows.clone(), names.clone()), pick(&eval_rows)),
        Some(eval) => {
            let rows = (0..eval.hashes.len() as u32).collect();
            (train.hashes, Examples::new(Arc::new(eval.store), rows, names.clone()), eval.hashes)
        }
    };
    let train_rows = if config.eval.is_some() { all } else { train_rows };
    let train = Examples::new(store, train_rows, names);
    let mut report = DataReport {
        max_length,
        train: SplitReport::new(&train, tokenizer.unknown_id()),
        eval: SplitReport::new(&eval, tokenizer.unknown_id()),
        findings: Vec::new(),
    };
    let eval_wanted = config.eval.is_some() || fraction > 0.0;
    report.findings = audit::findings(&report, (&train, &train_hashes), (&eval, &eval_hashes), eval_wanted);
    Ok(Dataset { train, eval, report })
}

/// What a row says, as numbers: exactly, and but for case and white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowHash {
    pub exact: u64,
    pub normal: u64,
    /// It has no text but white space.
    pub blank: bool,
}

impl RowHash {
    pub(crate) fn new(text: &str, pair: Option<&str>) -> Self {
        let mut exact = text.to_owned();
        let mut normal = normalised(text);
        let blank = normal.is_empty() && pair.is_none_or(|pair| pair.trim().is_empty());
        if let Some(pair) = pair {
            // U+001F, the unit separator, is in no sane text.
            exact.push('\u{1F}');
            exact.push_str(pair);
            normal.push('\u{1F}');
            normal.push_str(&normalised(pair));
        }
        Self { exact: xxh3_64(exact.as_bytes()), normal: xxh3_64(normal.as_bytes()), blank }
    }
}

fn normalised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        if word.is_ascii() {
            out.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        } else {
            out.push_str(&word.to_lowercase());
        }
    }
    out
}

struct Rows {
    store: Store,
    hashes: Vec<RowHash>,
}

struct Reader<'a> {
    columns: &'a Columns,
    tokenizer: &'a Tokenizer,
    max_length: usize,
}

impl Reader<'_> {
    /// Reads files one after the other: a thread parses, this one and rayon's tokenise.
    fn read(&self, field: &'static str, files: &Files, base_dir: &Path, labels: &mut Labels) -> Result<Rows> {
        let entries = files.entries();
        if entries.is_empty() {
            return Err(Error::Config { field, message: "it names no file".into() });
        }
        let mut sources = Vec::new();
        for FileTable { path, weight, .. } in entries {
            if !(weight.is_finite() && weight > 0.0 && weight <= 1000.0) {
                return Err(Error::Config {
                    field,
                    message: format!("the weight {weight} of {path} is not in (0, 1000]"),
                });
            }
            sources.push((SourceFile::find(base_dir.join(path))?, weight));
        }
        let mut writer = TokenWriter::new();
        let mut hashes = Vec::new();
        let (mut ends, mut first, mut lost, mut lines, mut file_rows) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut column = labels.column();
        for (source, weight) in sources {
            let (path, unit) = (source.path.as_path(), source.unit());
            file_rows.push(FileRows { path: source.path.clone(), unit, weight, start: ends.len() });
            let (send, receive) = mpsc::sync_channel::<Vec<Record>>(2);
            std::thread::scope(|scope| {
                let parser = scope.spawn(|| parse(&source, self.columns, send));
                for chunk in receive {
                    let encoded: Vec<(Encoded, RowHash)> =
                        chunk.par_iter().map(|record| self.encode(record, path, unit)).collect::<Result<_>>()?;
                    for (record, (encoded, hash)) in chunk.into_iter().zip(encoded) {
                        let place = Place { path, unit, line: record.line };
                        labels.push(record.label, &mut column).map_err(|message| place.error(message))?;
                        let boundary = encoded.type_ids.iter().position(|&t| t != 0).unwrap_or(encoded.ids.len());
                        if encoded.type_ids[boundary..].iter().any(|&t| t != 1) {
                            return Err(place.error("the tokenizer gives segments other than 0…0 1…1, as XLNet's does"));
                        }
                        ends.push(writer.push(&encoded.ids)?);
                        first.push(boundary as u32);
                        lost.push((encoded.full_length - encoded.ids.len()) as u32);
                        lines.push(u32::try_from(record.line).unwrap_or(u32::MAX));
                        hashes.push(hash);
                    }
                    if ends.len() > u32::MAX as usize {
                        let message = "more than 4294967295 rows in all; train on fewer files".into();
                        return Err(Error::File { path: path.to_owned(), message });
                    }
                }
                parser.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
        }
        let tokens = writer.finish()?;
        let store = Store { tokens, ends, first, lost, lines, labels: column, files: file_rows };
        Ok(Rows { store, hashes })
    }

    fn encode(&self, record: &Record, path: &Path, unit: &'static str) -> Result<(Encoded, RowHash)> {
        let pair = record.pair.as_deref();
        let encoded = self
            .tokenizer
            .encode(&record.text, pair, self.max_length)
            .map_err(|e| Place { path, unit, line: record.line }.error(e.to_string()))?;
        Ok((encoded, RowHash::new(&record.text, pair)))
    }
}

/// Sends a file's records on in chunks. A receiver that went away is not an error here: it has its own.
fn parse(source: &SourceFile, columns: &Columns, send: mpsc::SyncSender<Vec<Record>>) -> Result<()> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    let mut gone = false;
    let result = source.read(columns, &mut |record| {
        bytes += record.text.len() + record.pair.as_ref().map_or(0, String::len);
        chunk.push(record);
        if chunk.len() == CHUNK.0 || bytes >= CHUNK.1 {
            bytes = 0;
            if send.send(std::mem::take(&mut chunk)).is_err() {
                gone = true;
                // Any error ends the reading; the receiver reports its own.
                return Err(Error::File { path: source.path.clone(), message: "reading was stopped".into() });
            }
        }
        Ok(())
    });
    if !gone {
        let _ = send.send(chunk);
    }
    result
}
