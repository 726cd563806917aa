//! Requests and replies as the endpoints see them: whole, and without `async`.

use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::accounts::Caller;
use crate::error::{Answer, Refusal};

/// One of the two servers: they differ in port, so that a client takes them for two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The hub itself.
    Hub,
    /// Where large files lie; takes signed addresses and refuses tokens, as object stores do.
    Storage,
}

/// A request with its body.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Percent-decoded segments of the path.
    pub(crate) segments: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Path and query as they came.
    pub(crate) target: String,
    /// Who asks, once that was asked: a request uses its token once.
    pub(crate) identified: OnceLock<Option<Caller>>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Every value of `name`, which clients repeat for lists.
    pub(crate) fn queries<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a switch such as `recursive` or `blobs` is on.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.query(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | ""))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body).map_err(|error| Refusal::bad(format!("invalid body: {error}")))
    }

    /// The body as a form, `name=value&…`.
    pub(crate) fn form(&self) -> Vec<(String, String)> {
        pairs(&String::from_utf8_lossy(&self.body))
    }

    /// The query with `name` set to `value`: the address of the next page.
    pub(crate) fn with_query(&self, name: &str, value: &str) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        let kept = self.query.iter().filter(|(key, _)| key != name);
        let kept = kept.map(|(key, value)| format!("{}={}&", encode(key), encode(value)));
        format!("{path}?{}{name}={}", kept.collect::<String>(), encode(value))
    }
}

/// A reply with its body.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, headers: HeaderMap::new(), body: body.into() }
    }

    pub(crate) fn json(value: &Value) -> Self {
        Self::new(200, value.to_string()).with("content-type", "application/json; charset=utf-8")
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self
    }

    /// With a header; a value that HTTP cannot carry is left out.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            self.headers.insert(name, value);
        }
        self
    }

    /// `content` or the part of it that the request wants, under `etag` (without quotes).
    pub(crate) fn content(request: &Request, content: impl Into<Bytes>, etag: &str) -> Answer {
        let content = content.into();
        let tagged = |reply: Self| reply.with("etag", &format!("\"{etag}\"")).with("accept-ranges", "bytes");
        let known = request.header("if-none-match").is_some_and(|held| held.trim_matches('"') == etag);
        if known {
            return Ok(tagged(Self::new(304, Bytes::new())));
        }
        let Some(range) = request.header("range") else { return Ok(tagged(Self::new(200, content))) };
        let total = content.len();
        let Some((from, to)) = byte_range(range, total) else {
            let refusal = Refusal::new(416, "Requested range not satisfiable");
            return Err(refusal.header("content-range", format!("bytes */{total}")));
        };
        let part = Self::new(206, content.slice(from..to));
        Ok(tagged(part).with("content-range", &format!("bytes {from}-{}/{total}", to - 1)))
    }
}

/// The half-open range that `bytes=a-b`, `bytes=a-` or `bytes=-n` means in `total` bytes.
fn byte_range(range: &str, total: usize) -> Option<(usize, usize)> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (from.is_empty(), to.is_empty()) {
        (true, _) => (total.saturating_sub(to.parse().ok()?), total),
        (false, true) => (from.parse().ok()?, total),
        (false, false) => (from.parse().ok()?, to.parse::<usize>().ok()?.saturating_add(1).min(total)),
    };
    (from < to).then_some((from, to))
}

/// Percent-decoded path segments; `None` if one is not UTF-8.
pub(crate) fn segments(path: &str) -> Option<Vec<String>> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    parts.map(|part| percent_decode_str(part).decode_utf8().ok().map(|part| part.into_owned())).collect()
}

/// `a=1&b=2` decoded.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(key), decode(value))
    };
    text.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

const KEPT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const KEPT_IN_PATHS: AsciiSet = KEPT.remove(b'/');

/// One percent-encoded segment.
pub(crate) fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, &KEPT).to_string()
}

/// A path whose slashes stay.
pub(crate) fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, &KEPT_IN_PATHS).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(byte_range("bytes=2-4", 10), Some((2, 5)));
        assert_eq!(byte_range("bytes=2-", 10), Some((2, 10)));
        assert_eq!(byte_range("bytes=-3", 10), Some((7, 10)));
        assert_eq!(byte_range("bytes=2-400", 10), Some((2, 10)));
        assert_eq!(byte_range("bytes=10-", 10), None);
        assert_eq!(byte_range("lines=1-2", 10), None);
    }

    #[test]
    fn a_revision_is_one_segment() {
        assert_eq!(segments("/a/b/resolve/refs%2Fpr%2F1/x%20y").unwrap()[3], "refs/pr/1");
        assert_eq!(encode("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(
            pairs("a=1%202&b&c=x+y"),
            [("a", "1 2"), ("b", ""), ("c", "x y")].map(|(a, b)| (a.into(), b.into()))
        );
    }
}
