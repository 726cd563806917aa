//! Writes a JSON value as block YAML that YAML 1.1 and 1.2 readers take for the same value.
//!
//! The Hub, PyYAML and js-yaml disagree on what an unquoted `no`, `1e-5` or `2026-01-01` is. So a string stays plain
//! only when it is made of letters and a few safe signs and is no reserved word; every other string is double-quoted,
//! and every float has a point.

use std::fmt::Write as _;

use serde_json::Value;

/// Words that some YAML reader takes for a boolean or for null.
const RESERVED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];

/// `value` (an object) as the lines of a YAML document, without `---` around them.
pub(crate) fn document(value: &Value) -> String {
    let mut out = String::new();
    block(&mut out, value, 0);
    out
}

/// Writes a non-empty object or array at `indent`, each entry on its own line.
fn block(out: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, item) in map {
                let _ = write!(out, "{pad}{}:", string(key));
                match nested(item) {
                    true => {
                        out.push('\n');
                        block(out, item, indent + 2);
                    }
                    false => {
                        let _ = writeln!(out, " {}", scalar(item));
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                if nested(item) {
                    // The entry's first line follows its dash.
                    let mut inner = String::new();
                    block(&mut inner, item, indent + 2);
                    let _ = write!(out, "{pad}- {}", inner.trim_start());
                } else {
                    let _ = writeln!(out, "{pad}- {}", scalar(item));
                }
            }
        }
        scalar_value => {
            let _ = writeln!(out, "{pad}{}", scalar(scalar_value));
        }
    }
}

/// Whether the value takes lines of its own.
fn nested(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        Value::Number(number) => float_with_point(&number.to_string()),
        Value::Object(_) => "{}".into(),
        Value::Array(_) => "[]".into(),
        other => other.to_string(),
    }
}

/// YAML 1.1 reads `1e-7` as a string and `1.0e-7` as a number.
fn float_with_point(number: &str) -> String {
    match number.split_once('e') {
        Some((digits, exponent)) => {
            let point = if digits.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
            format!("{digits}{point}e{sign}{exponent}")
        }
        None => number.to_string(),
    }
}

fn string(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./ ".contains(c))
        && !text.ends_with(' ')
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_string() } else { quoted(text) }
}

/// `text` in double quotes, on one line.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // Control characters, the line breaks of Unicode and what YAML calls not printable.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_that_yaml_would_convert_are_quoted() {
        for word in
            ["no", "Yes", "ON", "null", "1.0", "2026-01-01", "~", "", "1e5", ".inf", "a: b", "a #b", "- a", "---", "a "]
        {
            assert!(string(word).starts_with('"'), "{word:?} was written plain");
        }
        for word in ["en", "text-classification", "org/name.v2", "not null", "north"] {
            assert_eq!(string(word), word);
        }
    }

    #[test]
    fn a_string_never_breaks_its_line() {
        let text = quoted("a\n---\r\nb\u{85}c\u{2028}d\u{7f}\"\\");
        assert_eq!(text, "\"a\\n---\\u000d\\nb\\u0085c\\u2028d\\u007f\\\"\\\\\"");
    }

    #[test]
    fn floats_keep_a_point() {
        assert_eq!(scalar(&json!(1e-7)), "1.0e-7");
        assert_eq!(scalar(&json!(1.5e300)), "1.5e+300");
        assert_eq!(scalar(&json!(1.0)), "1.0");
        assert_eq!(scalar(&json!(3)), "3");
    }

    #[test]
    fn nested_blocks() {
        let value = json!({"a": [{"b": {"c": 1}, "d": ["x", "no"]}, {}], "e": []});
        assert_eq!(document(&value), "a:\n  - b:\n      c: 1\n    d:\n      - x\n      - \"no\"\n  - {}\ne: []\n");
    }
}
