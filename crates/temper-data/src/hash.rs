//! What a row says, as numbers.

use xxhash_rust::xxh3::xxh3_64;

/// What a row says, as numbers: exactly, and but for case and white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowHash {
    pub exact: u64,
    pub normal: u64,
    /// It has no text but white space.
    pub blank: bool,
}

impl RowHash {
    pub(crate) fn new(text: &str, pair: Option<&str>) -> Self {
        let mut exact = text.to_owned();
        let mut normal = normalised(text);
        let blank = normal.is_empty() && pair.is_none_or(|pair| pair.trim().is_empty());
        if let Some(pair) = pair {
            // U+001F, the unit separator, is in no sane text.
            exact.push('\u{1F}');
            exact.push_str(pair);
            normal.push('\u{1F}');
            normal.push_str(&normalised(pair));
        }
        Self { exact: xxh3_64(exact.as_bytes()), normal: xxh3_64(normal.as_bytes()), blank }
    }
}

fn normalised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        if word.is_ascii() {
            out.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        } else {
            out.push_str(&word.to_lowercase());
        }
    }
    out
}
