//! Troubles that a test orders: which request, how often, what happens.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::Side;
use crate::hub::lock;

/// What happens to a request.
#[derive(Clone)]
pub enum Trouble {
    /// Nothing is done; the answer has this status (500, 502, 503, …).
    Status(u16),
    /// Nothing is done; 429, with `Retry-After` in seconds and the `RateLimit` headers.
    RateLimited {
        /// Seconds.
        retry_after: u64,
    },
    /// Nothing is done; 401, as for a token that expired.
    TokenExpired,
    /// The answer comes after this time.
    Delay(Duration),
    /// The connection is cut when this many bytes of the request's body were read; nothing is done.
    CutUpload(u64),
    /// One byte of the request's body arrives wrong.
    WrongUpload,
    /// The request is carried out; the answer has this status (504: the commit landed all the same).
    Landed(u16),
    /// The request is carried out; the connection is cut without an answer.
    LandedThenCut,
    /// The connection is cut after this many bytes of content.
    CutDownload(u64),
    /// Only this many bytes of content come, and `Content-Length` agrees with them.
    ShortBody(u64),
    /// As many bytes as promised, one of them wrong.
    WrongBytes,
    /// This status, with a page of HTML for content.
    Page(u16),
    /// So many bytes of content at a time, with a pause between.
    Drip {
        /// Bytes at a time.
        bytes: usize,
        /// Time between.
        pause: Duration,
    },
    /// A header of the answer has this value instead.
    Header(String, String),
    /// The JSON of the answer is changed.
    Edit(Arc<dyn Fn(&mut Value) + Send + Sync>),
}

/// When a trouble comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The request has come, and nothing else.
    Arrival,
    /// There is an answer that is not an error.
    Answer,
    /// The answer has content.
    Content,
}

impl Trouble {
    fn moment(&self) -> Moment {
        match self {
            Self::Status(_) | Self::RateLimited { .. } | Self::TokenExpired => Moment::Arrival,
            Self::Delay(_) | Self::CutUpload(_) | Self::WrongUpload => Moment::Arrival,
            Self::Landed(_) | Self::LandedThenCut | Self::Header(..) | Self::Edit(_) => Moment::Answer,
            Self::CutDownload(_) | Self::ShortBody(_) | Self::WrongBytes | Self::Page(_) | Self::Drip { .. } => {
                Moment::Content
            }
        }
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(out, "Status({status})"),
            Self::RateLimited { retry_after } => write!(out, "RateLimited({retry_after} s)"),
            Self::TokenExpired => out.write_str("TokenExpired"),
            Self::Delay(time) => write!(out, "Delay({time:?})"),
            Self::CutUpload(bytes) => write!(out, "CutUpload({bytes})"),
            Self::Landed(status) => write!(out, "Landed({status})"),
            Self::WrongUpload => out.write_str("WrongUpload"),
            Self::LandedThenCut => out.write_str("LandedThenCut"),
            Self::CutDownload(bytes) => write!(out, "CutDownload({bytes})"),
            Self::ShortBody(bytes) => write!(out, "ShortBody({bytes})"),
            Self::WrongBytes => out.write_str("WrongBytes"),
            Self::Page(status) => write!(out, "Page({status})"),
            Self::Drip { bytes, pause } => write!(out, "Drip({bytes} every {pause:?})"),
            Self::Header(name, value) => write!(out, "Header({name}: {value})"),
            Self::Edit(_) => out.write_str("Edit(…)"),
        }
    }
}

/// A trouble, and the requests that it meets. Troubles with content (`CutDownload`, …) pass over redirects, `HEAD`s and
/// errors without being used up, so a pattern that names a file meets its bytes on whichever side they lie.
#[derive(Debug, Clone)]
pub struct Fault {
    method: String,
    path: String,
    side: Option<Side>,
    left: usize,
    trouble: Trouble,
}

impl Fault {
    /// Meets the next request with this method (`*` for any) whose decoded path, without the query, matches `path`. A `*`
    /// in `path` stands for any text, slashes included.
    pub fn new(method: &str, path: &str, trouble: Trouble) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), side: None, left: 1, trouble }
    }

    /// Meets that many requests instead of one.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.left = times;
        self
    }

    /// Meets requests to one of the two servers only.
    #[must_use]
    pub fn on(mut self, side: Side) -> Self {
        self.side = Some(side);
        self
    }

    /// Adds files with these names to every listing of `repository`, from now on.
    pub fn hostile_names(repository: &str, names: &[&str]) -> Vec<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let edit = move |listing: &mut Value| {
            let oid = "5e1c309dae7f45e0f39b1bf3ac3cd9db12e7d689";
            if let Some(entries) = listing.as_array_mut() {
                let entry = |name: &String| json!({ "type": "file", "path": name, "oid": oid, "size": 11 });
                entries.extend(names.iter().map(entry));
            }
            if let Some(siblings) = listing.get_mut("siblings").and_then(Value::as_array_mut) {
                siblings.extend(names.iter().map(|name| json!({ "rfilename": name, "size": 11, "blobId": oid })));
            }
        };
        let trouble = Trouble::Edit(Arc::new(edit));
        let paths = ["", "/revision/*", "/tree/*", "/paths-info/*"];
        let fault = |path: &&str| Self::new("*", &format!("*/{repository}{path}"), trouble.clone()).times(usize::MAX);
        paths.iter().map(fault).collect()
    }

    fn meets(&self, side: Side, method: &str, path: &str, moment: Moment) -> bool {
        let method = self.method == "*" || self.method == method;
        let side = self.side.is_none_or(|wanted| wanted == side);
        method && side && self.trouble.moment() == moment && matches(&self.path, path)
    }
}

/// The faults that wait.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(crate) fn add(&self, fault: Fault) {
        lock(&self.0).push(fault);
    }

    pub(crate) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Faults that have not met all their requests; those for ever do not count.
    pub(crate) fn pending(&self) -> usize {
        lock(&self.0).iter().filter(|fault| fault.left > 0 && fault.left < usize::MAX / 2).count()
    }

    /// The first trouble for this request at this moment, used up once.
    pub(crate) fn take(&self, side: Side, method: &str, path: &str, moment: Moment) -> Option<Trouble> {
        let mut faults = lock(&self.0);
        let met = |fault: &&mut Fault| fault.left > 0 && fault.meets(side, method, path, moment);
        let fault = faults.iter_mut().find(met)?;
        fault.left -= 1;
        Some(fault.trouble.clone())
    }
}

/// Whether `text` is `pattern` with any text for each `*`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => {
            let Some(rest) = text.strip_prefix(head) else { return false };
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| matches(tail, &rest[at..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(matches("*/resolve/*/model.safetensors", "/me/x/resolve/main/model.safetensors"));
        assert!(matches("/api/models/*", "/api/models/a/b") && matches("*", ""));
        assert!(!matches("*/resolve/*.json", "/me/x/resolve/main/model.safetensors"));
    }

    #[test]
    fn a_fault_is_used_up() {
        let faults = Faults::default();
        faults.add(Fault::new("GET", "/x", Trouble::Status(500)).times(2).on(Side::Hub));
        assert!(faults.take(Side::Storage, "GET", "/x", Moment::Arrival).is_none());
        assert!(faults.take(Side::Hub, "GET", "/x", Moment::Content).is_none());
        assert_eq!(faults.pending(), 1);
        assert!(faults.take(Side::Hub, "GET", "/x", Moment::Arrival).is_some());
        assert!(faults.take(Side::Hub, "GET", "/x", Moment::Arrival).is_some());
        assert!(faults.take(Side::Hub, "GET", "/x", Moment::Arrival).is_none());
        assert_eq!(faults.pending(), 0);
    }
}
