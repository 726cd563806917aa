//! JSON Lines: one object a line.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    source::{Columns, Place, Raw, Record, refuse_utf16},
};

/// Hands every record of a JSON Lines file to `sink`.
pub(crate) fn read(
    path: &Path,
    file: File,
    columns: &Columns,
    sink: &mut dyn FnMut(Record) -> Result<()>,
) -> Result<()> {
    lines(path, file, |place, line| sink(record(line, columns, place)?))
}

/// The record that a line is.
pub(crate) fn record(line: &str, columns: &Columns, place: &Place) -> Result<Record> {
    columns.record(place, cells(line, &columns.names(), place)?, || keys(line))
}

/// Hands every object to `sink`, all of its keys.
pub(crate) fn objects(
    path: &Path,
    file: File,
    mut sink: impl FnMut(&Place<'_>, Vec<(String, Value)>) -> Result<()>,
) -> Result<()> {
    lines(path, file, |place, line| {
        let keys = keys(line);
        let values = cells(line, &keys.iter().map(String::as_str).collect::<Vec<_>>(), place)?;
        sink(place, keys.into_iter().zip(values.into_iter().flatten()).collect())
    })
}

/// Hands every line to `sink`. Blank lines are skipped but counted.
fn lines(path: &Path, file: File, mut sink: impl FnMut(&Place<'_>, &str) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut buffer = Vec::new();
    let mut place = Place { path, unit: "line", line: 0 };
    loop {
        buffer.clear();
        let read = reader.read_until(b'\n', &mut buffer).map_err(|e| Error::file(path, e))?;
        if read == 0 {
            return Ok(());
        }
        place.line += 1;
        if place.line == 1 {
            refuse_utf16(path, &buffer)?;
        }
        let bytes = buffer.strip_prefix(b"\xEF\xBB\xBF").filter(|_| place.line == 1).unwrap_or(&buffer);
        let line = std::str::from_utf8(bytes)
            .map_err(|e| place.error(format!("byte {} of the line is not UTF-8", e.valid_up_to() + 1)))?
            .trim_end();
        if !line.trim_start().is_empty() {
            sink(&place, line)?;
        }
    }
}

/// The keys of a line.
fn keys(line: &str) -> Vec<String> {
    match serde_json::from_str(line) {
        Ok(Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    }
}

/// The wanted cells of one line.
fn cells(line: &str, names: &[&str], place: &Place) -> Result<Vec<Option<Value>>> {
    if line.trim_start().starts_with('[') {
        return Err(
            place.error("a JSON array begins here, one object a line is needed (jq -c '.[]' turns one into the other)")
        );
    }
    let mut json = serde_json::Deserializer::from_str(line);
    Row(names).deserialize(&mut json).and_then(|row| json.end().map(|()| row)).map_err(|e| {
        let hint = if line.trim_start() == "{" { "; each object must be on one line" } else { "" };
        let said = e.to_string();
        // The line is the file's, not the parser's.
        let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
        place.error(format!("bad JSON: {what} at column {}{hint}", e.column()))
    })
}

/// One object: the values of the wanted keys, in their order; the others are skipped without being built.
struct Row<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = Vec<Option<Value>>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = Vec<Option<Value>>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("an object such as {\"text\": \"…\", \"label\": \"…\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut row = vec![None; self.0.len()];
        while let Some(key) = map.next_key::<Cow<str>>()? {
            if !self.0.contains(&key.as_ref()) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: Value = map.next_value()?;
            for (cell, _) in row.iter_mut().zip(self.0).filter(|(_, name)| **name == key) {
                if cell.replace(value.clone()).is_some() {
                    return Err(A::Error::custom(format_args!("the key \"{key}\" comes twice")));
                }
            }
        }
        Ok(row)
    }
}

/// A JSON value as a label or text.
pub(crate) fn raw(value: Value) -> Raw {
    match value {
        Value::Null => Raw::Null,
        Value::Bool(b) => Raw::Bool(b),
        Value::Number(n) => match n.as_i64() {
            Some(i) => Raw::Integer(i),
            None => Raw::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(s) => Raw::Text(s),
        Value::Array(items) => Raw::List(items.into_iter().map(raw).collect()),
        Value::Object(_) => Raw::Object,
    }
}
