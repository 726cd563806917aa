//! Every request that came, for tests to read.

use std::sync::Mutex;

use axum::http::request::Parts;

use crate::http::{Side, pairs};
use crate::hub::lock;

/// One request.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Which server it came to.
    pub side: Side,
    /// `GET`, `POST`, …
    pub method: String,
    /// The path as it was sent, still percent-encoded.
    pub path: String,
    /// The decoded query.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body that arrived.
    pub body_bytes: u64,
    /// Status of the answer; `None` while there is none, or if the connection was cut instead.
    pub status: Option<u16>,
}

impl Logged {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a token was sent.
    pub fn authorized(&self) -> bool {
        self.header("authorization").is_some()
    }
}

/// The requests, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Log(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// The number of the first entry: those before it were cleared.
    first: usize,
    entries: Vec<Logged>,
}

impl Log {
    /// Notes a request, and returns its number.
    pub(crate) fn arrive(&self, side: Side, parts: &Parts) -> usize {
        let value = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = parts.headers.iter().map(|(name, text)| (name.as_str().to_owned(), value(text))).collect();
        let mut log = lock(&self.0);
        log.entries.push(Logged {
            side,
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: pairs(parts.uri.query().unwrap_or_default()),
            headers,
            body_bytes: 0,
            status: None,
        });
        log.first + log.entries.len() - 1
    }

    /// Adds to an entry, unless it was cleared.
    pub(crate) fn note(&self, number: usize, note: impl FnOnce(&mut Logged)) {
        let mut log = lock(&self.0);
        let index = number.checked_sub(log.first);
        index.and_then(|index| log.entries.get_mut(index)).map(note);
    }

    pub(crate) fn all(&self) -> Vec<Logged> {
        lock(&self.0).entries.clone()
    }

    pub(crate) fn clear(&self) {
        let mut log = lock(&self.0);
        log.first += log.entries.len();
        log.entries.clear();
    }
}
