//! Who may what.

use std::time::SystemTime;

use temper_testhub::{Gated, Grant, Kind, Role};

use crate::Bench;

const CONFIG: &str = "/me/tiny/resolve/main/config.json";
const INFO: &str = "/api/models/me/tiny";

#[test]
fn missing_and_private_look_alike() {
    let bench = Bench::seeded();
    bench.hub.set_private(Kind::Model, "me/tiny", true).unwrap();
    let stranger = bench.hub.issue("stranger", Role::Write);
    for path in [INFO, CONFIG, "/api/models/me/missing", "/me/missing/resolve/main/x"] {
        assert_eq!(bench.send("GET", path, None, "").refusal(), (401, "RepoNotFound"), "{path}");
        assert_eq!(bench.send("GET", path, Some(&stranger), "").refusal(), (404, "RepoNotFound"), "{path}");
    }
    assert_eq!(bench.get(CONFIG).status, 200);
    let reader = bench.hub.issue("me", Role::Read);
    assert_eq!(bench.send("GET", CONFIG, Some(&reader), "").status, 200);
}

#[test]
fn gates_hide_files_but_not_facts() {
    let bench = Bench::seeded();
    bench.hub.set_gated(Kind::Model, "me/tiny", Gated::Manual).unwrap();
    let stranger = bench.hub.issue("stranger", Role::Read);
    let check = "/api/models/me/tiny/auth-check";
    for path in [CONFIG, check] {
        assert_eq!(bench.send("GET", path, None, "").refusal(), (401, "GatedRepo"));
        assert_eq!(bench.send("GET", path, Some(&stranger), "").refusal(), (403, "GatedRepo"));
        assert_eq!(bench.get(path).status, 200);
    }
    assert_eq!(bench.send("GET", INFO, None, "").json()["gated"], "manual");
    bench.hub.grant(Kind::Model, "me/tiny", "stranger").unwrap();
    assert_eq!(bench.send("GET", CONFIG, Some(&stranger), "").status, 200);
    assert_eq!(bench.send("GET", "/api/models/me/tiny/auth-check/write", Some(&stranger), "").status, 403);
}

#[test]
fn bad_tokens_are_refused_whatever_is_asked() {
    let bench = Bench::seeded();
    let old = bench.hub.issue_until("me", Role::Write, SystemTime::UNIX_EPOCH);
    for token in ["nonsense", &old] {
        let answer = bench.send("GET", INFO, Some(token), "");
        assert_eq!(answer.refusal(), (401, ""));
        assert_eq!(answer.header("x-error-message"), "Invalid credentials in Authorization header");
    }
}

#[test]
fn tokens_expire_midway() {
    let bench = Bench::seeded();
    let token = bench.hub.issue("me", Role::Write);
    bench.hub.expire_after(&token, 2).unwrap();
    let statuses: Vec<u16> = (0..3).map(|_| bench.send("GET", INFO, Some(&token), "").status).collect();
    assert_eq!(statuses, [200, 200, 401]);
    bench.hub.expire_after(&token, 2).unwrap();
    let open = || bench.send("POST", "/api/models/me/tiny/discussions", Some(&token), r#"{"title":"x"}"#).status;
    assert_eq!([open(), open(), open()], [200, 200, 401], "a request uses its token once");
    assert!(bench.hub.expire_after("nonsense", 1).is_err());
}

#[test]
fn writing_takes_a_role() {
    let bench = Bench::seeded();
    bench.hub.join("lab", "member", false);
    bench.hub.seed(Kind::Model, "lab/other", &[("x", b"x")]).unwrap();
    let scoped = Role::FineGrained(vec![Grant { scope: "me/tiny".into(), write: true }]);
    let fine = bench.hub.issue("me", scoped);
    let branch = |id: &str, token: Option<&str>| {
        bench.send("POST", &format!("/api/models/{id}/branch/b{}", token.map_or(0, str::len)), token, "{}").status
    };
    assert_eq!(branch("me/tiny", None), 401);
    assert_eq!(branch("me/tiny", Some(&bench.hub.issue("me", Role::Read))), 403);
    assert_eq!(branch("me/tiny", Some(&bench.hub.issue("stranger", Role::Write))), 403);
    assert_eq!(branch("lab/other", Some(&bench.hub.issue("member", Role::Write))), 403);
    assert_eq!(branch("lab/other", Some(&fine)), 403);
    assert_eq!(branch("me/tiny", Some(&fine)), 200);
}

#[test]
fn the_storage_refuses_tokens_and_unsigned_addresses() {
    let bench = Bench::seeded();
    let location = bench.head("/me/tiny/resolve/main/model.safetensors").header("location").to_owned();
    assert_eq!(bench.get(&location).status, 400);
    assert_eq!(bench.send("GET", location.split('?').next().unwrap(), None, "").status, 403);
    assert_eq!(bench.send("GET", &location.replace("X-Expires=1", "X-Expires=2"), None, "").status, 403);
    assert_eq!(bench.send("PUT", &location, None, "x").status, 403);
    assert_eq!(bench.send("GET", &location, None, "").status, 200);
}

#[test]
fn requests_are_logged() {
    let bench = Bench::seeded();
    bench.get("/api/models/me/tiny?blobs=true");
    bench.send("POST", "/api/models/me/tiny/paths-info/main", None, "paths=x");
    let log = bench.hub.requests();
    assert_eq!((log[0].method.as_str(), log[0].path.as_str(), log[0].status), ("GET", INFO, Some(200)));
    assert_eq!(log[0].query, [("blobs".to_owned(), "true".to_owned())]);
    assert!(log[0].authorized() && !log[1].authorized());
    assert_eq!(log[1].body_bytes, 7);
    bench.hub.clear_requests();
    assert!(bench.hub.requests().is_empty());
}
