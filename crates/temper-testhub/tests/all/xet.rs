//! Xet: tokens, and the way to the storage server. Transfers are for the judge, with the client of Xet's authors.

use serde_json::json;
use temper_testhub::{Fault, Kind, Options, Role, Side, Trouble};

use crate::{Bench, lfs};

const READ: &str = "/api/models/me/tiny/xet-read-token/main";
const WRITE: &str = "/api/models/me/tiny/xet-write-token/main";

fn bench(seconds: u32) -> Bench {
    let bench = Bench::with(Options { xet: true, xet_token_seconds: seconds, ..Options::default() });
    bench.seed();
    bench
}

#[test]
fn off_by_default() {
    let bench = Bench::seeded();
    assert_eq!(bench.get(READ).status, 404);
    assert_eq!(lfs::batch(&bench, &"0".repeat(64), 10, &["basic", "xet"])["transfer"], json!("basic"));
}

#[test]
fn tokens_open_the_storage() {
    let bench = bench(3600);
    let token = bench.get(WRITE);
    assert_eq!(token.json()["casUrl"], json!(bench.hub.storage()));
    assert_eq!(token.json()["accessToken"], json!(token.header("x-xet-access-token")));
    let chunk = format!("{}/v1/chunks/default-merkledb/{}", bench.hub.storage(), "0".repeat(64));
    assert_eq!(bench.send("GET", &chunk, None, "").status, 401);
    assert_eq!(bench.send("GET", &chunk, Some(bench.hub.token()), "").status, 401, "a hub token is none");
    assert_eq!(bench.send("GET", &chunk, Some(token.header("x-xet-access-token")), "").status, 404, "forwarded");
    bench.hub.fault(Fault::new("GET", "/v1/*", Trouble::Status(503)).on(Side::Storage));
    assert_eq!(bench.send("GET", &chunk, Some(token.header("x-xet-access-token")), "").status, 503);
}

#[test]
fn tokens_expire() {
    let bench = bench(0);
    let chunk = format!("{}/v1/chunks/default-merkledb/{}", bench.hub.storage(), "0".repeat(64));
    let token = bench.get(READ).header("x-xet-access-token").to_owned();
    assert_eq!(bench.send("GET", &chunk, Some(&token), "").status, 401);
}

#[test]
fn tokens_follow_the_rights() {
    let bench = bench(3600);
    let stranger = bench.hub.issue("stranger", Role::Write);
    let get = |path: &str| bench.send("GET", path, Some(&stranger), "").status;
    assert_eq!((get(READ), get(WRITE)), (200, 403));
    assert_eq!(get("/api/models/me/tiny/xet-write-token/None?create_pr=1"), 200);
    bench.hub.set_private(Kind::Model, "me/tiny", true).unwrap();
    assert_eq!(get(READ), 404);
}

#[test]
fn the_batch_names_xet() {
    let bench = bench(3600);
    let answer = lfs::batch(&bench, &"0".repeat(64), 10, &["basic", "multipart", "xet"]);
    assert_eq!(answer["transfer"], json!("xet"));
    let upload = &answer["objects"][0]["actions"]["upload"];
    assert!(upload["href"].as_str().unwrap().ends_with("/xet-write-token/main"));
    assert_eq!(upload["header"]["X-Xet-Cas-Url"], json!(bench.hub.storage()));
}
