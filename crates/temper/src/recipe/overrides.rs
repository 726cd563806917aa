//! `--set table.key=value`: a key path, then a TOML value or a bare word.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{Source, split};
use super::validate::RIVALS;
use crate::diagnostic::Diagnostic;

/// One override, with its positions in the [`Source`].
#[derive(Debug)]
pub(super) struct Override<'t> {
    keys: Vec<(String, Range<usize>)>,
    value: Spanned<DeValue<'t>>,
}

impl<'t> Override<'t> {
    /// Reads the override that stands in `padded` behind `start` blanks.
    ///
    /// The blanks make the parser count positions as the source does, where the override begins at `start`.
    pub(super) fn parse(padded: &'t str, start: usize, source: &Source) -> Result<Self, Diagnostic> {
        let wrong = |message: &str| {
            let spot = source.spot(start..padded.len());
            Err(Diagnostic::new(message).at(spot, "write `--set table.key=value`"))
        };
        if padded.contains(['\n', '\r']) {
            return wrong("an override is one line");
        }
        let mut equals = padded.match_indices('=').map(|(position, _)| position);
        let Some((equals, keys)) = equals.find_map(|equals| Some((equals, key_path(&padded[..equals])?))) else {
            return wrong("an override is a key path, `=` and a value");
        };
        let written = padded[equals + 1..].trim();
        if written.is_empty() {
            return wrong("no value after `=`");
        }
        let end = padded.trim_end().len();
        let value = match DeTable::parse(padded) {
            Ok(table) => descend(table, keys.len()),
            Err(error) if written.starts_with(['[', '{', '"', '\'']) => {
                let spot = source.spot(error.span().unwrap_or(equals + 1..end));
                return Err(Diagnostic::new(format!("invalid TOML: {}", error.message())).at(spot, ""));
            }
            Err(_) => Some(Spanned::new(end - written.len()..end, DeValue::String(written.into()))),
        };
        match value {
            Some(value) => Ok(Self { keys, value }),
            None => wrong("an override sets one key"),
        }
    }

    /// Takes out of the file what contradicts this override: who sets `train.max_steps` no longer wants `epochs`.
    pub(super) fn drop_rivals(&self, table: &mut DeTable<'t>) {
        let path = self.keys.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(".");
        for (a, b) in RIVALS {
            let rival = if path == a {
                b
            } else if path == b {
                a
            } else {
                continue;
            };
            let (owner, key) = split(rival);
            if let Some(DeValue::Table(owner)) = table.get_mut(owner).map(Spanned::get_mut) {
                owner.remove(key);
            }
        }
    }

    /// Puts the value where its keys lead, in place of what is there.
    pub(super) fn apply(self, table: &mut DeTable<'t>) {
        let mut table = table;
        let depth = self.keys.len() - 1;
        for (key, span) in &self.keys[..depth] {
            // A map keeps the key that it has, and with it the place in the file: out with it first.
            if table.get(key.as_str()).is_some_and(|held| !held.get_ref().is_table()) {
                table.remove(key.as_str());
            }
            let key = Spanned::new(span.clone(), key.clone().into());
            let empty = || Spanned::new(span.clone(), DeValue::Table(DeTable::new()));
            let DeValue::Table(inner) = table.entry(key).or_insert_with(empty).get_mut() else { return };
            table = inner;
        }
        let (last, span) = &self.keys[depth];
        table.remove(last.as_str());
        table.insert(Spanned::new(span.clone(), last.clone().into()), self.value);
    }
}

/// The segments of `a.b."c d"` with their positions, at least one, or `None` if `text` is no TOML key.
fn key_path(text: &str) -> Option<Vec<(String, Range<usize>)>> {
    let text = format!("{text}=0");
    let mut table = DeTable::parse(&text).ok()?.into_inner();
    let mut keys = Vec::new();
    while let Some((key, value)) = table.into_iter().next() {
        keys.push((key.get_ref().to_string(), key.span()));
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(keys),
        }
    }
    None
}

/// The value `depth` keys down a table that holds one key on each level.
fn descend(table: Spanned<DeTable<'_>>, depth: usize) -> Option<Spanned<DeValue<'_>>> {
    let span = table.span();
    let mut value = Spanned::new(span, DeValue::Table(table.into_inner()));
    for _ in 0..depth {
        let DeValue::Table(table) = value.into_inner() else { return None };
        value = table.into_iter().next()?.1;
    }
    Some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::Deserialize;
    use toml::de::ValueDeserializer;

    use super::*;

    /// What `file` says after `overrides`, as TOML.
    fn set(file: &str, overrides: &[&str]) -> String {
        let mut source = Source::file("r.toml", file.into());
        let starts: Vec<usize> = overrides.iter().map(|text| source.add_override(text)).collect();
        let padded: Vec<String> =
            overrides.iter().zip(&starts).map(|(text, start)| " ".repeat(*start) + text).collect();
        let mut table = DeTable::parse(file).unwrap().into_inner();
        for (text, start) in padded.iter().zip(starts) {
            Override::parse(text, start, &source).unwrap().apply(&mut table);
        }
        source.index("", &table);
        // The places must lead back to what was written.
        for text in overrides.iter().filter(|text| !text.ends_with("=2")) {
            let (path, value) = text.split_once('=').unwrap();
            assert_eq!(source.written(path), Some(value.trim()), "{text}");
        }
        let value = ValueDeserializer::from(Spanned::new(0..0, DeValue::Table(table)));
        toml::Value::deserialize(value).unwrap().to_string()
    }

    #[test]
    fn values_are_toml_or_bare_words() {
        assert_eq!(set("[train]\nlr = 2e-5\n", &["train.lr=0.5"]), "{ train = { lr = 0.5 } }");
        assert_eq!(set("", &["data.label=sentiment"]), "{ data = { label = \"sentiment\" } }");
        assert_eq!(set("", &["data.train=a b=c.csv"]), "{ data = { train = \"a b=c.csv\" } }");
        assert_eq!(set("", &["a.b=[\"x\", 3]"]), "{ a = { b = [\"x\", 3] } }");
        assert_eq!(set("[a]\nb = {c = \"d\"}\n", &["a.b=x"]), "{ a = { b = \"x\" } }");
        assert_eq!(set("a = 1\n", &["a.b=true", "a.c=2", "a.c=3"]), "{ a = { b = true, c = 3 } }");
    }

    #[test]
    fn quoted_segments_may_hold_dots_and_equals_signs() {
        assert_eq!(
            key_path("a.\"b.c=d\"").unwrap().iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
            ["a", "b.c=d"]
        );
        assert!(key_path("a..b").is_none() && key_path("").is_none() && key_path("# a").is_none());
    }
}
