//! Requests to the hub: the token only to its own origin, redirects by hand, patience with bounds.

use std::{
    error::Error as _,
    fs::File,
    io::{Read, Seek as _, SeekFrom},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Method,
    blocking::{Body, Client, Response},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION},
    redirect,
};
use serde::de::DeserializeOwned;
use url::Url;

use crate::{
    Error, Patience, RepoId, Result, Settings, Token,
    answer::{About, Asked, Refusal},
    settings::{is_loopback, without_query},
};

/// What stays as it is in one segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The longest JSON answer that is read, in bytes: a page of a tree has about 1 MB.
const LONGEST_ANSWER: u64 = 128 << 20;

/// Redirects that are followed.
const REDIRECTS: usize = 10;

/// The connection to one hub.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client,
    endpoint: Url,
    shown: String,
    token: Option<Token>,
    token_from: String,
    patience: Patience,
    abandoned: Arc<AtomicBool>,
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) content: Content<'a>,
    /// Whether to send it again after a failure that may pass: only what does no harm twice.
    pub(crate) repeat: bool,
}

/// What a request carries.
#[derive(Debug, Clone)]
pub(crate) enum Content<'a> {
    Nothing,
    Json(serde_json::Value),
    /// Lines of JSON: a commit.
    Lines(Vec<u8>),
    /// `length` bytes of a file from `start`.
    Part {
        path: &'a Path,
        start: u64,
        length: u64,
    },
}

/// An answer, and the headers that the redirects on the way carried.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Headers of all answers; the first to name a header wins.
    pub(crate) headers: HeaderMap,
}

/// A failure, and whether it may pass.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Box<Error>,
    /// Whether the same may succeed a little later.
    pub(crate) passing: bool,
    /// How long the server asks to wait.
    pub(crate) wait: Option<Duration>,
}

impl<'a> Request<'a> {
    pub(crate) fn get(url: impl Into<String>) -> Self {
        Self { method: Method::GET, url: url.into(), headers: Vec::new(), content: Content::Nothing, repeat: true }
    }

    /// A POST that may be repeated.
    pub(crate) fn post(url: impl Into<String>, json: serde_json::Value) -> Self {
        Self { method: Method::POST, content: Content::Json(json), ..Self::get(url) }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn once(self) -> Self {
        Self { repeat: false, ..self }
    }
}

impl Http {
    /// # Errors
    /// When the token would travel in the clear, or the system's TLS cannot be set up.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let shown = settings.endpoint.value.clone();
        let wrong = |reason: String| Error::Setting { name: "HF_ENDPOINT", value: shown.clone(), reason };
        let endpoint = Url::parse(&shown).map_err(|error| wrong(error.to_string()))?;
        let token = settings.token.value.clone();
        if token.is_some() && endpoint.scheme() != "https" && !is_loopback(&endpoint) {
            return Err(Error::Plaintext { endpoint: shown });
        }
        // What would stay on this machine goes to no proxy: it may carry the token.
        let builder = Client::builder();
        let builder = if is_loopback(&endpoint) { builder.no_proxy() } else { builder };
        let client = builder
            .user_agent(concat!("temper/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(settings.patience.connect)
            .timeout(settings.patience.silence)
            .build()
            .map_err(|error| wrong(reason_of(&error)))?;
        let token_from = settings.token.origin.to_string();
        let abandoned = Arc::default();
        Ok(Self { client, endpoint, shown, token, token_from, patience: settings.patience, abandoned })
    }

    /// The same connection, whose transfers end early once the flag is set.
    pub(crate) fn abandonable(&self, flag: Arc<AtomicBool>) -> Self {
        Self { abandoned: flag, ..self.clone() }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.shown
    }

    pub(crate) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    pub(crate) fn patience(&self) -> Patience {
        self.patience
    }

    /// # Errors
    /// [`Error::Abandoned`] once the flag is set.
    pub(crate) fn check_abandoned(&self) -> Result<()> {
        if self.abandoned.load(Ordering::Relaxed) { Err(Error::Abandoned) } else { Ok(()) }
    }

    /// The URL below the endpoint whose path has these segments, each encoded as one.
    pub(crate) fn url(&self, segments: &[&str]) -> String {
        segments.iter().fold(self.shown.clone(), |url, segment| format!("{url}/{}", encode(segment)))
    }

    /// The API's URL for a repository: `/api/models/org/name/…`.
    pub(crate) fn api(&self, repo: &RepoId, segments: &[&str]) -> String {
        let mut all = vec!["api", repo.kind().plural()];
        all.extend(repo.id().split('/'));
        all.extend(segments);
        self.url(&all)
    }

    /// Sends, follows redirects, and tries again what may pass.
    ///
    /// # Errors
    /// What the server's refusal means, or that it cannot be reached.
    pub(crate) fn send(&self, request: &Request<'_>, about: &About<'_>) -> Result<Answer> {
        self.patiently(self.patience.tries, || match self.follow(request, about) {
            Ok(answer) if answer.response.status().is_success() || answer.response.status() == 304 => Ok(answer),
            Ok(answer) => {
                // A request that came too early was not acted on.
                let again = request.repeat || answer.response.status() == 429;
                let from = answer.response.url().clone();
                let failure = self.failure(&self.refusal(answer), from.as_str(), about);
                Err(Failure { passing: failure.passing && again, ..failure })
            }
            Err(error) => {
                let passing = request.repeat && matches!(error, Error::NoNetwork { .. });
                Err(Failure { passing, error: Box::new(error), wait: None })
            }
        })
    }

    /// Does something until it succeeds, fails for good, or has failed `tries` times.
    ///
    /// # Errors
    /// The last failure.
    pub(crate) fn patiently<T>(
        &self,
        tries: u32,
        mut act: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut attempt = 1;
        loop {
            self.check_abandoned()?;
            let failure = match act() {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let too_long = failure.wait.is_some_and(|wait| wait > self.patience.longest_wait);
            if !failure.passing || attempt >= tries || too_long {
                return Err(*failure.error);
            }
            let wait = failure.wait.unwrap_or_else(|| self.backoff(attempt));
            tracing::debug!(attempt, ?wait, error = %failure.error, "trying again");
            self.pause(wait)?;
            attempt += 1;
        }
    }

    /// What a refusal by `url` comes to.
    pub(crate) fn failure(&self, refusal: &Refusal, url: &str, about: &About<'_>) -> Failure {
        Failure {
            error: Box::new(refusal.error(about, self.asked(url))),
            passing: refusal.is_transient(),
            wait: refusal.retry_after,
        }
    }

    /// Sends and reads a JSON answer.
    ///
    /// # Errors
    /// As for [`Http::send`]; and when the answer is not what `T` expects.
    pub(crate) fn json<T: DeserializeOwned>(&self, request: &Request<'_>, about: &About<'_>) -> Result<T> {
        let answer = self.send(request, about)?;
        self.read_json(answer.response, about)
    }

    /// Reads a JSON answer.
    ///
    /// # Errors
    /// When it is too long, cut, or not what `T` expects.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, response: Response, about: &About<'_>) -> Result<T> {
        let mut body = Vec::new();
        let read = response.take(LONGEST_ANSWER).read_to_end(&mut body);
        read.map_err(|error| self.no_network(about, error.to_string()))?;
        serde_json::from_slice(&body)
            .map_err(|error| self.bad_answer(about, format!("its answer cannot be read: {error}")))
    }

    pub(crate) fn bad_answer(&self, about: &About<'_>, what: impl Into<String>) -> Error {
        Error::BadAnswer { doing: about.doing.clone(), what: what.into(), endpoint: self.shown.clone() }
    }

    pub(crate) fn no_network(&self, about: &About<'_>, reason: impl Into<String>) -> Error {
        let host = self.endpoint.host_str().unwrap_or_default();
        let port = self.endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
        Error::NoNetwork { doing: about.doing.clone(), host: format!("{host}{port}"), reason: reason.into() }
    }

    /// Sleeps, but not beyond an abandonment.
    ///
    /// # Errors
    /// [`Error::Abandoned`].
    pub(crate) fn pause(&self, wait: Duration) -> Result<()> {
        let end = Instant::now() + wait;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.check_abandoned()?;
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        self.check_abandoned()
    }

    /// Wait after the `attempt`th failure: doubling, at most 16 times the first, with a quarter of jitter.
    pub(crate) fn backoff(&self, attempt: u32) -> Duration {
        let doubled = self.patience.first_wait * (1 << (attempt - 1).min(4));
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        doubled + doubled.mul_f64(f64::from(clock.subsec_micros() % 1000) / 4000.0)
    }

    /// Whether a request to this URL carries the token: only the endpoint's own origin sees it.
    fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    fn asked(&self, url: &str) -> Asked<'_> {
        let other = Url::parse(url).ok().filter(|url| !self.is_ours(url));
        Asked {
            endpoint: &self.shown,
            token_from: self.token.as_ref().filter(|_| other.is_none()).map(|_| &*self.token_from),
            storage: other.map(|url| url.host_str().unwrap_or_default().to_owned()),
        }
    }

    fn refusal(&self, answer: Answer) -> Refusal {
        let status = answer.response.status().as_u16();
        let headers = answer.response.headers().clone();
        let mut body = Vec::new();
        // What cannot be read of a refusal's body is not missed.
        let _ = answer.response.take(1 << 16).read_to_end(&mut body);
        Refusal::read(status, &headers, &body)
    }

    fn follow(&self, request: &Request<'_>, about: &About<'_>) -> Result<Answer> {
        let bad = |what: &str| self.bad_answer(about, format!("{what}: {}", without_query(&request.url)));
        let mut url = Url::parse(&request.url).map_err(|_| bad("it sends us to something that is no URL"))?;
        let mut headers = HeaderMap::new();
        for _ in 0..=REDIRECTS {
            let response = self.one(request, &url, about)?;
            for (name, value) in response.headers() {
                headers.entry(name.clone()).or_insert_with(|| value.clone());
            }
            let safe = matches!(request.method, Method::GET | Method::HEAD);
            if !response.status().is_redirection() || response.status() == 304 || !safe {
                return Ok(Answer { response, headers });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            let xet = headers.contains_key("x-xet-hash");
            let nowhere = || match xet {
                true => bad("it has the file in Xet storage alone, and temper downloads over plain HTTP"),
                false => bad("it redirects to nowhere"),
            };
            let next = next.ok_or_else(nowhere)?;
            let plain = next.scheme() == "http" && !is_loopback(&next) && url.scheme() == "https";
            if plain || !["http", "https"].contains(&next.scheme()) {
                return Err(bad(&format!("it redirects to {}, which is less safe than", without_query(next.as_str()))));
            }
            url = next;
        }
        Err(bad("it redirects in circles"))
    }

    fn one(&self, request: &Request<'_>, url: &Url, about: &About<'_>) -> Result<Response> {
        let mut headers = HeaderMap::new();
        let bad_header = || self.bad_answer(about, "it asks for a header that cannot be sent");
        for (name, value) in &request.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad_header())?;
            headers.insert(name, HeaderValue::from_str(value).map_err(|_| bad_header())?);
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(url) && !headers.contains_key(AUTHORIZATION)) {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.secret())).map_err(|_| bad_header())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = self.client.request(request.method.clone(), url.clone());
        match &request.content {
            Content::Nothing => {}
            Content::Json(json) => builder = builder.json(json),
            Content::Lines(lines) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
                builder = builder.body(lines.clone());
            }
            Content::Part { path, start, length } => {
                let mut file = File::open(path).map_err(Error::io("open", *path))?;
                file.seek(SeekFrom::Start(*start)).map_err(Error::io("read", *path))?;
                // A slow line has its time: 32 KiB/s and the patience for the answer.
                let timeout = self.patience.silence + Duration::from_secs(*length >> 15);
                let abandoned = self.abandoned.clone();
                let source = Watched { source: file.take(*length), abandoned };
                builder = builder.timeout(timeout).body(Body::sized(source, *length));
            }
        }
        builder.headers(headers).send().map_err(|error| match self.check_abandoned() {
            Err(abandoned) => abandoned,
            Ok(()) => Error::NoNetwork {
                doing: about.doing.clone(),
                host: url.host_str().unwrap_or_default().into(),
                reason: reason_of(&error),
            },
        })
    }
}

/// A body that ends with an error once its transfer is given up.
struct Watched<R> {
    source: R,
    abandoned: Arc<AtomicBool>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("given up"));
        }
        self.source.read(buffer)
    }
}

/// `text` as one segment of a URL's path.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The innermost reason, without the URL (whose query may be signed).
pub(crate) fn reason_of(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match error.source() {
        Some(_) => crate::names::printable(&innermost.to_string()),
        None => "the connection broke".into(),
    }
}
