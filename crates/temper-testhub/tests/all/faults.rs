//! Every trouble that a test can order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use temper_testhub::{Fault, Kind, Side, Trouble};

use crate::{Bench, WEIGHTS, names};

const WEIGHTS_PATH: &str = "/me/tiny/resolve/main/model.safetensors";

/// What a client gets that follows the redirect to the storage.
fn download(bench: &Bench) -> Result<crate::Answer, reqwest::Error> {
    let front = bench.get(WEIGHTS_PATH);
    assert_eq!(front.status, 302);
    bench.try_send("GET", front.header("location"), None, &[], "")
}

fn order(bench: &Bench, method: &str, path: &str, trouble: Trouble) {
    bench.hub.fault(Fault::new(method, path, trouble));
}

#[test]
fn refusals_at_the_door() {
    let bench = Bench::seeded();
    let path = "/api/models/me/tiny";
    for status in [500, 502, 503] {
        order(&bench, "GET", path, Trouble::Status(status));
        assert_eq!(bench.get(path).status, status);
    }
    order(&bench, "*", "/api/*", Trouble::TokenExpired);
    assert_eq!(bench.get(path).status, 401);
    bench.hub.fault(Fault::new("GET", path, Trouble::RateLimited { retry_after: 3 }).times(2));
    for _ in 0..2 {
        let limited = bench.get(path);
        assert_eq!((limited.status, limited.header("retry-after")), (429, "3"));
        assert_eq!(limited.header("ratelimit"), "\"api\";r=0;t=3");
    }
    assert_eq!(bench.get(path).status, 200);
    assert_eq!(bench.hub.pending_faults(), 0);
}

#[test]
fn downloads_are_cut() {
    let bench = Bench::seeded();
    order(&bench, "GET", "*model.safetensors", Trouble::CutDownload(1234));
    assert!(download(&bench).is_err());
    assert_eq!(bench.hub.pending_faults(), 0);
    assert_eq!(download(&bench).unwrap().body, WEIGHTS);
    order(&bench, "GET", "*config.json", Trouble::CutDownload(0));
    assert!(bench.try_send("GET", "/me/tiny/resolve/main/config.json", None, &[], "").is_err());
}

#[test]
fn the_first_bytes_of_a_cut_download_arrive() {
    use std::io::Read;
    let bench = Bench::seeded();
    order(&bench, "GET", "*model.safetensors", Trouble::CutDownload(1234));
    let location = bench.head(WEIGHTS_PATH).header("location").to_owned();
    let mut response = bench.client.get(location).send().unwrap();
    assert_eq!(response.content_length(), Some(5000));
    let mut held = Vec::new();
    assert!(response.read_to_end(&mut held).is_err());
    assert_eq!(held, WEIGHTS[..1234]);
}

#[test]
fn content_is_spoiled() {
    let bench = Bench::seeded();
    order(&bench, "GET", "*model.safetensors", Trouble::ShortBody(10));
    assert_eq!(download(&bench).unwrap().body, WEIGHTS[..10]);
    order(&bench, "GET", "*model.safetensors", Trouble::WrongBytes);
    let wrong = download(&bench).unwrap().body;
    assert!(wrong.len() == WEIGHTS.len() && wrong != WEIGHTS);
    for status in [200, 403] {
        order(&bench, "GET", "*model.safetensors", Trouble::Page(status));
        assert_eq!(bench.head(WEIGHTS_PATH).status, 302, "HEAD stays good");
        let page = download(&bench).unwrap();
        assert!(page.status == status && page.body.starts_with(b"<!DOCTYPE html>"));
    }
    assert_eq!(download(&bench).unwrap().body, WEIGHTS);
}

#[test]
fn headers_are_hostile() {
    let bench = Bench::seeded();
    let header = |name: &str| Trouble::Header(name.into(), "../../../evil".into());
    order(&bench, "HEAD", "*config.json", header("ETag"));
    assert_eq!(bench.head("/me/tiny/resolve/main/config.json").header("etag"), "../../../evil");
    order(&bench, "HEAD", "*model.safetensors", header("X-Linked-Etag"));
    assert_eq!(bench.head(WEIGHTS_PATH).header("x-linked-etag"), "../../../evil");
    order(&bench, "*", "*config.json", header("X-Repo-Commit"));
    assert_eq!(bench.head("/me/tiny/resolve/main/config.json").header("x-repo-commit"), "../../../evil");
}

#[test]
fn names_are_hostile() {
    let bench = Bench::seeded();
    let hostile = ["../x", "/etc/x", "nul\0x", "back\\slash"];
    bench.hub.faults(Fault::hostile_names("me/tiny", &hostile));
    assert_eq!(names(&bench.get("/api/models/me/tiny/tree/main").json(), "path")[4..], hostile);
    assert_eq!(names(&bench.get("/api/models/me/tiny").json()["siblings"], "rfilename")[4..], hostile);
    assert_eq!(bench.hub.pending_faults(), 0);
    bench.hub.clear_faults();
    assert_eq!(bench.get("/api/models/me/tiny/tree/main").json().as_array().unwrap().len(), 4);
}

#[test]
fn answers_are_edited() {
    let bench = Bench::seeded();
    let edit = Trouble::Edit(Arc::new(|info| info["sha"] = json!("main")));
    order(&bench, "GET", "/api/models/me/tiny", edit);
    assert_eq!(bench.get("/api/models/me/tiny").json()["sha"], json!("main"));
}

#[test]
fn commits_land_although_the_answer_is_an_error() {
    let bench = Bench::seeded();
    let path = "/api/models/me/tiny/commit/main";
    let line = ("file", json!({ "path": "x", "content": "eA==", "encoding": "base64" }));
    order(&bench, "POST", path, Trouble::Landed(504));
    assert_eq!(bench.commit(path, json!({ "summary": "one" }), std::slice::from_ref(&line)).status, 504);
    assert_eq!(bench.hub.titles(Kind::Model, "me/tiny", "main").unwrap()[0], "one");
    order(&bench, "POST", path, Trouble::LandedThenCut);
    let body = format!(
        "{}\n{}",
        json!({ "key": "header", "value": { "summary": "two" } }),
        json!({ "key": "file", "value": line.1 })
    );
    assert!(bench.try_send("POST", path, Some(bench.hub.token()), &[], body).is_err());
    assert_eq!(bench.hub.titles(Kind::Model, "me/tiny", "main").unwrap()[0], "two");
    order(&bench, "POST", path, Trouble::Status(504));
    assert_eq!(bench.commit(path, json!({ "summary": "three" }), &[line]).status, 504);
    assert_eq!(bench.hub.titles(Kind::Model, "me/tiny", "main").unwrap()[0], "two");
}

#[test]
fn uploads_are_cut() {
    let bench = Bench::seeded();
    bench.hub.fault(Fault::new("PUT", "/put/*", Trouble::CutUpload(1000)).on(Side::Storage));
    let content = vec![9; 10_000_000];
    let sha256 = crate::sha256(&content);
    let href = crate::lfs::batch(&bench, &sha256, content.len(), &["basic"])["objects"][0]["actions"]["upload"]["href"]
        .clone();
    let href = href.as_str().unwrap();
    assert!(bench.try_send("PUT", href, None, &[], content.clone()).is_err());
    let seen = bench.hub.requests();
    let put = seen.iter().find(|request| request.method == "PUT").unwrap();
    assert!(put.status.is_none() && (1000..content.len() as u64).contains(&put.body_bytes));
    assert_eq!(bench.send("PUT", href, None, content).status, 200);
}

#[test]
fn answers_are_slow() {
    let bench = Bench::seeded();
    order(&bench, "GET", "/api/models/me/tiny", Trouble::Delay(Duration::from_millis(120)));
    let start = Instant::now();
    assert_eq!(bench.get("/api/models/me/tiny").status, 200);
    assert!(start.elapsed() >= Duration::from_millis(120));
    order(&bench, "GET", "*model.safetensors", Trouble::Drip { bytes: 1000, pause: Duration::from_millis(20) });
    let start = Instant::now();
    assert_eq!(download(&bench).unwrap().body, WEIGHTS);
    assert!(start.elapsed() >= Duration::from_millis(100));
}
