//! CSV (RFC 4180: quotes, newlines in quotes) and TSV (no quoting, as the tab-separated benchmark sets are), with a header.

use std::{
    cell::Cell,
    fs::File,
    io::{BufReader, Read},
    path::Path,
    rc::Rc,
};

use serde_json::Value;

use crate::{
    error::{Error, Result},
    source::{Columns, Place, Record, refuse_utf16},
};

/// Hands every record of a CSV or TSV file to `sink`.
pub(crate) fn read(
    path: &Path,
    file: File,
    delimiter: u8,
    columns: &Columns,
    sink: &mut dyn FnMut(Record) -> Result<()>,
) -> Result<()> {
    let quoted = delimiter == b',';
    let quotes = Rc::new(Cell::new(Watch::default()));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(quoted)
        .from_reader(Watched { inner: BufReader::with_capacity(1 << 18, file), watch: quotes.clone() });
    let header = reader.headers().cloned();
    refuse_utf16(path, &quotes.get().start)?;
    // The csv crate takes the line feed of a CRLF for part of the next record.
    let shift = u64::from(quotes.get().crlf);
    let header = header.map_err(|e| failure(path, e, 0))?;
    let there: Vec<&str> = header.iter().collect();
    let at = columns.locate(path, &there)?;
    let mut record = csv::StringRecord::new();
    let (mut last, mut several_lines) = (1, false);
    while reader.read_record(&mut record).map_err(|e| failure(path, e, shift))? {
        // Where the record begins, by where it ends: the crate does not say how many blank lines it skipped.
        let (end, breaks) = (reader.position(), record.as_slice().matches('\n').count() as u64);
        let open = shift == 0 && quotes.get().ended_open(end.byte());
        last = end.line() + shift + u64::from(open) - 1 - breaks;
        several_lines = breaks > 0;
        let cell = |i: Option<usize>| i.map(|i| Value::String(record.get(i).unwrap_or_default().to_owned()));
        let there = || header.iter().map(str::to_owned).collect();
        sink(columns.record(
            &Place { path, unit: "line", line: last },
            at.iter().copied().map(cell).collect(),
            there,
        )?)?;
    }
    // A quote that is never closed swallows the rest of the file into one cell without any error.
    if quoted && quotes.get().odd && several_lines {
        let place = Place { path, unit: "line", line: last };
        return Err(place.error("a quote opened in this record is never closed"));
    }
    Ok(())
}

fn failure(path: &Path, error: csv::Error, shift: u64) -> Error {
    let place = |position: &Option<csv::Position>| Place {
        path,
        unit: "line",
        line: position.as_ref().map_or(1, |position| position.line() + shift),
    };
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => place(pos).error(format!(
            "the record has {len} cells and the header {expected_len}; cells that hold the delimiter need quotes (.csv)"
        )),
        csv::ErrorKind::Utf8 { pos, err } => place(pos).error(format!("cell {} is not UTF-8", err.field() + 1)),
        _ => Error::File { path: path.to_owned(), message: error.to_string() },
    }
}

/// What went by: the first bytes, how the first line ends, whether the count of quotes is odd, how much it was, and the last byte.
#[derive(Clone, Copy, Default)]
struct Watch {
    seen: bool,
    start: [u8; 2],
    crlf: bool,
    odd: bool,
    count: u64,
    last: u8,
}

impl Watch {
    /// Whether a record that ends at `byte` is the last one, and no line feed ends it: there is none, or a quote has it.
    fn ended_open(&self, byte: u64) -> bool {
        byte == self.count && (self.last != b'\n' || self.odd)
    }
}

struct Watched<R> {
    inner: R,
    watch: Rc<Cell<Watch>>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let buffer = &buffer[..n];
        let mut watch = self.watch.get();
        if !watch.seen && n >= 2 {
            watch.seen = true;
            watch.start = [buffer[0], buffer[1]];
            watch.crlf = buffer.split(|b| *b == b'\n').next().is_some_and(|line| line.ends_with(b"\r"));
        }
        watch.count += n as u64;
        watch.last = buffer.last().copied().unwrap_or(watch.last);
        watch.odd ^= buffer.iter().filter(|b| **b == b'"').count() % 2 == 1;
        self.watch.set(watch);
        Ok(n)
    }
}
