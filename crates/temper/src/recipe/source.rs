//! What the user wrote, letter for letter: the recipe file and the `--set` overrides, and where each key lies in them.
//!
//! Positions are bytes in one imaginary text: the file, then each override. So one number says both which of them and where.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::Spot;

/// What the user wrote. Turns a key path such as `data.label` into a [`Spot`] to point at.
#[derive(Debug, Clone, Default)]
pub struct Source {
    texts: Vec<Text>,
    places: BTreeMap<String, Place>,
}

/// The file or one override.
#[derive(Debug, Clone)]
struct Text {
    origin: String,
    text: String,
    /// Position of its first byte.
    start: usize,
    is_file: bool,
}

/// Positions of a key and of its value.
#[derive(Debug, Clone)]
struct Place {
    key: Range<usize>,
    value: Range<usize>,
}

impl Source {
    /// A source that is the file `origin` with the contents `text`.
    pub(super) fn file(origin: &str, text: String) -> Self {
        let file = Text { origin: origin.into(), text, start: 0, is_file: true };
        Self { texts: vec![file], places: BTreeMap::new() }
    }

    /// Adds the override `text` and returns the position of its first byte.
    pub(super) fn add_override(&mut self, text: &str) -> usize {
        let start = self.end();
        self.texts.push(Text { origin: format!("--set {text}"), text: text.into(), start, is_file: false });
        start
    }

    /// Position behind everything, one apart from the last byte, so that the end of one text is not the start of another.
    fn end(&self) -> usize {
        self.texts.last().map_or(0, |last| last.start + last.text.len() + 1)
    }

    /// Learns where the keys of `table` lie, below the path `prefix`.
    pub(super) fn index(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join_key(prefix, key.get_ref());
            // A table is where its name stands: in its header, or before its `=`.
            let place = if value.get_ref().is_table() { key.span() } else { value.span() };
            self.places.insert(path.clone(), Place { key: key.span(), value: place });
            self.index_value(&path, value);
        }
    }

    fn index_value(&mut self, path: &str, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(table) => self.index(path, table),
            DeValue::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    let path = join(path, &i.to_string());
                    self.places.insert(path.clone(), Place { key: item.span(), value: item.span() });
                    self.index_value(&path, item);
                }
            }
            _ => {}
        }
    }

    /// The origin of the recipe: its path as the user gave it.
    pub fn name(&self) -> &str {
        self.texts.first().map_or("", |text| &text.origin)
    }

    /// The recipe file, and below it each override as a comment: what a run keeps to say what it was asked.
    pub fn text(&self) -> String {
        let mut written = String::new();
        for text in &self.texts {
            match text.is_file {
                true => written.push_str(&text.text),
                false => written.push_str(&format!("\n# {}", text.origin)),
            }
        }
        written.truncate(written.trim_end().len());
        written.push('\n');
        written
    }

    /// Whether the user wrote the key `path`, such as `train.lr`.
    pub fn wrote(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Where to point for `path`, such as `data.label` or, for the second item of a list, `adapter.targets.1`: its value;
    /// the header of its table when the key was not written; the end of the file when the table was not written either.
    pub fn at(&self, path: &str) -> Spot {
        match self.places.get(path) {
            Some(place) => self.spot(place.value.clone()),
            None => self.parent(path),
        }
    }

    /// Where to point for the name of the key `path`; falls back as [`Source::at`] does.
    pub fn key(&self, path: &str) -> Spot {
        match self.places.get(path) {
            Some(place) => self.spot(place.key.clone()),
            None => self.parent(path),
        }
    }

    /// What stands in the source as the value of `path`, such as `1e-4`; for a table, its name.
    pub fn written(&self, path: &str) -> Option<&str> {
        let place = self.places.get(path)?;
        let text = self.text_of(place.value.start)?;
        text.text.get(place.value.start - text.start..place.value.end.checked_sub(text.start)?)
    }

    fn parent(&self, path: &str) -> Spot {
        match split(path) {
            ("", _) => self.end_of_file(),
            (table, _) => self.key(table),
        }
    }

    /// A number that grows in the order in which keys were written; what was not written comes where its table stands,
    /// or last.
    pub(super) fn order(&self, path: &str) -> usize {
        match (self.places.get(path), split(path)) {
            (Some(place), _) => place.key.start,
            (None, ("", _)) => usize::MAX,
            (None, (table, _)) => self.order(table),
        }
    }

    fn text_of(&self, position: usize) -> Option<&Text> {
        self.texts.iter().rfind(|text| text.start <= position)
    }

    /// Behind the last letter of the file.
    pub(super) fn end_of_file(&self) -> Spot {
        let length = self.texts.first().map_or(0, |file| file.text.trim_end().len());
        self.spot(length..length)
    }

    /// The spot of a range of positions; a range over several lines is cut at the end of its first.
    pub(super) fn spot(&self, range: Range<usize>) -> Spot {
        let Some(source) = self.text_of(range.start) else {
            return Spot { origin: String::new(), line: None, text: String::new(), column: 0, width: 1 };
        };
        let text = &source.text;
        let start = floor(text, range.start - source.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let line = text[line_start..line_end].trim_end_matches('\r');
        let end = floor(text, range.end.saturating_sub(source.start))
            .clamp(start, line_start + line.len().max(start - line_start));
        Spot {
            origin: source.origin.clone(),
            line: source.is_file.then(|| text[..start].matches('\n').count() + 1),
            text: line.into(),
            column: text[line_start..start].chars().count(),
            width: text[start..end].chars().count().max(1),
        }
    }
}

/// `path` with one more segment.
pub(super) fn join(path: &str, segment: &str) -> String {
    if path.is_empty() { segment.into() } else { format!("{path}.{segment}") }
}

/// `path` with one more key, in quotes where it could be mistaken for several keys or for the number of an item.
pub(super) fn join_key(path: &str, key: &str) -> String {
    match key.contains(['.', '"']) || key.chars().all(|c| c.is_ascii_digit()) {
        true => join(path, &format!("\"{key}\"")),
        false => join(path, key),
    }
}

/// `path` without its last segment, and that segment.
pub(super) fn split(path: &str) -> (&str, &str) {
    let dot = match path.strip_suffix('"') {
        Some(quoted) => quoted.rfind(".\""),
        None => path.rfind('.'),
    };
    dot.map_or(("", path), |dot| (&path[..dot], &path[dot + 1..]))
}

/// The nearest position at or before `position` that lies between two characters of `text`.
fn floor(text: &str, position: usize) -> usize {
    let mut position = position.min(text.len());
    while !text.is_char_boundary(position) {
        position -= 1;
    }
    position
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        let mut source = Source::file("r.toml", text.into());
        let table = DeTable::parse(text).unwrap();
        source.index("", table.get_ref());
        source
    }

    fn underlined(spot: &Spot) -> String {
        spot.text.chars().skip(spot.column).take(spot.width).collect()
    }

    #[test]
    fn points_at_value_then_header_then_end() {
        let source = source("[train]\nlr = 1e-4 # rate\n\n[adapter]\ntargets = [\"a\", \"é\"]\n");
        assert_eq!(underlined(&source.at("train.lr")), "1e-4");
        assert_eq!(underlined(&source.key("train.lr")), "lr");
        assert_eq!(source.written("train.lr"), Some("1e-4"));
        assert_eq!(underlined(&source.at("adapter.targets.1")), "\"é\"");
        assert_eq!(
            (source.at("adapter.rank").line, underlined(&source.at("adapter.rank"))),
            (Some(4), "adapter".into())
        );
        assert_eq!(underlined(&source.at("adapter")), "adapter");
        let end = source.at("data.train");
        assert_eq!((end.line, end.column, end.width), (Some(5), 20, 1));
        assert!(source.wrote("train.lr") && !source.wrote("train.epochs"));
    }

    #[test]
    fn the_text_ends_with_the_overrides() {
        let mut source = source("[run]\nname = \"a\"\n");
        assert_eq!(source.text(), "[run]\nname = \"a\"\n");
        source.add_override("train.lr=1e-4");
        source.add_override("run.name=b");
        assert_eq!(source.text(), "[run]\nname = \"a\"\n\n# --set train.lr=1e-4\n# --set run.name=b\n");
    }

    #[test]
    fn dotted_keys_and_inline_tables_are_places_too() {
        let source = source("train.lr = 1\nadapter = { rank = 4 }\n");
        assert_eq!(underlined(&source.at("train.lr")), "1");
        assert_eq!(underlined(&source.at("adapter.rank")), "4");
        assert_eq!(underlined(&source.at("adapter.alpha")), "adapter");
        assert_eq!(underlined(&source.at("train.epochs")), "train");
    }

    #[test]
    fn keys_with_dots_are_one_segment() {
        let source = source("[adapter.rank_pattern]\n\"layer.0.query\" = 4\n\"7\" = 2\n");
        assert_eq!(underlined(&source.at("adapter.rank_pattern.\"layer.0.query\"")), "4");
        assert_eq!(underlined(&source.at("adapter.rank_pattern.\"7\"")), "2");
        assert_eq!(split("a.b.\"c.d\""), ("a.b", "\"c.d\""));
        assert_eq!((split("a.b"), split("a")), (("a", "b"), ("", "a")));
        assert!(source.order("adapter.rank_pattern.\"7\"") > source.order("adapter.rank"));
        assert_eq!(source.order("data"), usize::MAX);
    }

    #[test]
    fn lines_over_several_lines_and_carriage_returns_are_cut() {
        let source = source("a = [\r\n  1,\r\n]\r\n");
        let spot = source.at("a");
        assert_eq!((spot.text.as_str(), spot.column, spot.width), ("a = [", 4, 1));
    }
}
