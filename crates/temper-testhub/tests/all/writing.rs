//! Repositories, commits and references.

use serde_json::{Value, json};
use temper_testhub::{Kind, Options, Role};

use crate::{Bench, WEIGHTS, names, sha256};

const COMMIT: &str = "/api/models/me/tiny/commit/main";

fn file(path: &str, content: &str) -> (&'static str, Value) {
    ("file", json!({ "path": path, "content": content, "encoding": "utf-8" }))
}

#[test]
fn repositories_come_and_go() {
    let bench = Bench::new();
    let body = json!({ "name": "x", "type": "dataset", "private": true });
    let made = bench.post("/api/repos/create", body.clone());
    assert_eq!(
        (made.status, made.json()["url"].clone()),
        (200, json!(format!("{}/datasets/me/x", bench.hub.endpoint())))
    );
    let again = bench.post("/api/repos/create", body);
    assert!(again.status == 409 && again.json()["url"].is_string());
    assert_eq!(bench.get("/api/datasets/me/x").json()["private"], json!(true));
    assert_eq!(bench.post("/api/repos/create", json!({ "name": "x", "visibility": "private" })).status, 200);
    assert_eq!(bench.get("/api/models/me/x").json()["private"], json!(true));
    for (name, organization, status) in [("a--b", "me", 400), ("x", "other", 403)] {
        assert_eq!(
            bench.post("/api/repos/create", json!({ "name": name, "organization": organization })).status,
            status
        );
    }
    let body = json!({ "name": "x", "organization": "me", "type": "dataset" }).to_string();
    assert_eq!(bench.send("DELETE", "/api/repos/delete", Some(bench.hub.token()), body).status, 200);
    assert_eq!(bench.get("/api/datasets/me/x").status, 404);
}

#[test]
fn settings_and_new_names() {
    let bench = Bench::seeded();
    let body = json!({ "gated": "auto", "visibility": "private" }).to_string();
    assert_eq!(bench.send("PUT", "/api/models/me/tiny/settings", Some(bench.hub.token()), body).status, 200);
    let info = bench.get("/api/models/me/tiny").json();
    assert_eq!((&info["gated"], &info["private"]), (&json!("auto"), &json!(true)));
    let body = json!({ "fromRepo": "me/tiny", "toRepo": "me/new", "type": "model" });
    assert_eq!(bench.post("/api/repos/move", body).status, 200);
    let old = bench.get("/me/tiny/resolve/main/config.json");
    assert_eq!((old.status, old.header("location")), (307, "/me/new/resolve/main/config.json"));
    assert_eq!(bench.get(old.header("location")).body, b"{}");
}

#[test]
fn a_commit_adds_and_deletes() {
    let bench = Bench::seeded();
    let head = bench.hub.head(Kind::Model, "me/tiny", "main").unwrap();
    let lines = [
        file("new.txt", "new"),
        ("lfsFile", json!({ "path": "copy.safetensors", "algo": "sha256", "oid": sha256(&WEIGHTS) })),
        ("deletedFile", json!({ "path": "config.json" })),
        ("deletedFolder", json!({ "path": "sub/" })),
    ];
    let header = json!({ "summary": "many", "description": "why", "parentCommit": head });
    let answer = bench.commit(COMMIT, header, &lines);
    assert_eq!(answer.status, 200, "{answer:?}");
    let made = bench.hub.head(Kind::Model, "me/tiny", "main").unwrap();
    assert_eq!(answer.json()["commitOid"], json!(made));
    let paths = bench.hub.paths(Kind::Model, "me/tiny", "main").unwrap();
    assert_eq!(paths, [".gitattributes", "copy.safetensors", "model.safetensors", "new.txt"]);
    let last = bench.get("/api/models/me/tiny/commits/main").json();
    assert_eq!((&last[0]["title"], &last[0]["message"]), (&json!("many"), &json!("why")));
    assert_eq!(bench.hub.read(Kind::Model, "me/tiny", "main", "copy.safetensors").unwrap(), WEIGHTS);
}

#[test]
fn a_stale_parent_is_refused() {
    let bench = Bench::seeded();
    let head = bench.hub.head(Kind::Model, "me/tiny", "main").unwrap();
    let header = |summary: &str| json!({ "summary": summary, "parentCommit": head });
    assert_eq!(bench.commit(COMMIT, header("first"), &[file("a", "a")]).status, 200);
    assert_eq!(bench.commit(COMMIT, header("second"), &[file("b", "b")]).status, 412);
    assert_eq!(bench.hub.titles(Kind::Model, "me/tiny", "main").unwrap(), ["first", "Seed", "initial commit"]);
}

#[test]
fn commits_that_are_refused() {
    let bench = Bench::with(Options { lfs_threshold: 100, ..Options::default() });
    bench.seed();
    let refused = |line| bench.commit(COMMIT, json!({ "summary": "no" }), &[line]).status;
    for path in ["../x", "/x", "a//b", ".git/config", "a\\b", ""] {
        assert_eq!(refused(file(path, "x")), 400, "{path}");
    }
    assert_eq!(refused(file("large.txt", &"x".repeat(101))), 400);
    assert_eq!(refused(file("README.md", "---\ntags: [a\n---\n")), 400);
    assert_eq!(refused(("deletedFile", json!({ "path": "missing" }))), 404);
    assert_eq!(refused(("deletedFolder", json!({ "path": "config.json" }))), 404);
    assert_eq!(refused(("nonsense", json!({ "path": "x" }))), 400);
    assert_eq!(bench.send("POST", COMMIT, Some(bench.hub.token()), "{}").status, 400);
    assert_eq!(
        bench.commit("/api/models/me/tiny/commit/no", json!({ "summary": "x" }), &[]).refusal(),
        (404, "RevisionNotFound")
    );
    assert_eq!(bench.hub.titles(Kind::Model, "me/tiny", "main").unwrap(), ["Seed", "initial commit"]);
}

#[test]
fn preupload() {
    let bench = Bench::seeded();
    let file = |path: &str, size: u64, sample: &str| json!({ "path": path, "size": size, "sample": sample });
    let files = [
        file("config.json", 2, "e30="),
        file("model.safetensors", 5000, "BwcH"),
        file("big.txt", 11 << 20, "eA=="),
        file("binary", 3, "AAAA"),
        file("empty.bin", 0, ""),
        file("x.log", 1, "eA=="),
    ];
    let body = json!({ "files": files, "gitIgnore": "*.log\n" });
    let answer = bench.post("/api/models/me/tiny/preupload/main", body).json();
    assert_eq!(names(&answer["files"], "uploadMode"), ["regular", "lfs", "lfs", "lfs", "regular", "regular"]);
    let ignored: Vec<bool> = (0..6).map(|index| answer["files"][index]["shouldIgnore"] == json!(true)).collect();
    assert_eq!(ignored, [false, false, false, false, false, true]);
    assert_eq!(answer["files"][0]["oid"], json!("9e26dfeeb6e641a33dae4961196235bdb965b21b"));
    assert_eq!(answer["files"][1]["oid"], json!(sha256(&WEIGHTS)));
    assert!(answer["files"][2].get("oid").is_none());
    let many = vec![file("x", 1, ""); 257];
    assert_eq!(bench.post("/api/models/me/tiny/preupload/main", json!({ "files": many })).status, 400);
}

#[test]
fn large_files_enter_the_attributes() {
    let bench = Bench::seeded();
    let line = ("lfsFile", json!({ "path": "a big.json", "algo": "sha256", "oid": sha256(&WEIGHTS), "size": 5000 }));
    assert_eq!(bench.commit(COMMIT, json!({ "summary": "x" }), &[line]).status, 200);
    let attributes = bench.hub.read(Kind::Model, "me/tiny", "main", ".gitattributes").unwrap();
    assert!(String::from_utf8(attributes).unwrap().contains("a[[:space:]]big.json filter=lfs"));
}

#[test]
fn branches_and_tags() {
    let bench = Bench::seeded();
    let call = |method: &str, path: &str, body: &str| {
        let path = format!("/api/models/me/tiny/{path}");
        bench.send(method, &path, Some(bench.hub.token()), body.to_owned()).status
    };
    assert_eq!(call("POST", "branch/ckpt%2Fone", "{}"), 200);
    assert_eq!(call("POST", "branch/ckpt%2Fone", "{}"), 409);
    assert_eq!(call("POST", "branch/two", r#"{"startingPoint":"ckpt/one"}"#), 200);
    assert_eq!(call("POST", "branch/three", r#"{"startingPoint":"missing"}"#), 404);
    assert_eq!(call("POST", "branch/refs%2Fpr%2F1", "{}"), 400);
    assert_eq!(call("POST", "branch/a..b", "{}"), 400);
    assert_eq!(call("POST", "tag/main", r#"{"tag":"v1","message":"first"}"#), 200);
    assert_eq!(call("POST", "tag/main", r#"{"tag":"v1"}"#), 409);
    let head = bench.hub.head(Kind::Model, "me/tiny", "main").unwrap();
    assert_eq!(bench.hub.head(Kind::Model, "me/tiny", "v1").unwrap(), head, "an annotated tag leads to its commit");
    assert_eq!(bench.get("/api/models/me/tiny/refs").json()["tags"][0]["targetCommit"], json!(head));
    assert_eq!(call("DELETE", "tag/v1", ""), 200);
    assert_eq!(call("DELETE", "branch/ckpt%2Fone", ""), 200);
    assert_eq!(call("DELETE", "branch/ckpt%2Fone", ""), 404);
    assert_eq!(call("DELETE", "branch/main", ""), 403);
}

#[test]
fn pull_requests() {
    let bench = Bench::seeded();
    let stranger = bench.hub.issue("stranger", Role::Write);
    let head = bench.hub.head(Kind::Model, "me/tiny", "main").unwrap();
    let body = |text: &str| {
        let line = json!({ "key": "file", "value": { "path": "pr.txt", "content": text } });
        format!("{}\n{line}", json!({ "key": "header", "value": { "summary": "please" } }))
    };
    let opened = bench.send("POST", &format!("{COMMIT}?create_pr=1"), Some(&stranger), body("one"));
    assert_eq!(opened.json()["pullRequestUrl"], json!(format!("{}/me/tiny/discussions/1", bench.hub.endpoint())));
    assert_eq!(bench.hub.head(Kind::Model, "me/tiny", "main").unwrap(), head);
    assert_eq!(bench.get("/me/tiny/resolve/refs%2Fpr%2F1/pr.txt").body, b"one");
    let onto = "/api/models/me/tiny/commit/refs%2Fpr%2F1";
    assert_eq!(bench.send("POST", onto, Some(&stranger), body("two")).status, 200);
    let other = bench.hub.issue("other", Role::Write);
    assert_eq!(bench.send("POST", onto, Some(&other), body("three")).status, 403);
    assert_eq!(bench.send("POST", COMMIT, Some(&stranger), body("four")).status, 403);
    let list = bench.get("/api/models/me/tiny/discussions").json();
    assert_eq!(names(&list["discussions"], "title"), ["please"]);
    assert_eq!(bench.send("POST", "/api/models/me/tiny/discussions/1/merge", Some(&stranger), "{}").status, 403);
    assert_eq!(bench.post("/api/models/me/tiny/discussions/1/merge", json!({})).status, 200);
    assert_eq!(bench.hub.read(Kind::Model, "me/tiny", "main", "pr.txt").unwrap(), b"two");
    assert_eq!(bench.get("/api/models/me/tiny/discussions/1").json()["status"], json!("merged"));
}

#[test]
fn squashing() {
    let bench = Bench::seeded();
    let paths = bench.hub.paths(Kind::Model, "me/tiny", "main").unwrap();
    assert_eq!(bench.post("/api/models/me/tiny/super-squash/main", json!({ "message": "one" })).status, 200);
    assert_eq!(bench.hub.titles(Kind::Model, "me/tiny", "main").unwrap(), ["one"]);
    assert_eq!(bench.hub.paths(Kind::Model, "me/tiny", "main").unwrap(), paths);
}

#[test]
fn yaml_of_cards() {
    let bench = Bench::new();
    let validate = |content: &str| {
        let body = json!({ "repoType": "model", "content": content });
        let answer = bench.post("/api/validate-yaml", body);
        let count = |key: &str| answer.json()[key].as_array().unwrap().len();
        (answer.status, count("errors"), count("warnings"))
    };
    assert_eq!(validate("---\nlicense: mit\ntags: [a]\n---\n"), (200, 0, 0));
    assert_eq!(validate("no metadata"), (200, 0, 1));
    assert_eq!(validate("---\ntags: [a\n---\n").0, 400);
    assert_eq!(validate("---\ntags: {a: 1}\n---\n"), (400, 1, 0));
    let incomplete = "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: t}\n---\n";
    assert_eq!(validate(incomplete), (400, 2, 0));
}
