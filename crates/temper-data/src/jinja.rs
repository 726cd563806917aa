//! Jinja as Transformers sets it up for chat templates (`utils/chat_template_utils.py`), on minijinja.

use std::{
    fmt::{self, Formatter, Write},
    sync::{Arc, LazyLock},
};

use chrono::NaiveDateTime;
use minijinja::{
    Environment, Error, ErrorKind,
    value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, Value, ValueKind},
};
use minijinja_contrib::pycompat;
use regex::Regex;
use serde_json::{Map, Value as Json};

use crate::message::Message;

/// Put around what a `{% generation %}` block renders. Unicode keeps these code points free for use inside a program.
pub(crate) const GENERATION: [char; 2] = ['\u{FDD1}', '\u{FDD2}'];
/// Put into messages to find them again.
pub(crate) const MARK: char = '\u{FDD0}';

const GENERATION_FILTER: &str = "__generation";

static GENERATION_TAGS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());

/// Whether a template says itself what the assistant wrote.
pub(crate) fn has_generation(source: &str) -> bool {
    GENERATION_TAGS.as_ref().is_some_and(|tags| tags.is_match(source))
}

/// An environment with one template for each (name, source) pair; `strftime_now` knows no time but `now`.
pub(crate) fn environment(templates: &[(String, String)], now: NaiveDateTime) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(|state, value, method, args| {
        let own = value.as_str().and_then(|text| text_method(text, method, args));
        own.map_or_else(|| pycompat::unknown_method_callback(state, value, method, args), Ok)
    });
    env.set_formatter(|out, _, value| write!(out, "{}", python_str(value)).map_err(Error::from));
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| python_str(value));
    env.add_filter(GENERATION_FILTER, |text: &str| format!("{}{text}{}", GENERATION[0], GENERATION[1]));
    // A text is a sequence, and so is what is not there.
    env.add_test("sequence", |value: &Value| is_sequence(value.kind()));
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("iterable", |value: &Value| is_sequence(value.kind()) || value.kind() == ValueKind::Iterable);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        let mut out = String::new();
        write!(out, "{}", now.format(&format))
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("`{format}` is no format of a time")))?;
        Ok(out)
    });
    for (name, source) in templates {
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        // A filter block is what comes nearest to a tag of one's own.
        let source = match GENERATION_TAGS.as_ref() {
            Some(tags) => tags.replace_all(&source, |tag: &regex::Captures<'_>| match tag.get(2) {
                Some(_) => format!("{{%{}endfilter{}%}}", &tag[1], &tag[3]),
                None => format!("{{%{} filter {GENERATION_FILTER} {}%}}", &tag[1], &tag[3]),
            }),
            None => source.as_str().into(),
        };
        env.add_template_owned(name.clone(), source.into_owned())?;
    }
    Ok(env)
}

/// A value of JSON as templates see it: a list or an object says what Python's `str` would, wherever text is made of it. Those that
/// a template itself writes do so only where they are printed.
pub(crate) fn value(json: &Json) -> Value {
    match json {
        Json::Array(items) => Value::from_object(List(items.iter().map(value).collect())),
        Json::Object(map) => dict(map),
        plain => Value::from_serialize(plain),
    }
}

/// A conversation as templates see it.
pub(crate) fn messages(messages: &[Message]) -> Value {
    Value::from_object(List(messages.iter().map(|message| dict(message.parts())).collect()))
}

fn dict(map: &Map<String, Json>) -> Value {
    Value::from_object(Dict(map.iter().map(|(key, json)| (key.as_str().into(), value(json))).collect()))
}

#[derive(Debug)]
struct List(Vec<Value>);

#[derive(Debug)]
struct Dict(Vec<(Value, Value)>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&python_str(&Value::from_dyn_object(self.clone())))
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(key, _)| key.clone()).collect())
    }

    fn render(self: &Arc<Self>, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&python_str(&Value::from_dyn_object(self.clone())))
    }
}

/// Methods of Python's `str` that `pycompat` lacks; none where it is none of them, or its arguments are not theirs.
fn text_method(text: &str, method: &str, args: &[Value]) -> Option<Value> {
    let word = args.first().and_then(Value::as_str);
    let list = |parts: &[&str]| parts.iter().map(|part| Value::from(*part)).collect::<Value>();
    let three = |parts: Option<(&str, &str)>, rest| {
        parts.map_or_else(|| list(rest), |(before, after)| list(&[before, word.unwrap_or_default(), after]))
    };
    match (method, args) {
        ("removeprefix", [_]) => Some(Value::from(text.strip_prefix(word?).unwrap_or(text))),
        ("removesuffix", [_]) => Some(Value::from(text.strip_suffix(word?).unwrap_or(text))),
        ("partition", [_]) => Some(three(text.split_once(word?), &[text, "", ""])),
        ("rpartition", [_]) => Some(three(text.rsplit_once(word?), &["", "", text])),
        ("rsplit", []) => Some(list(&text.split_whitespace().collect::<Vec<_>>())),
        ("rsplit", [_]) => Some(list(&text.split(word?).collect::<Vec<_>>())),
        ("rsplit", [_, most]) => {
            let most = usize::try_from(most.clone()).ok()?;
            let mut parts: Vec<&str> = text.rsplitn(most + 1, word?).collect();
            parts.reverse();
            Some(list(&parts))
        }
        _ => None,
    }
}

fn is_sequence(kind: ValueKind) -> bool {
    matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
}

/// Python's `str(value)`.
fn python_str(value: &Value) -> String {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => python_repr(value, &mut out),
    }
    out
}

/// Python's `repr(value)`.
fn python_repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::String => repr_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                python_repr(&item, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                python_repr(&key, out);
                out.push_str(": ");
                python_repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        ValueKind::Number => number(value, out),
        _ => out.push_str(&value.to_string()),
    }
}

fn repr_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7F => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number as Python writes it: `1e-05`, `1e+16`, `2.0`.
fn number(value: &Value, out: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() && number.is_finite() => {
            let text = format!("{number:?}");
            match text.split_once('e') {
                Some((digits, exponent)) => {
                    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
                    out.push_str(&format!("{digits}e{sign}{exponent:0>2}"));
                }
                None => out.push_str(&text),
            }
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// Python's `json.dumps`: no HTML escapes, a space after `,` and `:`.
fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = args.get(at).cloned().or(kwargs.get::<Option<Value>>(name)?);
        Ok(given.filter(|value| !value.is_none()))
    };
    let is = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (ascii, indent) = (is(argument(0, "ensure_ascii")?), argument(1, "indent")?);
    let (separators, sorted) = (argument(2, "separators")?, is(argument(3, "sort_keys")?));
    kwargs.assert_all_used()?;
    let indent = match indent {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?),
        }),
        None => None,
    };
    let [comma, colon] = match separators {
        Some(pair) => [pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()],
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let mut json = Dump { out: String::new(), indent, comma, colon, ascii, sorted };
    json.write(value, 0)?;
    Ok(json.out)
}

struct Dump {
    out: String,
    indent: Option<String>,
    comma: String,
    colon: String,
    ascii: bool,
    sorted: bool,
}

impl Dump {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, &mut self.out),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.block(['[', ']'], depth, &items, |json, item| json.write(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.block(['{', '}'], depth, &keys, |json, key| {
                    json.text(&python_str(key));
                    json.out.push_str(&json.colon.clone());
                    json.write(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} cannot be written as JSON")));
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        [open, close]: [char; 2],
        depth: usize,
        items: &[Value],
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.comma.clone());
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&mut self, text: &str) {
        let quoted = Json::from(text).to_string();
        if !self.ascii {
            return self.out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
            } else {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| self.out.push_str(&format!("\\u{unit:04x}")));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What Python says of the same.
    #[test]
    fn methods_of_text_are_those_of_python() {
        for (expression, expected) in [
            ("'a.b.c'.rsplit('.', 1)", "['a.b', 'c']"),
            ("'a.b.c'.rsplit('.')", "['a', 'b', 'c']"),
            ("' a  b '.rsplit()", "['a', 'b']"),
            ("'a<t>b<t>c'.partition('<t>')", "['a', '<t>', 'b<t>c']"),
            ("'a<t>b<t>c'.rpartition('<t>')[-1]", "c"),
            ("'abc'.partition('x')", "['abc', '', '']"),
            ("'abc'.rpartition('x')", "['', '', 'abc']"),
            ("'<think>a'.removeprefix('<think>')", "a"),
            ("'a'.removesuffix('b')", "a"),
            ("'a b'.split(' ')", "['a', 'b']"),
            ("'is ' ~ said", "is {'a': ['b', None], 'c': {'d': True}}"),
            ("[said.c, said.a]|join(' ')", "{'d': True} ['b', None]"),
            ("'{}'.format(said.a)", "['b', None]"),
            ("said.a[-1] is none and said.a[1:] == [none] and said.a|length == 2 and 'b' in said.a", "True"),
            ("said is mapping and said.a is sequence and said.a is not mapping and 'c' in said", "True"),
            ("said.items()|list|length ~ said.get('x', 'y') ~ (said.keys()|list)[1]", "2yc"),
            ("said|tojson", "{\"a\": [\"b\", null], \"c\": {\"d\": true}}"),
            ("true is number and 1 is number and '1' is not number", "True"),
        ] {
            let template = ("t".to_owned(), format!("{{{{ {expression} }}}}"));
            let env = environment(&[template], NaiveDateTime::default()).unwrap();
            let said = value(&serde_json::json!({"a": ["b", null], "c": {"d": true}}));
            let found = env.get_template("t").unwrap().render(minijinja::context! { said }).unwrap();
            assert_eq!(found, expected, "{expression}");
        }
        let template = ("t".to_owned(), "{{ 'a'.rsplit(1) }}".to_owned());
        let env = environment(&[template], NaiveDateTime::default()).unwrap();
        assert!(env.get_template("t").unwrap().render(()).is_err());
    }
}
