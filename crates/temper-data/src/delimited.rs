//! CSV (RFC 4180: quotes, newlines in quotes) and TSV (no quoting, as the tab-separated benchmark sets are), with a header.

use std::{
    cell::Cell,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
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
    let mut records = Records::open(path, file, delimiter)?;
    let there: Vec<&str> = records.header.iter().map(String::as_str).collect();
    let at = columns.locate(path, &there)?;
    while let Some(record) = records.next()? {
        let cell = |i: Option<usize>| i.map(|i| Value::String(record.get(i).unwrap_or_default().to_owned()));
        let there = || records.header.clone();
        sink(columns.record(&records.place(), at.iter().copied().map(cell).collect(), there)?)?;
        records.bytes = record.into_byte_record();
    }
    Ok(())
}

/// The records of a file, and where the last one began.
pub(crate) struct Records {
    path: PathBuf,
    reader: csv::Reader<Watched<BufReader<File>>>,
    watch: Rc<Cell<Watch>>,
    /// The names of its columns.
    pub header: Vec<String>,
    bytes: csv::ByteRecord,
    line: u64,
}

impl Records {
    /// Reads the header.
    pub fn open(path: &Path, file: File, delimiter: u8) -> Result<Self> {
        let quoted = delimiter == b',';
        let watch = Rc::new(Cell::new(Watch { delimiter, quoted, ..Watch::default() }));
        let reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .quoting(quoted)
            .from_reader(Watched { inner: BufReader::with_capacity(1 << 18, file), watch: watch.clone() });
        let (header, bytes) = (Vec::new(), csv::ByteRecord::new());
        let mut records = Self { path: path.to_owned(), reader, watch, header, bytes, line: 1 };
        let header = records.record();
        refuse_utf16(path, &records.watch.get().start)?;
        records.header = header?.unwrap_or_default().iter().map(str::to_owned).collect();
        Ok(records)
    }

    /// The next record, with as many cells as there are columns.
    pub fn next(&mut self) -> Result<Option<csv::StringRecord>> {
        let record = self.record()?;
        let (cells, expected) = (record.as_ref().map(csv::StringRecord::len), self.header.len());
        match cells {
            Some(cells) if cells != expected => Err(self.place().error(format!(
                "the record has {cells} cells and the header {expected}; cells that hold the delimiter need quotes (.csv)"
            ))),
            _ => Ok(record),
        }
    }

    fn record(&mut self) -> Result<Option<csv::StringRecord>> {
        let mut bytes = std::mem::take(&mut self.bytes);
        let read = self.reader.read_byte_record(&mut bytes);
        let failed = |error: csv::Error| Error::file(&self.path, error);
        if !read.map_err(failed)? {
            return Ok(None);
        }
        // Where the record begins, by where it ends: the crate does not say how many blank lines it skipped, and takes the line
        // feed of a CRLF for part of the next record.
        let (watch, end) = (self.watch.get(), self.reader.position());
        let breaks = bytes.as_slice().iter().filter(|byte| **byte == b'\n').count() as u64;
        let (shift, open) = (u64::from(watch.crlf), !watch.crlf && watch.ended_open(end.byte()));
        self.line = end.line() + shift + u64::from(open) - 1 - breaks;
        if watch.state == State::Quoted && end.byte() == watch.count {
            // It has swallowed the rest of the file, and the csv crate sees no error in that.
            return Err(self.place().error("a quote opened in this record is never closed"));
        }
        let foreign = |error: csv::FromUtf8Error| {
            self.place().error(format!("cell {} is not UTF-8", error.utf8_error().field() + 1))
        };
        csv::StringRecord::from_byte_record(bytes).map(Some).map_err(foreign)
    }

    /// Where the last record began.
    pub fn place(&self) -> Place<'_> {
        Place { path: &self.path, unit: "line", line: self.line }
    }
}

/// What went by: the first bytes, how the first line ends, how much it was, the last byte, and where among quotes it ended.
#[derive(Clone, Copy, Default)]
struct Watch {
    delimiter: u8,
    quoted: bool,
    seen: bool,
    start: [u8; 2],
    crlf: bool,
    count: u64,
    last: u8,
    state: State,
}

/// Where a byte lies, as the csv crate sees it: a quote opens a cell at its beginning only.
#[derive(Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Begin,
    Plain,
    Quoted,
    /// After a quote within quotes, which ends them unless another follows.
    Closing,
}

impl Watch {
    /// Whether a record that ends at `byte` is the last one, and no line feed ends it: there is none, or a quote has it.
    fn ended_open(&self, byte: u64) -> bool {
        byte == self.count && (self.last != b'\n' || self.state == State::Quoted)
    }

    fn after(&self, state: State, byte: u8) -> State {
        match (state, byte) {
            (State::Begin | State::Closing, b'"') if self.quoted => State::Quoted,
            (State::Quoted, b'"') => State::Closing,
            (State::Quoted, _) => State::Quoted,
            (_, b'\n' | b'\r') => State::Begin,
            (_, byte) if byte == self.delimiter => State::Begin,
            _ => State::Plain,
        }
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
        let text = buffer.strip_prefix(b"\xEF\xBB\xBF").filter(|_| watch.count == 0).unwrap_or(buffer);
        watch.state = text.iter().fold(watch.state, |state, byte| watch.after(state, *byte));
        watch.count += n as u64;
        watch.last = buffer.last().copied().unwrap_or(watch.last);
        self.watch.set(watch);
        Ok(n)
    }
}
