//! Files to records, streamed: a line or a group of rows is held, not a file.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    config::Format,
    delimited,
    error::{Error, Result, listed, nearest},
    jsonl,
    layout::{Cells, Layout},
    table,
};

/// One record of a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// Line (text files) or row (columnar files), from 1.
    pub line: u64,
    pub body: Body,
    /// Label as the file has it; for causal language models none.
    pub label: Raw,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    /// A text, or a pair.
    Texts(String, Option<String>),
    /// The columns of a [`Layout`], in the format that they make.
    Cells(Format, Cells),
}

impl Body {
    /// About how many bytes of text there are.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Texts(text, pair) => text.len() + pair.as_ref().map_or(0, String::len),
            Self::Cells(_, cells) => cells.iter().flatten().map(bytes).sum(),
        }
    }
}

fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(bytes).sum(),
        Value::Object(map) => map.values().map(bytes).sum(),
        _ => 8,
    }
}

/// A label as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    /// Not asked for.
    None,
    Null,
    Text(String),
    Integer(i64),
    /// A class by its number among the names that the file gives them.
    Class(i64, Arc<[String]>),
    Float(f64),
    Bool(bool),
    List(Vec<Raw>),
    /// Neither a label nor a text.
    Object,
}

/// The columns to read.
#[derive(Debug, Clone)]
pub(crate) enum Columns {
    /// Every one of them.
    Labelled(Labelled),
    /// Those that a row has.
    Causal(Arc<Layout>),
}

/// The columns of texts with labels.
#[derive(Debug, Clone)]
pub(crate) struct Labelled {
    pub text: String,
    pub pair: Option<String>,
    pub label: LabelSource,
}

/// The label columns to read.
#[derive(Debug, Clone)]
pub(crate) enum LabelSource {
    None,
    One(String),
    /// Each a 0/1 column; they come as one `Raw::List`.
    Many(Vec<String>),
}

impl Columns {
    /// The columns to read.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Labelled(columns) => columns.names(),
            Self::Causal(layout) => layout.names(),
        }
    }

    /// Where each wanted column is among those of a file; a causal language model needs not all of them.
    pub(crate) fn locate(&self, path: &Path, there: &[&str]) -> Result<Vec<Option<usize>>> {
        self.names()
            .into_iter()
            .map(|wanted| {
                let mut found = there.iter().enumerate().filter(|(_, name)| **name == wanted).map(|(i, _)| i);
                match (found.next(), found.next()) {
                    (Some(at), None) => Ok(Some(at)),
                    (Some(_), Some(_)) => Err(twice(path, wanted)),
                    (None, _) if matches!(self, Self::Causal(_)) => Ok(None),
                    (None, _) => {
                        let message = absent(wanted, there.iter().copied());
                        Err(Error::Column { path: path.to_owned(), place: None, column: wanted.into(), message })
                    }
                }
            })
            .collect()
    }

    /// A record from cells in the order of [`Columns::names`]; `there` are all columns of the row.
    pub(crate) fn record(
        &self,
        at: &Place,
        cells: Vec<Option<Value>>,
        there: impl FnOnce() -> Vec<String>,
    ) -> Result<Record> {
        let column = |(column, message)| Error::Column {
            path: at.path.to_owned(),
            place: Some((at.unit, at.line)),
            column,
            message,
        };
        match self {
            Self::Labelled(columns) => match cells.iter().position(Option::is_none) {
                None => columns.record(at, cells.into_iter().flatten().map(jsonl::raw).collect()),
                Some(i) => {
                    let (there, wanted) = (there(), columns.names()[i]);
                    Err(column((wanted.into(), absent(wanted, there.iter().map(String::as_str)))))
                }
            },
            Self::Causal(layout) => {
                let cells: Cells = cells.into_iter().map(|cell| cell.filter(|value| !value.is_null())).collect();
                layout.note(&cells);
                let format = layout.format(&cells, there).map_err(column)?;
                Ok(Record { line: at.line, body: Body::Cells(format, cells), label: Raw::None })
            }
        }
    }
}

impl Labelled {
    /// Every column, each once: text, pair, labels.
    fn names(&self) -> Vec<&str> {
        let labels: &[String] = match &self.label {
            LabelSource::None => &[],
            LabelSource::One(name) => std::slice::from_ref(name),
            LabelSource::Many(names) => names,
        };
        std::iter::once(&self.text).chain(&self.pair).chain(labels).map(String::as_str).collect()
    }

    /// A record from cells in the order of [`Columns::names`].
    pub(crate) fn record(&self, at: &Place, cells: Vec<Raw>) -> Result<Record> {
        let mut cells = cells.into_iter();
        let mut text = |column: &str| match cells.next() {
            Some(Raw::Text(text)) => Ok(text),
            None | Some(Raw::Null | Raw::None) => Err(at.error(format!("column `{column}` is null, text is needed"))),
            Some(other) => Err(at.error(format!("column `{column}` holds {}, text is needed", other.kind()))),
        };
        let first = text(&self.text)?;
        let pair = self.pair.as_deref().map(&mut text).transpose()?;
        let label = match self.label {
            LabelSource::None => Raw::None,
            LabelSource::One(_) => cells.next().unwrap_or(Raw::Null),
            LabelSource::Many(_) => Raw::List(cells.collect()),
        };
        Ok(Record { line: at.line, body: Body::Texts(first, pair), label })
    }
}

impl Raw {
    /// What it is, for a message.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::None | Self::Null => "null".into(),
            Self::Text(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
            Self::Integer(i) | Self::Class(i, _) => format!("the number {i}"),
            Self::Float(f) => format!("the number {f}"),
            Self::Bool(b) => format!("{b}"),
            Self::List(_) => "a list".into(),
            Self::Object => "an object".into(),
        }
    }
}

/// A place in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub path: &'a Path,
    pub unit: &'static str,
    pub line: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        write!(formatter, "{name} {} {}", self.unit, self.line)
    }
}

impl Place<'_> {
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error::Row { path: self.path.to_owned(), unit: self.unit, line: self.line, message: message.into() }
    }
}

/// A file and what kind it is.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    pub path: PathBuf,
    pub kind: Kind,
}

/// What kind a file is, by its extension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Jsonl,
    Csv,
    Tsv,
    Parquet,
    Arrow,
}

/// Extensions and their kinds.
const KINDS: [(&str, Kind); 9] = [
    ("jsonl", Kind::Jsonl),
    ("ndjson", Kind::Jsonl),
    ("json", Kind::Jsonl),
    ("csv", Kind::Csv),
    ("tsv", Kind::Tsv),
    ("parquet", Kind::Parquet),
    ("arrow", Kind::Arrow),
    ("feather", Kind::Arrow),
    ("ipc", Kind::Arrow),
];

impl Kind {
    /// That of a file of this name.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let extension = extension(path);
        KINDS.iter().find(|(known, _)| *known == extension).map(|(_, kind)| *kind)
    }
}

/// Whether a name says that what is in the file is compressed.
pub(crate) fn is_compressed(path: &Path) -> bool {
    ["gz", "zst", "zip", "bz2", "xz"].contains(&extension(path).as_str())
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

impl SourceFile {
    /// Finds the file and its kind.
    pub(crate) fn find(path: PathBuf) -> Result<Self> {
        let error = |message: String| Err(Error::file(&path, message));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                return error("it is a directory; name the files in it, such as [\"a.jsonl\", \"b.jsonl\"]".into());
            }
            Ok(metadata) if metadata.len() == 0 => return error("the file is empty".into()),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let Ok(entries) = std::fs::read_dir(parent) else {
                    return error(format!("there is no directory {}", parent.display()));
                };
                let mut names: Vec<String> =
                    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
                names.sort();
                let hint = nearest(&name, names.iter().map(String::as_str));
                return error(format!("there is no such file{hint}"));
            }
            Err(e) => return error(e.to_string()),
        }
        let extension = extension(&path);
        match Kind::of(&path) {
            Some(kind) => Ok(Self { kind, path }),
            None if is_compressed(&path) => error(format!("it is compressed (.{extension}); decompress it first")),
            None if extension.is_empty() => error(format!(
                "its name says no kind; the extensions are {}",
                listed(KINDS.iter().map(|(known, _)| *known))
            )),
            None => error(format!(
                "its extension \".{extension}\" is not one of {}",
                listed(KINDS.iter().map(|(known, _)| *known))
            )),
        }
    }

    /// How its records are counted in messages.
    pub(crate) fn unit(&self) -> &'static str {
        if matches!(self.kind, Kind::Parquet | Kind::Arrow) { "row" } else { "line" }
    }

    /// Hands every record to `sink`, in order, until it returns an error.
    pub(crate) fn read(&self, columns: &Columns, sink: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        let path = &self.path;
        let file = std::fs::File::open(path).map_err(|e| Error::file(path, e))?;
        match self.kind {
            Kind::Jsonl => jsonl::read(path, file, columns, sink),
            Kind::Csv => delimited::read(path, file, b',', columns, sink),
            Kind::Tsv => delimited::read(path, file, b'\t', columns, sink),
            Kind::Parquet => table::read_parquet(path, file, columns, sink),
            Kind::Arrow => table::read_arrow(path, file, columns, sink),
        }
    }
}

/// Two columns of a file have one name.
pub(crate) fn twice(path: &Path, name: &str) -> Error {
    Error::file(path, format!("it has two columns called `{name}`; rename one"))
}

/// Which columns there are instead of the wanted one.
pub(crate) fn absent<'a>(wanted: &str, there: impl Iterator<Item = &'a str> + Clone) -> String {
    format!("the columns are {}{}", listed(there.clone()), nearest(wanted, there))
}

/// Says so when a text file is UTF-16, which Windows programs write.
pub(crate) fn refuse_utf16(path: &Path, start: &[u8]) -> Result<()> {
    if start.starts_with(&[0xFF, 0xFE]) || start.starts_with(&[0xFE, 0xFF]) {
        return Err(Error::file(path, "it is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"));
    }
    Ok(())
}
