//! Holds what the user wrote against the JSON Schema of the recipe.
//!
//! serde stops at its first error and says little about where; this walk knows every key, type and name that the tables'
//! structs allow (their schema is derived from them), so it reports all mistakes at once, each with its place and the
//! nearest valid name. The schema keywords that it reads are those that `schemars` writes for plain structs and enums.

use std::ops::{Bound, RangeBounds as _};

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{Source, join, join_key, split};
use super::{hints, name, table_name};
use crate::diagnostic::{Diagnostic, Diagnostics};

/// Numbers beyond their bounds, in the order of their places in the source. A recipe that has nothing worse can be read.
pub(super) type OutOfRange = Vec<(usize, Diagnostic)>;

/// Holds `table` against `schema`.
///
/// # Errors
/// Everything that the schema does not allow, if it cannot be read: unknown keys first, then what is missing or wrong.
pub(super) fn check(schema: &Value, table: &DeTable<'_>, source: &Source) -> Result<OutOfRange, Diagnostics> {
    let mut walk = Walk { root: schema, source, found: Vec::new() };
    walk.table(schema, table, "");
    // Tables arrive in the order of the alphabet; the reader goes through the file.
    walk.found.sort_by_key(|(kind, place, _)| (*kind != Kind::Unknown, *place));
    let readable = walk.found.iter().all(|(kind, ..)| *kind == Kind::OutOfRange);
    let found = walk.found.into_iter();
    match readable {
        true => Ok(found.map(|(_, place, diagnostic)| (place, diagnostic)).collect()),
        false => Err(Diagnostics(found.map(|(.., diagnostic)| diagnostic).collect())),
    }
}

/// Kinds of mistakes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unknown,
    Wrong,
    OutOfRange,
}

struct Walk<'a> {
    root: &'a Value,
    source: &'a Source,
    found: Vec<(Kind, usize, Diagnostic)>,
}

impl<'a> Walk<'a> {
    fn push(&mut self, kind: Kind, path: &str, diagnostic: Diagnostic) {
        self.found.push((kind, self.source.order(path), diagnostic));
    }

    /// The schema itself, behind its `$ref`.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let target = schema["$ref"].as_str().and_then(|path| self.root.pointer(path.strip_prefix('#')?));
        target.map_or(schema, |target| self.resolve(target))
    }

    /// The schemas of which a value has to meet one; `null` (an absent `Option`) is left out, TOML has none.
    fn alternatives(&self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolve(schema);
        let choices = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array());
        match choices {
            Some(choices) if !schema["properties"].is_object() => {
                choices.iter().flat_map(|choice| self.alternatives(choice)).collect()
            }
            _ if schema["type"] == "null" => Vec::new(),
            _ => vec![schema],
        }
    }

    fn value(&mut self, schema: &'a Value, value: &Spanned<DeValue<'_>>, path: &str) {
        let alternatives = self.alternatives(schema);
        let fitting: Vec<&Value> =
            alternatives.iter().copied().filter(|choice| fits(choice, value.get_ref())).collect();
        match (fitting.as_slice(), value.get_ref()) {
            ([], _) => self.wrong_type(&alternatives, value.get_ref(), path),
            (_, DeValue::String(text)) => self.string(&alternatives, &fitting, text, path),
            ([choice], DeValue::Table(table)) => self.table(choice, table, path),
            (choices, DeValue::Table(table)) => self.tagged(choices, table, path),
            ([choice, ..], DeValue::Array(items)) => self.array(choice, items, path),
            ([choice, ..], number @ (DeValue::Integer(_) | DeValue::Float(_))) => self.number(choice, number, path),
            _ => {}
        }
    }

    fn table(&mut self, schema: &'a Value, table: &DeTable<'_>, path: &str) {
        let properties = schema["properties"].as_object();
        let known: Vec<&str> = properties.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let mut meant = Vec::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let path = join_key(path, name);
            if let Some(property) = schema["properties"].get(name) {
                self.value(property, value, &path);
            } else if schema["additionalProperties"].is_object() {
                self.value(&schema["additionalProperties"], value, &path);
            } else if schema["additionalProperties"] != true {
                let absent = known.iter().copied().filter(|name| !table.contains_key(*name));
                let nearest = hints::nearest(name, absent).or_else(|| hints::nearest(name, known.iter().copied()));
                meant.extend(nearest);
                self.unknown_key(&path, value.get_ref(), nearest, &known);
            }
        }
        let written = |name: &&str| table.contains_key(*name) || meant.contains(name);
        for name in strings(&schema["required"]).filter(|name| !written(name)) {
            self.missing(path, name);
        }
        // `oneOf` beside `properties` says that exactly one of some keys is written.
        let one_of: Vec<&str> =
            schema["oneOf"].as_array().into_iter().flatten().flat_map(|one| strings(&one["required"])).collect();
        match one_of.iter().filter(|name| written(name)).collect::<Vec<_>>()[..] {
            [] if !one_of.is_empty() => self.missing(path, one_of[0]),
            [a, b, ..] => {
                let (a, b) = (join(path, a), join(path, b));
                self.push(Kind::Wrong, &b, contradiction(self.source, &a, &b));
            }
            _ => {}
        }
    }

    /// A table of which one key, the same in all `choices`, says which of them it is.
    fn tagged(&mut self, choices: &[&'a Value], table: &DeTable<'_>, path: &str) {
        let tag_of = |choice: &'a Value| {
            let properties = choice["properties"].as_object()?;
            properties.iter().find_map(|(key, schema)| Some((key.as_str(), schema["const"].as_str()?)))
        };
        let tags: Vec<(&str, &str)> = choices.iter().filter_map(|choice| tag_of(choice)).collect();
        let Some((key, _)) = tags.first().copied() else { return };
        let Some(written) = table.get(key) else {
            let near = table.iter().find(|(name, _)| hints::nearest(name.get_ref(), [key]).is_some());
            match near {
                Some((name, value)) => {
                    self.unknown_key(&join_key(path, name.get_ref()), value.get_ref(), Some(key), &[])
                }
                None => self.missing(path, key),
            }
            return;
        };
        let path_of_tag = join(path, key);
        let DeValue::String(name) = written.get_ref() else {
            let expected = hints::list(tags.iter().map(|(_, tag)| *tag), "or");
            return self.must_be(&path_of_tag, &expected, written.get_ref());
        };
        match choices.iter().find(|choice| tag_of(choice).is_some_and(|(_, tag)| tag == name)) {
            Some(choice) => self.table(choice, table, path),
            None => self.unknown_value(&path_of_tag, name, tags.iter().map(|(_, tag)| *tag).collect()),
        }
    }

    fn string(&mut self, alternatives: &[&'a Value], fitting: &[&'a Value], text: &str, path: &str) {
        let free = fitting.iter().any(|choice| names(choice).is_empty());
        let names: Vec<&str> = fitting.iter().flat_map(|choice| names(choice)).collect();
        if free || names.contains(&text) {
            return;
        }
        let number = |choice: &&Value| is_type(choice, "integer") || is_type(choice, "number");
        if text.parse::<f64>().is_ok() && alternatives.iter().any(number) {
            return self.wrong_type(alternatives, &DeValue::String(text.into()), path);
        }
        self.unknown_value(path, text, names);
    }

    fn array(&mut self, schema: &'a Value, items: &toml::de::DeArray<'_>, path: &str) {
        for (i, item) in items.iter().enumerate() {
            self.value(&schema["items"], item, &join(path, &i.to_string()));
        }
        let bound = |key: &str| schema[key].as_u64().map(|bound| bound as usize);
        let (least, most) = (bound("minItems").unwrap_or(0), bound("maxItems").unwrap_or(usize::MAX));
        if (least..=most).contains(&items.len()) {
            return;
        }
        let expected = match (least, most) {
            (least, most) if least == most => format!("a list of {least} items"),
            (least, usize::MAX) => format!("a list of at least {least} items"),
            (_, most) => format!("a list of at most {most} items"),
        };
        let message = format!("{} must be {expected}, found {}", name(path), items.len());
        self.push(Kind::Wrong, path, Diagnostic::new(message).at(self.source.at(path), ""));
    }

    /// A number is finite, within the bounds of its schema, and no larger than its type.
    fn number(&mut self, schema: &'a Value, value: &DeValue<'_>, path: &str) {
        let whole = match value {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX),
            _ => 0,
        };
        let number = match value {
            DeValue::Float(number) => number.as_str().parse().unwrap_or(f64::NAN),
            _ => whole as f64,
        };
        let largest = match schema["format"].as_str() {
            Some("uint32") => i128::from(u32::MAX),
            Some("uint" | "uint64") => i128::from(u64::MAX),
            _ => i128::MAX,
        };
        // What is computed with them is f32.
        let single = number as f32;
        let expected = match range(schema) {
            _ if !number.is_finite() => "finite".into(),
            _ if !single.is_finite() => "at most 3.4e38 in size".into(),
            _ if single == 0.0 && number != 0.0 => "at least 1e-45 in size".into(),
            range if !range.contains(&number) => in_words(range),
            _ if whole > largest => format!("at most {largest}"),
            _ => return,
        };
        let fits = !is_type(schema, "integer") || (0..=largest).contains(&whole);
        let found = self.source.written(path).unwrap_or_default();
        let message = format!("{} must be {expected}, found {found}", name(path));
        let kind = if fits { Kind::OutOfRange } else { Kind::Wrong };
        self.push(kind, path, Diagnostic::new(message).at(self.source.at(path), ""));
    }

    fn unknown_key(&mut self, path: &str, value: &DeValue<'_>, nearest: Option<&str>, known: &[&str]) {
        let (table, name) = split(path);
        let message = match (table, value) {
            ("", DeValue::Table(_)) => format!("unknown table [{name}]"),
            ("", _) => format!("unknown key `{name}` outside any table"),
            _ => format!("unknown key `{name}` in {}", table_name(table)),
        };
        let label = match (nearest, self.owner(name)) {
            (Some(nearest), _) if table.is_empty() && value.is_table() => format!("did you mean [{nearest}]?"),
            _ if let Some(hint) = hints::foreign_key(name) => hint.to_owned(),
            (_, Some(owner)) if owner != table && !value.is_table() => format!("`{name}` is a key of [{owner}]"),
            (Some(nearest), _) => format!("did you mean `{nearest}`?"),
            _ => String::new(),
        };
        let lists = label.is_empty() && !known.is_empty();
        let mut diagnostic = Diagnostic::new(message).at(self.source.key(path), label);
        if lists && table.is_empty() {
            diagnostic = diagnostic.help(format!("the tables are [{}]", known.join("], [")));
        } else if lists {
            let keys = hints::list(known.iter().copied(), "and");
            diagnostic = diagnostic.help(format!("{} has {keys}", table_name(table)));
        }
        self.push(Kind::Unknown, path, diagnostic);
    }

    /// The table that has a key `name`.
    fn owner(&self, name: &str) -> Option<&'a str> {
        let tables = self.root["properties"].as_object()?;
        let has = |schema| self.alternatives(schema).iter().any(|choice| choice["properties"].get(name).is_some());
        tables.iter().find(|(_, schema)| has(schema)).map(|(table, _)| table.as_str())
    }

    fn unknown_value(&mut self, path: &str, text: &str, names: Vec<&str>) {
        let message = format!("unknown value `{text}` for {}", name(path));
        let label = match (hints::foreign_value(path, text), hints::nearest(text, names.iter().copied())) {
            (Some(hint), _) => hint.to_owned(),
            (None, Some(nearest)) => format!("did you mean `{nearest}`?"),
            (None, None) => format!("write {}", hints::list(names, "or")),
        };
        self.push(Kind::Wrong, path, Diagnostic::new(message).at(self.source.at(path), label));
    }

    fn missing(&mut self, table: &str, name: &str) {
        let path = join(table, name);
        let message = match table {
            "" => format!("missing table [{name}]"),
            _ => format!("missing key `{name}` in {}", table_name(table)),
        };
        let spot = if table.is_empty() { self.source.end_of_file() } else { self.source.key(table) };
        let example = hints::example(&path).map_or_else(|| format!("{name} = …"), str::to_owned);
        let diagnostic = match table {
            "" => Diagnostic::new(message).at(spot, "").help(format!("write\n{example}")),
            _ => Diagnostic::new(message).at(spot, format!("write `{example}`")),
        };
        self.push(Kind::Wrong, &path, diagnostic);
    }

    fn wrong_type(&mut self, alternatives: &[&'a Value], value: &DeValue<'_>, path: &str) {
        let mut expected: Vec<String> = alternatives.iter().map(|choice| self.describe(choice)).collect();
        expected.dedup();
        let expected = match expected.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => expected.concat(),
        };
        self.must_be(path, &expected, value);
    }

    fn must_be(&mut self, path: &str, expected: &str, value: &DeValue<'_>) {
        let found = match value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) if expected.contains("a string") => "a number",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) if expected.contains("integer") => "a number with a fraction",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(true) => "`true`",
            DeValue::Boolean(false) => "`false`",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let written = self.source.written(path).unwrap_or_default();
        let label = match value {
            DeValue::String(text) if is_unquoted(text, expected) => "remove the quotes".into(),
            DeValue::String(_) if expected == "a list of strings" => format!("write `[{written}]`"),
            DeValue::Integer(_) | DeValue::Datetime(_) if expected.contains("a string") => {
                hints::as_string(path, written)
            }
            DeValue::Float(number) if expected.contains("integer") => match number.as_str().parse::<f64>() {
                Ok(number) if number.fract() == 0.0 && number.abs() < 1e15 => format!("write `{number}`"),
                _ => String::new(),
            },
            _ => String::new(),
        };
        let message = format!("{} must be {expected}, found {found}", name(path));
        self.push(Kind::Wrong, path, Diagnostic::new(message).at(self.source.at(path), label));
    }

    /// What a schema allows, in words.
    fn describe(&self, schema: &'a Value) -> String {
        let names = names(schema);
        if !names.is_empty() {
            return hints::list(names, "or");
        }
        match schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or_default() {
            "string" => "a string".into(),
            "integer" => "an integer".into(),
            "number" => "a number".into(),
            "boolean" => "`true` or `false`".into(),
            "array" => match self.alternatives(&schema["items"]).first() {
                Some(item) if is_type(item, "string") => "a list of strings".into(),
                Some(item) if is_type(item, "number") || is_type(item, "integer") => "a list of numbers".into(),
                _ => "a list".into(),
            },
            _ => "a table".into(),
        }
    }
}

/// Whether `text` would be what is `expected` without its quotes.
fn is_unquoted(text: &str, expected: &str) -> bool {
    expected.contains("number") && text.parse::<f64>().is_ok()
        || expected.contains("integer") && text.parse::<i64>().is_ok()
        || expected.contains("`true`") && text.parse::<bool>().is_ok()
}

/// "`a` and `b` contradict each other", pointing at both.
pub(super) fn contradiction(source: &Source, a: &str, b: &str) -> Diagnostic {
    let ((table, first), (_, second)) = (split(a), split(b));
    Diagnostic::new(format!("`{first}` and `{second}` in [{table}] contradict each other"))
        .at(source.key(b), "write one of the two")
        .at(source.key(a), "")
}

/// Whether the TOML type of `value` is one that `schema` allows.
fn fits(schema: &Value, value: &DeValue<'_>) -> bool {
    match value {
        DeValue::String(_) => is_type(schema, "string") || !names(schema).is_empty(),
        DeValue::Integer(_) => is_type(schema, "integer") || is_type(schema, "number"),
        DeValue::Float(_) => is_type(schema, "number"),
        DeValue::Boolean(_) => is_type(schema, "boolean"),
        DeValue::Array(_) => is_type(schema, "array"),
        DeValue::Table(_) => is_type(schema, "object"),
        DeValue::Datetime(_) => false,
    }
}

/// The numbers that `schema` allows.
fn range(schema: &Value) -> (Bound<f64>, Bound<f64>) {
    let bound = |included: &str, excluded: &str| match (schema[included].as_f64(), schema[excluded].as_f64()) {
        (Some(bound), _) => Bound::Included(bound),
        (None, Some(bound)) => Bound::Excluded(bound),
        (None, None) => Bound::Unbounded,
    };
    (bound("minimum", "exclusiveMinimum"), bound("maximum", "exclusiveMaximum"))
}

fn in_words(range: (Bound<f64>, Bound<f64>)) -> String {
    use Bound::{Excluded, Included, Unbounded};
    match range {
        (Included(from), Unbounded) => format!("at least {from}"),
        (Excluded(from), Unbounded) => format!("above {from}"),
        (Unbounded, Included(to)) => format!("at most {to}"),
        (Unbounded, Excluded(to)) => format!("below {to}"),
        (Included(from), Included(to)) => format!("in [{from}, {to}]"),
        (Included(from), Excluded(to)) => format!("in [{from}, {to})"),
        (Excluded(from), Included(to)) => format!("in ({from}, {to}]"),
        (Excluded(from), Excluded(to)) => format!("in ({from}, {to})"),
        (Unbounded, Unbounded) => "a number".into(),
    }
}

fn is_type(schema: &Value, name: &str) -> bool {
    schema["type"] == name || strings(&schema["type"]).any(|one| one == name)
}

/// The strings to which `schema` is limited; none when it is not.
fn names(schema: &Value) -> Vec<&str> {
    schema["const"].as_str().into_iter().chain(strings(&schema["enum"])).collect()
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}
