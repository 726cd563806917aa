//! Listings, facts and files.

use serde_json::json;
use temper_testhub::{Kind, Options};

use crate::{Bench, WEIGHTS, names, sha256};

#[test]
fn whoami() {
    let bench = Bench::new();
    bench.hub.join("lab", "me", true);
    let me = bench.get("/api/whoami-v2").json();
    assert_eq!((me["name"].as_str(), me["auth"]["accessToken"]["role"].as_str()), (Some("me"), Some("write")));
    assert_eq!(names(&me["orgs"], "name"), ["lab"]);
}

#[test]
fn info_of_a_repository() {
    let bench = Bench::seeded();
    let head = bench.hub.head(Kind::Model, "me/tiny", "main").unwrap();
    let info = bench.get("/api/models/me/tiny?blobs=true").json();
    assert_eq!(info["sha"], json!(head));
    assert!(info["_id"].is_string() && info["lastModified"].as_str().unwrap().ends_with(".000Z"));
    let siblings = info["siblings"].as_array().unwrap();
    let large = siblings.iter().find(|file| file["rfilename"] == "model.safetensors").unwrap();
    assert_eq!(large["lfs"]["sha256"], json!(sha256(&WEIGHTS)));
    assert_eq!((large["size"].as_u64(), large["lfs"]["pointerSize"].as_u64()), (Some(5000), Some(129)));
    assert_eq!(bench.get(&format!("/api/models/me/tiny/revision/{head}")).json()["sha"], json!(head));
    assert!(bench.get("/api/models/me/tiny").json()["siblings"][0].get("size").is_none());
    let expanded = bench.get("/api/models/me/tiny?expand[]=likes").json();
    assert!(expanded.get("likes").is_some() && expanded.get("siblings").is_none());
}

#[test]
fn trees_come_in_pages() {
    let bench = Bench::with(Options { page: 2, ..Options::default() });
    bench.seed();
    let first = bench.get("/api/models/me/tiny/tree/main?recursive=True");
    assert_eq!(names(&first.json(), "path"), [".gitattributes", "config.json"]);
    let link = first.header("link").trim_start_matches('<').split('>').next().unwrap().to_owned();
    let second = bench.get(&link);
    assert_eq!(names(&second.json(), "path"), ["model.safetensors", "sub"]);
    let link = second.header("link").trim_start_matches('<').split('>').next().unwrap().to_owned();
    let last = bench.get(&link);
    assert_eq!(names(&last.json(), "path"), ["sub/a.txt"]);
    assert_eq!(last.header("link"), "");
}

#[test]
fn trees_of_directories() {
    let bench = Bench::seeded();
    let top = bench.get("/api/models/me/tiny/tree/main").json();
    assert_eq!(names(&top, "path"), [".gitattributes", "config.json", "model.safetensors", "sub"]);
    assert_eq!(names(&top, "type"), ["file", "file", "file", "directory"]);
    assert_eq!(top[2]["lfs"]["oid"], json!(sha256(&WEIGHTS)));
    let below = bench.get("/api/models/me/tiny/tree/main/sub?expand=true").json();
    assert_eq!(names(&below, "path"), ["sub/a.txt"]);
    assert_eq!(below[0]["lastCommit"]["title"], json!("Seed"));
    assert_eq!(bench.get("/api/models/me/tiny/tree/main/nowhere").refusal(), (404, "EntryNotFound"));
}

#[test]
fn paths_by_json_and_by_form() {
    let bench = Bench::seeded();
    let path = "/api/models/me/tiny/paths-info/main";
    let token = Some(bench.hub.token());
    let json =
        bench.try_send("POST", path, token, &[("content-type", "application/json")], r#"{"paths":["sub","no"]}"#);
    assert_eq!(names(&json.unwrap().json(), "path"), ["sub"]);
    let form = bench.send("POST", path, token, "paths=config.json&paths=sub%2Fa.txt&expand=False");
    assert_eq!(names(&form.json(), "path"), ["config.json", "sub/a.txt"]);
}

#[test]
fn refs_and_commits() {
    let bench = Bench::seeded();
    bench.hub.seed_on(Kind::Model, "me/tiny", "refs/convert/parquet", &[("x", b"x")]).unwrap();
    let refs = bench.get("/api/models/me/tiny/refs?include_prs=1").json();
    assert_eq!(names(&refs["branches"], "ref"), ["refs/heads/main"]);
    assert_eq!(names(&refs["converts"], "name"), ["parquet"]);
    assert_eq!(refs["pullRequests"], json!([]));
    let commits = bench.get("/api/models/me/tiny/commits/main").json();
    assert_eq!(names(&commits, "title"), ["Seed", "initial commit"]);
    assert_eq!(commits[0]["authors"][0]["user"], json!("testhub"));
    assert_eq!(bench.get("/api/models/me/tiny/commits/refs%2Fconvert%2Fparquet").json().as_array().unwrap().len(), 3);
}

#[test]
fn small_files() {
    let bench = Bench::seeded();
    let path = "/me/tiny/resolve/main/config.json";
    let head = bench.head(path);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "2", 0));
    assert_eq!(head.header("etag"), "\"9e26dfeeb6e641a33dae4961196235bdb965b21b\"");
    assert_eq!(head.header("x-repo-commit"), bench.hub.head(Kind::Model, "me/tiny", "main").unwrap());
    assert_eq!(bench.get(path).body, b"{}");
    let with = |name, value| bench.try_send("GET", path, None, &[(name, value)], "").unwrap();
    assert_eq!(with("if-none-match", head.header("etag")).status, 304);
    let part = with("range", "bytes=1-");
    assert_eq!((part.status, part.header("content-range"), part.body.as_slice()), (206, "bytes 1-1/2", &b"}"[..]));
    assert_eq!(with("range", "bytes=5-").status, 416);
}

#[test]
fn large_files_lie_on_another_host() {
    let bench = Bench::seeded();
    let head = bench.head("/me/tiny/resolve/main/model.safetensors");
    assert_eq!((head.status, head.header("x-linked-size")), (302, "5000"));
    assert_eq!(head.header("x-linked-etag"), format!("\"{}\"", sha256(&WEIGHTS)));
    assert_eq!(head.header("x-repo-commit").len(), 40);
    let location = head.header("location");
    assert!(location.starts_with(bench.hub.storage()));
    let whole = bench.send("GET", location, None, "");
    assert_eq!((whole.status, whole.body.as_slice()), (200, &WEIGHTS[..]));
    let part = bench.try_send("GET", location, None, &[("range", "bytes=4990-")], "").unwrap();
    assert_eq!((part.status, part.body.len()), (206, 10));
}

#[test]
fn small_files_by_redirect() {
    let bench = Bench::with(Options { resolve_cache: true, ..Options::default() });
    bench.seed();
    let front = bench.get("/me/tiny/resolve/main/sub/a.txt");
    assert_eq!((front.status, front.header("x-linked-size")), (307, "1"));
    assert!(front.header("location").starts_with("/api/resolve-cache/models/me/tiny/"));
    let behind = bench.get(front.header("location"));
    assert_eq!((behind.status, behind.body.as_slice()), (200, &b"a"[..]));
    assert_eq!(behind.header("x-repo-commit"), front.header("x-repo-commit"));
}

#[test]
fn what_is_missing() {
    let bench = Bench::seeded();
    assert_eq!(bench.get("/me/tiny/resolve/main/no").refusal(), (404, "EntryNotFound"));
    assert_eq!(bench.get("/me/tiny/resolve/main/no").header("x-repo-commit").len(), 40);
    assert_eq!(bench.get("/me/tiny/resolve/no/config.json").refusal(), (404, "RevisionNotFound"));
    assert_eq!(bench.get("/api/models/me/tiny/tree/no").refusal(), (404, "RevisionNotFound"));
    assert_eq!(bench.get("/api/models/me/no").refusal(), (404, "RepoNotFound"));
    assert_eq!(bench.get("/api/datasets/me/tiny").refusal(), (404, "RepoNotFound"));
    assert_eq!(bench.get("/nonsense").status, 404);
}

#[test]
fn repositories_without_an_owner() {
    let bench = Bench::new();
    bench.hub.seed(Kind::Model, "gpt2", &[("config.json", b"{}")]).unwrap();
    assert_eq!(bench.get("/api/models/gpt2").json()["id"], json!("gpt2"));
    assert_eq!(bench.get("/gpt2/resolve/main/config.json").body, b"{}");
    assert_eq!(names(&bench.get("/api/models/gpt2/tree/main").json(), "path"), [".gitattributes", "config.json"]);
}

#[test]
fn search() {
    let bench = Bench::seeded();
    let card = "---\nlicense: mit\npipeline_tag: text-classification\ntags: [lora]\n---\n";
    bench.hub.seed(Kind::Model, "lab/bert-small", &[("README.md", card), ("config.json", "{}")]).unwrap();
    bench.hub.seed(Kind::Model, "lab/hidden", &[("config.json", b"{}")]).unwrap();
    bench.hub.set_private(Kind::Model, "lab/hidden", true).unwrap();
    bench.hub.set_popularity(Kind::Model, "lab/bert-small", 10, 1).unwrap();
    let find = |query: &str| names(&bench.get(&format!("/api/models?{query}")).json(), "id");
    assert_eq!(find("sort=downloads"), ["lab/bert-small", "me/tiny"]);
    assert_eq!(find("search=BERT"), ["lab/bert-small"]);
    assert_eq!(find("author=me"), ["me/tiny"]);
    assert_eq!(find("pipeline_tag=text-classification&filter=lora&filter=license:mit"), ["lab/bert-small"]);
    assert!(find("filter=absent").is_empty());
    let page = bench.get("/api/models?limit=1");
    assert!(page.json().as_array().unwrap().len() == 1 && page.header("link").contains("cursor=1"));
    let full = bench.get("/api/models?search=bert&full=True").json();
    assert_eq!(full[0]["cardData"]["license"], json!("mit"));
}

#[test]
fn parquet_of_a_dataset() {
    let bench = Bench::new();
    bench.hub.seed(Kind::Dataset, "lab/data", &[("train.csv", b"a,b\n")]).unwrap();
    assert_eq!(bench.get("/api/datasets/lab/data/parquet").refusal(), (404, "RevisionNotFound"));
    let file: [(&str, &[u8]); 1] = [("default/train/0000.parquet", b"PAR1")];
    bench.hub.seed_on(Kind::Dataset, "lab/data", "refs/convert/parquet", &file).unwrap();
    let listing = bench.get("/api/datasets/lab/data/parquet").json();
    let url = listing["default"]["train"][0].as_str().unwrap();
    let there = bench.get(url);
    assert_eq!(there.status, 302);
    assert_eq!(bench.get(there.header("location")).status, 302);
    assert_eq!(bench.get("/api/datasets/lab/data/parquet/default/train").json(), json!([url]));
}
