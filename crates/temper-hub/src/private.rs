//! Takes out of a text what must not leave the machine: directories and Hub tokens.

use serde_json::Value;

/// Every text in `value` with every absolute path of two or more components cut to `…/<last component>`, and every Hub token
/// replaced.
pub(crate) fn scrub_values(value: &mut Value) {
    match value {
        Value::String(text) => *text = scrub(text),
        Value::Array(values) => values.iter_mut().for_each(scrub_values),
        Value::Object(values) => values.values_mut().for_each(scrub_values),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `text` with every absolute path of two or more components cut to `…/<last component>`, and every Hub token replaced.
pub(crate) fn scrub(text: &str) -> String {
    replaced(text, true)
}

/// `text` with every Hub token replaced: for text in which quotes and backslashes mean something.
pub(crate) fn redact(text: &str) -> String {
    replaced(text, false)
}

fn replaced(text: &str, paths: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut before: Option<char> = None;
    while let Some(c) = rest.chars().next() {
        let boundary = paths && before.is_none_or(|c| c.is_whitespace() || "\"'`([{<=,;|>".contains(c));
        let taken = if boundary { path_length(rest, before) } else { None };
        let (written, length) = match (taken, token_length(rest)) {
            (Some(length), _) => (shortened(&rest[..length]), length),
            (None, Some(length)) => ("hf_[redacted]".into(), length),
            (None, None) => (c.to_string(), c.len_utf8()),
        };
        out.push_str(&written);
        before = rest[..length].chars().next_back();
        rest = &rest[length..];
    }
    out
}

/// Bytes of the absolute path that `text` starts with. After a quote the path runs up to that quote, blanks included.
fn path_length(text: &str, before: Option<char>) -> Option<usize> {
    let bytes = text.as_bytes();
    let root = match bytes {
        [b'/', next, ..] if next.is_ascii_alphanumeric() || b"._".contains(next) => 1,
        [b'~', b'/', ..] => 2,
        [drive, b':', b'\\' | b'/', ..] if drive.is_ascii_alphabetic() => 3,
        [b'\\', b'\\', next, ..] if next.is_ascii_alphanumeric() => 2,
        _ => return None,
    };
    let line = text.find('\n').unwrap_or(text.len());
    let closing = before.filter(|c| "\"'`".contains(*c)).and_then(|quote| text[..line].find(quote));
    let end = closing.unwrap_or_else(|| {
        let stop = |c: char| c.is_whitespace() || "\"'`)]}>,;|".contains(c);
        text.find(stop).unwrap_or(text.len())
    });
    (end > root && text[root..end].trim_end_matches(['/', '\\']).contains(['/', '\\'])).then_some(end)
}

fn shortened(path: &str) -> String {
    let path = path.trim_end_matches(['/', '\\']);
    format!("…/{}", path.rsplit(['/', '\\']).next().unwrap_or_default())
}

/// Bytes of the Hub token that `text` starts with: `hf_` and at least 20 letters or digits.
fn token_length(text: &str) -> Option<usize> {
    let tail = text.strip_prefix("hf_")?;
    let length = tail.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(tail.len());
    (length >= 20).then_some(3 + length)
}

#[cfg(test)]
mod tests {
    use super::scrub;

    #[test]
    fn directories_are_cut() {
        assert_eq!(scrub("base = \"/home/John Doe/minilm\" # x"), "base = \"…/minilm\" # x");
        assert_eq!(scrub("see /srv/data/train.jsonl, and"), "see …/train.jsonl, and");
        assert_eq!(scrub("~/models/a/ and C:\\Users\\me\\b and D:/x/b"), "…/a and …/b and …/b");
        assert_eq!(scrub("\\\\server\\share\\b"), "…/b");
        assert_eq!(scrub("'/a/b' unfinished \"/a/b\nnext"), "'…/b' unfinished \"…/b\nnext");
    }

    #[test]
    fn what_only_looks_like_a_path_stays() {
        let text = "https://huggingface.co/a/b, and/or, 1/3, org/name, ../up/here, // note, a / b, /tmp, é/è/ê, </td>";
        assert_eq!(scrub(text), text);
    }

    #[test]
    fn tokens_are_redacted() {
        assert_eq!(scrub("token=hf_abcdefghijABCDEFGHIJ0, x"), "token=hf_[redacted], x");
        assert_eq!(scrub("hf_short, hf_hub_download_of_the_file"), "hf_short, hf_hub_download_of_the_file");
    }
}
