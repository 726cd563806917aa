//! Texts without labels: what a trained model is asked about.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use crate::{
    error::{Error, Result},
    jsonl,
    source::{Body, Columns, Kind, LabelSource, Labelled, Place, Record, SourceFile},
};

/// A text, or a pair.
pub type Text = (String, Option<String>);

/// The columns of texts.
#[derive(Debug, Clone)]
pub struct Texts(Labelled);

impl Texts {
    /// Those of these names.
    pub fn new(text: String, pair: Option<String>) -> Self {
        Self(Labelled { text, pair, label: LabelSource::None })
    }

    /// Hands the rows of a file to `sink`, in order, until it says false: of a table or of JSON lines, as its extension says, their
    /// columns, else its [lines](Self::lines).
    ///
    /// # Errors
    /// When it cannot be read, or lacks a column. Rows before a bad one have been handed over.
    pub fn read(&self, path: &Path, sink: &mut dyn FnMut(Text) -> bool) -> Result<()> {
        if Kind::of(path).is_none() {
            let file = File::open(path).map_err(|e| Error::file(path, e))?;
            return self.lines(path, BufReader::new(file), sink);
        }
        let (columns, mut stopped) = (Columns::Labelled(self.0.clone()), false);
        let read = SourceFile::find(path.to_owned())?.read(&columns, &mut |record| {
            stopped = !texts(record).is_none_or(&mut *sink);
            // Any error ends the reading.
            if stopped { Err(Error::file(path, "reading was stopped")) } else { Ok(()) }
        });
        if stopped { Ok(()) } else { read }
    }

    /// Hands every line to `sink` until it says false: an object of JSON with the columns, or the text itself, unless there must be
    /// two. `path` is what errors call it.
    ///
    /// # Errors
    /// When a line is none of them.
    pub fn lines(&self, path: &Path, from: impl BufRead, sink: &mut dyn FnMut(Text) -> bool) -> Result<()> {
        let columns = Columns::Labelled(self.0.clone());
        for (number, line) in (1..).zip(from.lines()) {
            let place = Place { path, unit: "line", line: number };
            let line = line.map_err(|e| place.error(e.to_string()))?;
            let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
            let inside = line.strip_prefix('{').map(str::trim_start);
            let text = match &self.0.pair {
                _ if inside.is_some_and(|inside| inside.starts_with(['"', '}'])) => {
                    texts(jsonl::record(line, &columns, &place)?)
                }
                None => Some((line.to_owned(), None)),
                Some(pair) => {
                    let message = format!("pairs of texts are JSON objects with `{}` and `{pair}`", self.0.text);
                    return Err(place.error(message));
                }
            };
            if !text.is_none_or(&mut *sink) {
                break;
            }
        }
        Ok(())
    }
}

/// What a record of texts says.
fn texts(record: Record) -> Option<Text> {
    match record.body {
        Body::Texts(text, pair) => Some((text, pair)),
        Body::Cells(..) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What is handed over, at most `most`, and the error after it.
    fn read(name: &str, content: &str, pair: Option<&str>, most: usize) -> (Vec<String>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut found = Vec::new();
        let result = Texts::new("a".into(), pair.map(Into::into)).read(&path, &mut |(text, pair)| {
            found.push(pair.map_or(text.clone(), |pair| format!("{text}+{pair}")));
            found.len() < most
        });
        (found, result.map_or_else(|error| error.to_string(), |()| String::new()))
    }

    #[test]
    fn a_table_is_read_by_its_columns() {
        for (name, content) in [
            ("r.csv", "b,a\n\"1,\n2\",x\n,y\n"),
            ("r.TSV", "b\ta\n1\tx\n2\ty\n"),
            ("r.jsonl", "{\"a\": \"x\", \"n\": 1}\n\n{\"a\": \"y\"}\n"),
        ] {
            assert_eq!(read(name, content, None, 9), (vec!["x".into(), "y".into()], String::new()), "{name}");
            assert_eq!(read(name, content, None, 1), (vec!["x".into()], String::new()), "{name}");
        }
        assert_eq!(read("r.csv", "b,a\n1,x\n", Some("b"), 9).0, ["x+1"]);
        let (_, error) = read("r.csv", "b,A\n1,x\n", None, 9);
        assert!(error.contains("column `a`") && error.contains("did you mean \"A\"?"), "{error}");
    }

    #[test]
    fn any_other_file_is_lines() {
        let lines = "\u{feff}{\"a\": \"x\"}\n a, b \n\n{ not JSON\n";
        assert_eq!(read("r.txt", lines, None, 9).0, ["x", " a, b ", "", "{ not JSON"]);
        for (line, wanted) in [
            ("{\"a\": \"x\", \"a\": \"y\"}", "line 2: bad JSON: the key \"a\" comes twice"),
            ("{}", "column `a`"),
            ("{\"a\": 1}", "column `a` holds the number 1, text is needed"),
            ("{\"a\": \"x\"} y", "bad JSON: trailing characters"),
        ] {
            let (found, error) = read("r", &format!("first\n{line}\n"), None, 9);
            assert!(found == ["first"] && error.contains(wanted), "{line}: {found:?} {error}");
        }
        let (_, error) = read("r.txt", "x\n", Some("b"), 9);
        assert!(error.contains("line 1: pairs of texts are JSON objects with `a` and `b`"), "{error}");
    }
}
