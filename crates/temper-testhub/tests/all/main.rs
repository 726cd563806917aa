//! Every endpoint and every trouble, over HTTP. Whether the whole is a hub is for `tests/hub/judge.py` to say.
#![allow(clippy::unwrap_used)]

mod access;
mod faults;
mod lfs;
mod reading;
mod writing;
mod xet;

use reqwest::Method;
use reqwest::blocking::{Body, Client, Response};
use serde_json::{Value, json};
use temper_testhub::{Kind, Options, TestHub};

/// A hub and a client that follows no redirects and retries nothing.
struct Bench {
    hub: TestHub,
    client: Client,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and `X-Error-Code`.
    fn refusal(&self) -> (u16, &str) {
        (self.status, self.header("x-error-code"))
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { hub: TestHub::start(options).unwrap(), client }
    }

    /// A hub with the model `me/tiny`: a small file, a large one, a directory.
    fn seeded() -> Self {
        let bench = Self::new();
        bench.seed();
        bench
    }

    fn seed(&self) -> String {
        let files: [(&str, &[u8]); 3] = [("config.json", b"{}"), ("model.safetensors", &WEIGHTS), ("sub/a.txt", b"a")];
        self.hub.seed(Kind::Model, "me/tiny", &files).unwrap()
    }

    /// Sends a request; `path` is a path of the hub or a whole address.
    fn try_send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Answer, reqwest::Error> {
        let url = if path.starts_with('/') { format!("{}{path}", self.hub.endpoint()) } else { path.to_owned() };
        let mut request = self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), url).body(body);
        request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
        let response: Response = request.send()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes()?.to_vec() })
    }

    fn send(&self, method: &str, path: &str, token: Option<&str>, body: impl Into<Body>) -> Answer {
        self.try_send(method, path, token, &[], body).unwrap()
    }

    /// As the user `me`.
    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, Some(self.hub.token()), "")
    }

    fn head(&self, path: &str) -> Answer {
        self.send("HEAD", path, Some(self.hub.token()), "")
    }

    fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, Some(self.hub.token()), body.to_string())
    }

    /// Commits lines after a header, as `me`.
    fn commit(&self, path: &str, header: Value, lines: &[(&str, Value)]) -> Answer {
        let mut body = json!({ "key": "header", "value": header }).to_string();
        body.extend(lines.iter().map(|(key, value)| format!("\n{}", json!({ "key": key, "value": value }))));
        self.send("POST", path, Some(self.hub.token()), body)
    }
}

/// Content of the large file of [`Bench::seeded`].
const WEIGHTS: [u8; 5000] = [7; 5000];

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|entry| entry[key].as_str().unwrap().to_owned()).collect()
}

fn sha256(content: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
