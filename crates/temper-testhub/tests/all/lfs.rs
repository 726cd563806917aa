//! Git LFS: one piece, parts, and what is refused.

use serde_json::{Value, json};
use temper_testhub::{Kind, Options};

use crate::{Bench, WEIGHTS, sha256};

/// The answer of the batch endpoint for one file.
pub(crate) fn batch(bench: &Bench, sha256: &str, size: usize, transfers: &[&str]) -> Value {
    let body = json!({
        "operation": "upload", "transfers": transfers, "objects": [{ "oid": sha256, "size": size }],
        "hash_algo": "sha256", "ref": { "name": "main" },
    });
    let answer = bench.post("/me/tiny.git/info/lfs/objects/batch", body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn in_one_piece() {
    let bench = Bench::seeded();
    let content = vec![1; 3000];
    let oid = sha256(&content);
    let answer = batch(&bench, &oid, 3000, &["basic", "multipart"]);
    assert_eq!(answer["transfer"], json!("basic"));
    let actions = &answer["objects"][0]["actions"];
    let (upload, verify) = (actions["upload"]["href"].as_str().unwrap(), actions["verify"]["href"].as_str().unwrap());
    assert!(upload.starts_with(bench.hub.storage()));
    assert_eq!(bench.post(verify, json!({ "oid": oid, "size": 3000 })).status, 404);
    assert_eq!(bench.send("PUT", upload, None, vec![2; 3000]).status, 400, "another content");
    assert_eq!(bench.send("PUT", upload, None, content.clone()).status, 200);
    assert_eq!(bench.post(verify, json!({ "oid": oid, "size": 3000 })).status, 200);
    assert_eq!(bench.post(verify, json!({ "oid": oid, "size": 3001 })).status, 404);
    assert!(batch(&bench, &oid, 3000, &["basic"])["objects"][0].get("actions").is_none(), "already there");
    let line = ("lfsFile", json!({ "path": "x.bin", "algo": "sha256", "oid": oid, "size": 3000 }));
    assert_eq!(bench.commit("/api/models/me/tiny/commit/main", json!({ "summary": "x" }), &[line]).status, 200);
    assert_eq!(bench.hub.read(Kind::Model, "me/tiny", "main", "x.bin").unwrap(), content);
}

#[test]
fn in_parts() {
    let bench = Bench::with(Options { multipart_threshold: 1000, part_bytes: 1200, ..Options::default() });
    bench.seed();
    let content: Vec<u8> = (0..3000).map(|index| (index % 251) as u8).collect();
    let oid = sha256(&content);
    let answer = batch(&bench, &oid, 3000, &["basic", "multipart"]);
    assert_eq!(answer["transfer"], json!("multipart"));
    let upload = &answer["objects"][0]["actions"]["upload"];
    assert_eq!(upload["header"]["chunk_size"], json!("1200"));
    let put = |part: usize| {
        let bytes = content[(part - 1) * 1200..(part * 1200).min(3000)].to_vec();
        let href = upload["header"][part.to_string()].as_str().unwrap();
        let answer = bench.send("PUT", href, None, bytes);
        json!({ "partNumber": part, "etag": answer.header("etag") })
    };
    let parts = [put(1), put(2), put(3)];
    let href = upload["href"].as_str().unwrap();
    let finish =
        |parts: &[Value]| bench.send("POST", href, None, json!({ "oid": oid, "parts": parts }).to_string()).status;
    assert_eq!(finish(&parts[..2]), 400);
    assert_eq!(finish(&[parts[1].clone(), parts[0].clone(), parts[2].clone()]), 400);
    assert_eq!(finish(&parts), 200);
    assert!(batch(&bench, &oid, 3000, &["basic"])["objects"][0].get("actions").is_none());
    let basic = batch(&bench, &"0".repeat(64), 3000, &["basic"]);
    assert_eq!(basic["transfer"], json!("basic"), "a client that knows no parts gets none");
}

#[test]
fn downloads_by_batch() {
    let bench = Bench::seeded();
    let objects = json!([{ "oid": sha256(&WEIGHTS), "size": 5000 }, { "oid": "0".repeat(64), "size": 1 }]);
    let body = json!({ "operation": "download", "transfers": ["basic"], "objects": objects });
    let answer = bench.post("/me/tiny.git/info/lfs/objects/batch", body).json();
    let href = answer["objects"][0]["actions"]["download"]["href"].as_str().unwrap();
    assert_eq!(bench.send("GET", href, None, "").body, WEIGHTS);
    assert_eq!(answer["objects"][1]["error"]["code"], json!(404));
}

#[test]
fn a_commit_needs_the_object() {
    let bench = Bench::seeded();
    let line = ("lfsFile", json!({ "path": "x.bin", "algo": "sha256", "oid": "0".repeat(64), "size": 3000 }));
    let refused = bench.commit("/api/models/me/tiny/commit/main", json!({ "summary": "x" }), &[line]);
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains("x.bin"));
}
