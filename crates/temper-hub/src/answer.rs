//! What a server's refusal means.
//!
//! The hub says it with a status, with `X-Error-Code` and with `X-Error-Message` or a JSON body `{"error": …}`; not every
//! server that speaks its protocol sends all of them, so each case is recognised by any of its signs.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::{Error, RepoId, names::printable};

/// What to do without a token.
pub(crate) const LOGIN: &str = "run `temper hub login`, or set HF_TOKEN to a token that may write";

/// What a request was for: the words of its errors.
#[derive(Debug, Clone, Default)]
pub(crate) struct About<'a> {
    /// Completes "failed to …".
    pub(crate) doing: String,
    /// The repository.
    pub(crate) repo: Option<&'a RepoId>,
    /// The revision.
    pub(crate) revision: Option<&'a str>,
    /// The file.
    pub(crate) path: Option<&'a str>,
}

impl<'a> About<'a> {
    /// A request that concerns no repository.
    pub(crate) fn doing(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), ..Self::default() }
    }

    /// The same of a repository.
    pub(crate) fn repo(self, repo: &'a RepoId) -> Self {
        Self { repo: Some(repo), ..self }
    }

    /// The same at a revision.
    pub(crate) fn revision(self, revision: &'a str) -> Self {
        Self { revision: Some(revision), ..self }
    }

    /// The same of a file.
    pub(crate) fn path(self, path: &'a str) -> Self {
        Self { path: Some(path), ..self }
    }
}

/// A refusal, taken apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// `X-Error-Code`.
    pub(crate) code: String,
    /// What the server said, printable.
    pub(crate) message: String,
    /// How long it asks to wait.
    pub(crate) retry_after: Option<Duration>,
}

/// Who asked whom.
#[derive(Debug, Clone)]
pub(crate) struct Asked<'a> {
    pub(crate) endpoint: &'a str,
    /// Where the token came from, when one was sent.
    pub(crate) token_from: Option<&'a str>,
    /// The host that was asked, where it is not the hub's own: a storage that it sent us to.
    pub(crate) storage: Option<String>,
}

impl Refusal {
    /// Reads headers and (the beginning of) the body.
    pub(crate) fn read(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let said = match header("x-error-message") {
            "" => error_of(body),
            message => message.to_string(),
        };
        let message = if said.is_empty() { "it does not say why".into() } else { printable(&said) };
        Self { status, code: printable(header("x-error-code")), message, retry_after: retry_after(headers) }
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
    }

    /// The error that it means.
    pub(crate) fn error(&self, about: &About<'_>, asked: Asked<'_>) -> Error {
        let endpoint = asked.endpoint.to_string();
        let logged_in = asked.token_from.is_some();
        let doing = about.doing.clone();
        let bad_token = || match asked.token_from {
            Some(from) => Error::BadToken { endpoint: endpoint.clone(), from: from.into() },
            None => Error::NoToken { doing: doing.clone(), advice: LOGIN },
        };
        if let (401 | 403 | 404 | 410, Some(host)) = (self.status, asked.storage) {
            return Error::Storage { doing, host, status: self.status, message: self.message.clone() };
        }
        match (self.status, about.repo) {
            (401 | 403, Some(repo)) if self.code == "GatedRepo" => {
                Error::Gated { repo: repo.clone(), endpoint, logged_in }
            }
            (401, _) if self.message.contains("nvalid credentials") || self.message.contains("expired") => bad_token(),
            (401 | 404, Some(repo)) if self.code == "RepoNotFound" => {
                Error::RepoMissing { repo: repo.clone(), endpoint, logged_in }
            }
            (401, Some(repo)) if !logged_in => Error::RepoMissing { repo: repo.clone(), endpoint, logged_in },
            (401, _) => bad_token(),
            (403, _) => {
                Error::Forbidden { doing, message: self.message.clone(), advice: advice_on_403(about, logged_in) }
            }
            (404, Some(repo)) => self.missing(repo, about, endpoint, logged_in),
            (429, _) => Error::RateLimited { doing, retry_after: self.retry_after },
            (status @ 500.., _) => Error::Server { doing, status, message: self.message.clone() },
            (status, _) => Error::Refused { doing, status, message: self.message.clone() },
        }
    }

    fn missing(&self, repo: &RepoId, about: &About<'_>, endpoint: String, logged_in: bool) -> Error {
        let revision = || about.revision.unwrap_or("main").to_string();
        match (self.code.as_str(), about.path, about.revision) {
            ("RevisionNotFound", ..) => Error::RevisionMissing { repo: repo.clone(), revision: revision() },
            ("EntryNotFound", Some(path), _) | ("", Some(path), _) => Error::FileMissing {
                repo: repo.clone(),
                revision: revision(),
                path: path.into(),
                hint: "it has no such file; `temper hub files` lists what it has".into(),
            },
            ("EntryNotFound", None, Some(_)) => Error::RevisionMissing { repo: repo.clone(), revision: revision() },
            _ => Error::RepoMissing { repo: repo.clone(), endpoint, logged_in },
        }
    }
}

fn advice_on_403(about: &About<'_>, logged_in: bool) -> String {
    match about.repo {
        _ if !logged_in => format!("no token was sent: {LOGIN}; or a proxy between here and there refuses"),
        Some(repo) => format!("the token needs the permission for that on {repo} (a read token cannot write)"),
        None => "use a token with the permission for that".into(),
    }
}

/// The `error` of a JSON body, or its text when it is no HTML page.
fn error_of(body: &[u8]) -> String {
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) => match value.get("error").or_else(|| value.get("message")) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        },
        Err(_) if body.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned(),
    }
}

/// What `Retry-After` says in seconds or as a date, or of `t=` in the hub's `RateLimit: "api";r=0;t=55` when nothing remains (`r=0`).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let given =
        header(RETRY_AFTER.as_str()).map(str::trim).and_then(|text| text.parse().ok().or_else(|| seconds_until(text)));
    let limit = || {
        let mut parts = header("ratelimit")?.split(';').map(str::trim);
        parts.clone().any(|part| part == "r=0").then_some(())?;
        parts.find_map(|part| part.strip_prefix("t="))?.parse().ok()
    };
    given.or_else(limit).map(Duration::from_secs)
}

/// Seconds from now to a date of HTTP, rounded up.
fn seconds_until(date: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(date).ok()?;
    Some(date.duration_since(SystemTime::now()).map_or(0, |left| left.as_secs() + 1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn error(status: u16, code: &str, message: &str, token: bool, path: Option<&str>) -> Error {
        let repo = RepoId::model("org/name").unwrap();
        let about = About { path, ..About::doing("read org/name").repo(&repo).revision("v1") };
        let mut headers = HeaderMap::new();
        headers.insert("x-error-code", code.parse().unwrap());
        let body = serde_json::json!({"error": message}).to_string();
        let refusal = Refusal::read(status, &headers, body.as_bytes());
        refusal.error(&about, Asked { endpoint: "https://hub", token_from: token.then_some("HF_TOKEN"), storage: None })
    }

    #[test]
    fn each_refusal_has_its_error() {
        assert!(matches!(error(401, "GatedRepo", "", false, None), Error::Gated { logged_in: false, .. }));
        assert!(matches!(error(403, "GatedRepo", "", true, None), Error::Gated { logged_in: true, .. }));
        assert!(matches!(error(401, "RepoNotFound", "", false, None), Error::RepoMissing { logged_in: false, .. }));
        assert!(matches!(error(404, "RepoNotFound", "", true, Some("x")), Error::RepoMissing { logged_in: true, .. }));
        assert!(matches!(error(404, "RevisionNotFound", "", true, Some("x")), Error::RevisionMissing { .. }));
        assert!(matches!(error(404, "EntryNotFound", "", true, Some("x")), Error::FileMissing { .. }));
        let expired = "Invalid credentials in Authorization header";
        assert!(matches!(error(401, "", expired, true, None), Error::BadToken { .. }));
        assert!(matches!(error(401, "RepoNotFound", expired, true, None), Error::BadToken { .. }));
        assert!(matches!(error(403, "", "no", true, None), Error::Forbidden { .. }));
        assert!(matches!(error(429, "", "", true, None), Error::RateLimited { .. }));
        assert!(matches!(error(503, "", "", true, None), Error::Server { status: 503, .. }));
        assert!(matches!(error(418, "", "", true, None), Error::Refused { status: 418, .. }));
    }

    #[test]
    fn how_long_to_wait() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(of("retry-after", "7"), Some(7));
        assert_eq!(of("ratelimit", "\"api\";r=0;t=55"), Some(55));
        assert_eq!(of("ratelimit", "\"api\";r=3;t=55"), None);
        assert_eq!(of("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        assert!((89..=91).contains(&of("retry-after", &soon).unwrap()));
        assert_eq!(of("retry-after", "soon"), None);
    }

    #[test]
    fn a_message_is_printable() {
        let refusal = Refusal::read(400, &HeaderMap::new(), b"{\"error\":\"no \\u001b[31m hf_abcdefghijABCDEFGHIJ0\"}");
        assert_eq!(refusal.message, "no [31m hf_[redacted]");
        assert_eq!(Refusal::read(502, &HeaderMap::new(), b"<html>").message, "it does not say why");
    }
}
