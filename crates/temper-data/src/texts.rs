//! Rows without labels: what a trained model is asked about.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    sync::Arc,
};

use serde_json::Value;

use crate::{
    config::DataConfig,
    error::{Error, Result},
    jsonl,
    layout::Layout,
    message::Message,
    source::{Body, Columns, Kind, LabelSource, Labelled, Place, Record, SourceFile, is_compressed},
};

/// A text, or a pair.
pub type Text = (String, Option<String>);

/// The columns of texts.
#[derive(Debug, Clone)]
pub struct Texts {
    columns: Columns,
    named: Option<String>,
}

/// What a language model goes on from.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// A conversation, and the tools that the assistant may call.
    Conversation(Vec<Message>, Option<Value>),
}

/// The columns of prompts.
#[derive(Debug, Clone)]
pub struct Prompts {
    layout: Arc<Layout>,
    named: Option<String>,
}

/// A row of a table, or a line that is none.
enum Row {
    Record(Body),
    Line(String),
}

impl Texts {
    /// Those of these names.
    pub fn new(text: String, pair: Option<String>) -> Self {
        Self { columns: Columns::Labelled(Labelled { text, pair, label: LabelSource::None }), named: None }
    }

    /// The same where the column of the text was `named`, if it was: a line that has no columns is then an error.
    #[must_use]
    pub fn of_column(self, named: Option<String>) -> Self {
        Self { named, ..self }
    }

    /// Hands the rows of a file to `sink`, in order, until it says false: of a table or of JSON lines, as its extension says, their
    /// columns, else its [lines](Self::lines).
    ///
    /// # Errors
    /// When it cannot be read, or lacks a column. Rows before a bad one have been handed over.
    pub fn read(&self, path: &Path, sink: &mut dyn FnMut(Text) -> bool) -> Result<()> {
        read(&self.columns, path, &mut |at, row| Ok(sink(self.text(at, row)?)))
    }

    /// Hands every line to `sink` until it says false: an object of JSON with the columns, or the text itself, unless there must be
    /// two. `path` is what errors call it.
    ///
    /// # Errors
    /// When a line is none of them.
    pub fn lines(&self, path: &Path, from: impl BufRead, sink: &mut dyn FnMut(Text) -> bool) -> Result<()> {
        lines(&self.columns, path, from, &mut |at, row| Ok(sink(self.text(at, row)?)))
    }

    fn text(&self, at: &Place, row: Row) -> Result<Text> {
        match (row, self.columns.names().as_slice()) {
            (Row::Line(_), _) if let Some(named) = &self.named => Err(no_column(at, named)),
            (Row::Record(Body::Texts(text, pair)), _) => Ok((text, pair)),
            (Row::Line(text), [_]) => Ok((text, None)),
            (_, names) => Err(at.error(format!("pairs of texts are JSON objects with `{}`", names.join("` and `")))),
        }
    }
}

impl Prompts {
    /// Those of the formats of training, without what a model is to say: no `output`, no `completion`, no answer at the end of
    /// `messages`; where they are there they are left out.
    pub fn new(config: &DataConfig) -> Self {
        Self { layout: Arc::new(Layout::new(config).asking()), named: None }
    }

    /// As [`Texts::of_column`].
    #[must_use]
    pub fn of_column(self, named: Option<String>) -> Self {
        Self { named, ..self }
    }

    /// As [`Texts::read`].
    ///
    /// # Errors
    /// When it cannot be read, or a row has nothing to go on from. Rows before a bad one have been handed over.
    pub fn read(&self, path: &Path, sink: &mut dyn FnMut(Prompt) -> bool) -> Result<()> {
        read(&Columns::Causal(self.layout.clone()), path, &mut |at, row| Ok(sink(self.prompt(at, row)?)))
    }

    /// As [`Texts::lines`].
    ///
    /// # Errors
    /// When an object has nothing to go on from.
    pub fn lines(&self, path: &Path, from: impl BufRead, sink: &mut dyn FnMut(Prompt) -> bool) -> Result<()> {
        lines(&Columns::Causal(self.layout.clone()), path, from, &mut |at, row| Ok(sink(self.prompt(at, row)?)))
    }

    fn prompt(&self, at: &Place, row: Row) -> Result<Prompt> {
        match row {
            Row::Line(_) if let Some(named) = &self.named => Err(no_column(at, named)),
            Row::Line(text) | Row::Record(Body::Texts(text, _)) => Ok(Prompt::Text(text)),
            Row::Record(Body::Cells(format, cells)) => {
                self.layout.prompt(format, cells).map_err(|message| at.error(message))
            }
        }
    }
}

fn no_column(at: &Place, name: &str) -> Error {
    at.error(format!("a line of text has no column `{name}`"))
}

/// Hands rows on until one says false.
type Each<'a> = &'a mut dyn FnMut(&Place, Row) -> Result<bool>;

fn read(columns: &Columns, path: &Path, each: Each) -> Result<()> {
    if Kind::of(path).is_none() && !is_compressed(path) {
        let file = File::open(path).map_err(|e| Error::file(path, e))?;
        return lines(columns, path, BufReader::new(file), each);
    }
    let (source, mut stopped) = (SourceFile::find(path.to_owned())?, false);
    let read = source.read(columns, &mut |Record { line, body, .. }| {
        stopped = !each(&Place { path, unit: source.unit(), line }, Row::Record(body))?;
        // Any error ends the reading.
        if stopped { Err(Error::file(path, "reading was stopped")) } else { Ok(()) }
    });
    if stopped { Ok(()) } else { read }
}

fn lines(columns: &Columns, path: &Path, from: impl BufRead, each: Each) -> Result<()> {
    for (number, line) in (1..).zip(from.lines()) {
        let place = Place { path, unit: "line", line: number };
        let line = line.map_err(|e| place.error(e.to_string()))?;
        let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
        let object = line.strip_prefix('{').is_some_and(|inside| inside.trim_start().starts_with(['"', '}']));
        let row = match object {
            true => Row::Record(jsonl::record(line, columns, &place)?.body),
            false => Row::Line(line.to_owned()),
        };
        if !each(&place, row)? {
            break;
        }
    }
    Ok(())
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
        assert!(read("r.csv.gz", "\u{1f}", None, 9).1.contains("it is compressed (.gz)"));
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
    fn a_line_of_text_has_no_column() {
        let texts = |named: Option<&str>| Texts::new("a".into(), None).of_column(named.map(str::to_owned));
        let lines = |named, lines: &str| {
            texts(named).lines(Path::new("stdin"), lines.as_bytes(), &mut |_| true).map_err(|error| error.to_string())
        };
        assert!(lines(None, "plain").is_ok() && lines(Some("a"), "{\"a\": \"x\"}").is_ok());
        assert!(lines(Some("a"), "plain").unwrap_err().contains("a line of text has no column `a`"));
        let prompts = Prompts::new(&DataConfig::default()).of_column(Some("a".into()));
        assert!(prompts.lines(Path::new("stdin"), "plain".as_bytes(), &mut |_| true).is_err());
    }

    /// What is handed over, and the error after it.
    fn asked(name: &str, content: &str) -> (Vec<Prompt>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut found = Vec::new();
        let result = Prompts::new(&DataConfig::default()).read(&path, &mut |prompt| {
            found.push(prompt);
            true
        });
        (found, result.map_or_else(|error| error.to_string(), |()| String::new()))
    }

    #[test]
    fn prompts_are_rows_without_their_answers() {
        let text = |text: &str| Prompt::Text(text.into());
        let user = |said: &str| Prompt::Conversation(vec![Message::new("user", said)], None);
        let system =
            |said: &str| Prompt::Conversation(vec![Message::new("system", "brief"), Message::new("user", said)], None);
        for (row, expected) in [
            (r#"{"text": "a b"}"#, text("a b")),
            (r#"{"prompt": "a", "completion": "b"}"#, text("a")),
            (r#"{"prompt": "a", "completion": "b", "choices": ["b", "c"]}"#, text("a")),
            (r#"{"prompt": "a"}"#, text("a")),
            (r#"{"prompt": [{"role": "user", "content": "a"}]}"#, user("a")),
            (
                r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
                user("a"),
            ),
            (r#"{"messages": [{"role": "user", "content": "a"}]}"#, user("a")),
            (r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#, user("a")),
            (r#"{"conversations": [{"from": "human", "value": "a"}], "system": "brief"}"#, system("a")),
            (r#"{"instruction": "a", "input": "b", "system": "brief"}"#, system("a\n\nb")),
            (r#"{"instruction": "a", "output": "b"}"#, user("a")),
        ] {
            assert_eq!(asked("r.jsonl", row), (vec![expected.clone()], String::new()), "{row}");
            assert_eq!(asked("r.txt", &format!("{row}\nplain")).0, [expected, text("plain")], "{row}");
        }
        assert_eq!(asked("r.csv", "id,prompt\n1,a\n2,\"b,\"\n").0, [text("a"), text("b,")]);
        for (row, wanted) in [
            (r#"{"messages": [{"role": "assistant", "content": "b"}]}"#, "line 1: the conversation is an answer alone"),
            (
                r#"{"completion": "b"}"#,
                "a row needs messages (chat), or conversations (sharegpt), or instruction (instruction), or prompt (prompt-completion), or text (text)",
            ),
            (r#"{"prompt": "a", "text": "b"}"#, "more than one format"),
        ] {
            let (found, error) = asked("r.jsonl", row);
            assert!(found.is_empty() && error.contains(wanted), "{row}: {found:?} {error}");
        }
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
