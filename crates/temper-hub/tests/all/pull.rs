//! Pulling as it should be.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use temper_hub::{DataRequest, Hub, Limits, PullOptions, Reference, RepoId, Verify};
use temper_testhub::{Gated, Kind, Logged, Options, Role, Side};

use crate::bench::{Bench, noise, pull_all, pull_model, says, walk};

#[test]
fn a_model_lands_in_pythons_layout() {
    let bench = Bench::new();
    let commit = bench.seed_model("lab/tiny");
    let last = AtomicU64::new(0);
    let hub = bench.hub();
    let pinned = hub.pin(&"lab/tiny".parse().unwrap()).unwrap();
    assert_eq!((pinned.commit.as_str(), pinned.revision.as_str()), (commit.as_str(), "main"));
    let report = |progress: temper_hub::Progress| {
        last.fetch_max(progress.bytes, Ordering::Relaxed);
        assert!(progress.bytes <= progress.total && progress.of_files == 4);
    };
    let snapshot = hub.pull_model(&pinned, &PullOptions::default(), &report).unwrap();
    assert_eq!(last.into_inner(), snapshot.fetched + snapshot.cached);
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), noise(700_000, 7));
    let folder = bench.folder("models--lab--tiny");
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), commit);
    let weights = snapshot.files.iter().find(|file| file.path == "model.safetensors").unwrap();
    let pointer = folder.join("snapshots").join(&commit).join("model.safetensors");
    assert_eq!(weights.local, pointer);
    assert_eq!(fs::read_link(&pointer).unwrap().to_str().unwrap(), format!("../../blobs/{}", weights.hash));
    assert_eq!(weights.hash.len(), 64);
    let config = snapshot.files.iter().find(|file| file.path == "config.json").unwrap();
    assert_eq!(config.hash.len(), 40);
    assert!(folder.join(".no_exist").join(&commit).join("adapter_config.json").exists());
    assert!(folder.join(format!("trees/{commit}.json")).exists());
    assert!(!walk(&folder).iter().any(|name| name.contains("incomplete") || name.contains(".tmp")));
    // A second pull fetches nothing.
    bench.server.clear_requests();
    let again = pull_model(&hub, &format!("lab/tiny@{commit}")).unwrap();
    assert_eq!((again.fetched, again.dir), (0, snapshot.dir));
    assert!(bench.server.requests().iter().all(|request| !request.path.contains("/resolve/")));
}

#[test]
fn revisions_directories_and_strange_names() {
    let bench = Bench::new();
    let repo = RepoId::dataset("lab/data").unwrap();
    let odd = "data/été [1] #2 100%.csv";
    bench.server.seed(Kind::Dataset, "lab/data", &[(odd, "a,b\n1,2\n"), ("empty.txt", "")]).unwrap();
    let snapshot = pull_all(&bench.hub(), repo.clone()).unwrap();
    assert_eq!(fs::read_to_string(snapshot.dir.join(odd)).unwrap(), "a,b\n1,2\n");
    let pr =
        bench.server.seed_on(Kind::Dataset, "lab/data", "refs/convert/parquet", &[("x/0.parquet", "PAR1")]).unwrap();
    let pinned = bench.hub().pin(&Reference::dataset("lab/data@refs/convert/parquet").unwrap()).unwrap();
    assert_eq!(pinned.commit.as_str(), pr);
    let hub = bench.hub();
    let listing = hub.list(&pinned).unwrap();
    let files = listing.select(&["x/"], &[]).unwrap();
    let snapshot = hub.pull(&listing, &files, &PullOptions::default(), &|_| {}).unwrap();
    assert_eq!(fs::read_to_string(&snapshot.files[0].local).unwrap(), "PAR1");
    assert_eq!(fs::read_to_string(bench.folder("datasets--lab--data/refs/refs/convert/parquet")).unwrap(), pr);
}

#[test]
fn long_lists_have_pages() {
    let bench = Bench::with(Options { page: 7, ..Options::default() });
    let names: Vec<String> = (0..40).map(|n| format!("d{}/f{n}.txt", n % 3)).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    bench.server.seed(Kind::Model, "lab/many", &files).unwrap();
    let snapshot = pull_all(&bench.hub(), RepoId::model("lab/many").unwrap()).unwrap();
    assert!(snapshot.files.len() >= 40);
}

#[test]
fn shards_come_by_the_index_and_pickles_never() {
    let bench = Bench::new();
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let files = [
        ("config.json", "{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", "one"),
        ("model-2.safetensors", "two"),
        ("model-3.safetensors", "not named"),
        ("pytorch_model.bin", "pickle"),
    ];
    bench.server.seed(Kind::Model, "lab/shards", &files).unwrap();
    let snapshot = pull_model(&bench.hub(), "lab/shards").unwrap();
    let names: Vec<_> = snapshot.files.iter().map(|file| file.path.as_str()).collect();
    let expected = ["config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"];
    assert_eq!(names, expected);
    for (id, shard) in
        [("lab/out", "../x.safetensors"), ("lab/gone", "model-9.safetensors"), ("lab/bin", "pytorch_model.bin")]
    {
        let index = format!("{{\"weight_map\": {{\"a\": {shard:?}}}}}");
        let files = [("model.safetensors.index.json", index.as_str()), ("pytorch_model.bin", "x")];
        bench.server.seed(Kind::Model, id, &files).unwrap();
        says(pull_model(&bench.hub(), id), &[shard, "model.safetensors.index.json"]);
    }
    bench.server.seed(Kind::Model, "lab/pickle", &[("config.json", "{}"), ("pytorch_model.bin", "x")]).unwrap();
    says(pull_model(&bench.hub(), "lab/pickle"), &["pytorch_model.bin", "safetensors/convert", "refs/pr/"]);
    bench.server.seed(Kind::Model, "lab/none", &[("config.json", "{}")]).unwrap();
    says(pull_model(&bench.hub(), "lab/none"), &["lab/none", "no model.safetensors"]);
    let code = [("config.json", r#"{"auto_map": {"AutoModel": "m.M"}}"#), ("model.safetensors", "x")];
    bench.server.seed(Kind::Model, "lab/code", &code).unwrap();
    says(pull_model(&bench.hub(), "lab/code"), &["auto_map", "never"]);
}

#[test]
fn each_refusal_has_its_message() {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    let (me, nobody) = (bench.hub(), bench.anonymous());
    says(pull_model(&me, "lab/missing"), &["find lab/missing", "spelling"]);
    says(pull_model(&nobody, "lab/missing"), &["find lab/missing", "HF_TOKEN"]);
    says(pull_model(&me, "lab/tiny@v9"), &["revision \"v9\"", "main"]);
    let pinned = me.pin(&"lab/tiny".parse().unwrap()).unwrap();
    says(me.list(&pinned).unwrap().select(&["x.json"], &[]), &["x.json", "config.json"]);
    let wrong = bench.settings(Some("hf_wrongwrongwrongwrongWRNG"));
    let message =
        says(pull_model(&Hub::new(wrong).unwrap(), "lab/tiny"), &["invalid or has expired", "temper hub login"]);
    assert!(!message.contains("hf_wrong"), "{message}");
    bench.server.seed(Kind::Model, "other/secret", &[("model.safetensors", "x")]).unwrap();
    bench.server.set_private(Kind::Model, "other/secret", true).unwrap();
    says(pull_model(&nobody, "other/secret"), &["find other/secret", "HF_TOKEN"]);
    bench.server.seed(Kind::Model, "other/gated", &[("model.safetensors", "x")]).unwrap();
    bench.server.set_gated(Kind::Model, "other/gated", Gated::Auto).unwrap();
    says(pull_model(&nobody, "other/gated"), &["terms", "HF_TOKEN"]);
    says(pull_model(&me, "other/gated"), &["terms", "/other/gated"]);
    bench.server.grant(Kind::Model, "other/gated", "me").unwrap();
    pull_model(&me, "other/gated").unwrap();
}

#[test]
fn limits_are_checked_before_the_first_byte() {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    let hub = bench.hub();
    let listing = hub.list(&hub.pin(&"lab/tiny".parse().unwrap()).unwrap()).unwrap();
    bench.server.clear_requests();
    for limits in [
        Limits { file: 600_000, ..Limits::default() },
        Limits { total: 600_000, ..Limits::default() },
        Limits { files: 2, ..Limits::default() },
    ] {
        let options = PullOptions { limits, ..PullOptions::default() };
        says(hub.pull(&listing, &listing.files, &options, &|_| {}), &["limit"]);
    }
    assert!(bench.server.requests().is_empty());
    let mut huge = listing.files.clone();
    huge[0].size = 1 << 50;
    huge[0].blob = "0".repeat(40);
    let limits = Limits { file: u64::MAX, total: u64::MAX, files: 10 };
    let options = PullOptions { limits, ..PullOptions::default() };
    says(hub.pull(&listing, &huge, &options, &|_| {}), &["bytes are free", "HF_HUB_CACHE"]);
    assert!(bench.server.requests().is_empty());
}

#[test]
fn offline_answers_from_the_cache_or_names_what_is_missing() {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    says(pull_model(&bench.offline(), "lab/tiny"), &["offline", "HF_HUB_OFFLINE"]);
    let online = pull_model(&bench.hub(), "lab/tiny").unwrap();
    bench.server.clear_requests();
    let offline = pull_model(&bench.offline(), "lab/tiny").unwrap();
    assert_eq!((offline.dir, offline.fetched), (online.dir.clone(), 0));
    fs::remove_file(online.dir.join("model.safetensors").canonicalize().unwrap()).unwrap();
    says(pull_model(&bench.offline(), "lab/tiny"), &["model.safetensors"]);
    assert!(bench.server.requests().is_empty());
}

#[test]
fn offline_a_model_that_python_fetched_is_there_without_a_list() {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    let online = pull_model(&bench.hub(), "lab/tiny").unwrap();
    fs::remove_dir_all(bench.folder("models--lab--tiny/trees")).unwrap();
    assert_eq!(pull_model(&bench.offline(), "lab/tiny").unwrap().dir, online.dir);
    fs::remove_file(online.dir.join("model.safetensors")).unwrap();
    let listing = bench.offline().list(&bench.offline().pin(&"lab/tiny".parse().unwrap()).unwrap()).unwrap();
    assert!(listing.file("config.json").is_some() && listing.file("model.safetensors").is_none());
}

#[test]
fn a_spoilt_cache_is_found_and_mended() {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    let hub = bench.hub();
    let blob = pull_model(&hub, "lab/tiny").unwrap().dir.join("model.safetensors").canonicalize().unwrap();
    let spoil = |content: &[u8]| fs::write(&blob, content).unwrap();
    let is_right = || fs::read(&blob).unwrap() == noise(700_000, 7);
    spoil(b"short");
    assert_eq!(pull_model(&hub, "lab/tiny").unwrap().fetched, 700_000);
    assert!(is_right());
    // The same size; the time of change tells.
    spoil(&noise(700_000, 8));
    assert_eq!(pull_model(&hub, "lab/tiny").unwrap().fetched, 700_000);
    assert!(is_right());
    // Neither size nor time tell: only hashing does.
    let time = fs::metadata(&blob).unwrap().modified().unwrap();
    spoil(&noise(700_000, 9));
    fs::File::options().write(true).open(&blob).unwrap().set_modified(time).unwrap();
    let pinned = hub.pin(&"lab/tiny".parse().unwrap()).unwrap();
    let always = PullOptions { verify: Verify::Always, ..PullOptions::default() };
    assert_eq!(hub.pull_model(&pinned, &always, &|_| {}).unwrap().fetched, 700_000);
    assert!(is_right());
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    pull_model(&bench.hub(), "lab/tiny").unwrap();
    let requests = bench.server.requests();
    let stored: Vec<_> = requests.iter().filter(|request| request.side == temper_testhub::Side::Storage).collect();
    assert!(!stored.is_empty() && stored.iter().all(|request| !request.authorized()));
    let token = temper_hub::Token::new("hf_x").unwrap();
    let plain = temper_hub::Settings::given("http://hub.example.com", Some(token), bench.home.path()).unwrap();
    says(Hub::new(plain), &["in the clear", "https://"]);
    let reader = bench.server.issue("you", Role::Read);
    pull_model(&Hub::new(bench.settings(Some(&reader))).unwrap(), "lab/tiny").unwrap();
}

#[test]
fn data_files_of_a_dataset() {
    let bench = Bench::new();
    let readme = "---\nlicense: cc-by-4.0\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: a/*.csv\n---\n";
    let files = [("README.md", readme), ("a/1.csv", "x\n1\n"), ("a/2.csv", "x\n2\n"), ("b/1.csv", "x\n3\n")];
    let commit = bench.server.seed(Kind::Dataset, "lab/data", &files).unwrap();
    let hub = bench.hub();
    let reference = Reference::dataset("hf://datasets/lab/data").unwrap();
    let request = DataRequest { path: reference.path.clone(), ..DataRequest::default() };
    let pinned = hub.pin(&reference).unwrap();
    let options = PullOptions::default();
    let data = hub.data_files(&pinned, &request, &options).unwrap();
    assert_eq!((data.config.as_str(), data.license.as_deref()), ("a", Some("cc-by-4.0")));
    assert_eq!(data.listing.pinned.commit.as_str(), commit);
    let fetched = |part: &str| bench.server.requests().iter().any(|request| request.path.contains(part));
    assert!(!fetched("a/1.csv"), "choosing fetches no data");
    let snapshot = hub.pull(&data.listing, &data.files(), &options, &|_| {}).unwrap();
    let names: Vec<_> = snapshot.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["a/1.csv", "a/2.csv"]);
    assert!(!fetched("b/1.csv"));
    assert_eq!(bench.offline().data_files(&pinned, &request, &options).unwrap().splits, data.splits);
}

/// A safetensors file of one tensor of zeros, whose header is `padding` bytes longer than need be.
fn safetensors(numbers: usize, padding: usize) -> Vec<u8> {
    let header = format!("{{\"w\":{{\"dtype\":\"F32\",\"shape\":[{numbers}],\"data_offsets\":[0,{}]}}}}", 4 * numbers);
    let header = header + &" ".repeat(padding);
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0; 4 * numbers]].concat()
}

#[test]
fn a_sketch_has_the_headers_of_weights_and_not_the_weights() {
    let bench = Bench::new();
    for (id, padding) in [("org/short", 0), ("org/long", 300_000)] {
        let weights = safetensors(500_000, padding);
        let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
        bench.server.seed(Kind::Model, id, &files).unwrap();
        let hub = bench.hub();
        let pinned = hub.pin(&id.parse().unwrap()).unwrap();
        let model = hub.model_files(&pinned, &PullOptions::default()).unwrap();
        assert!(!hub.has_model(&model));
        bench.server.clear_requests();
        let dir = tempfile::tempdir().unwrap();
        hub.sketch(&model, dir.path()).unwrap();
        let asked = bench.server.requests();
        let stored: Vec<_> = asked.iter().filter(|request| request.side == Side::Storage).collect();
        let last = |range: &str| range.rsplit('-').next().and_then(|last| last.parse::<usize>().ok());
        let short = |request: &&Logged| {
            request.header("range").and_then(last).is_some_and(|last| last <= 100_000 + 2 * padding)
        };
        assert!(!stored.is_empty() && stored.iter().all(short), "{stored:?}");
        let sketch = fs::read(dir.path().join("model.safetensors")).unwrap();
        let header = weights.len() - 2_000_000;
        assert!(sketch.len() == weights.len() && sketch[..header] == weights[..header]);
        assert_eq!(fs::read(dir.path().join("config.json")).unwrap(), b"{}");
        // What comes later must be of the same header.
        let whole = hub.pull(&model.listing, &model.files, &PullOptions::default(), &|_| {}).unwrap();
        assert!(hub.has_model(&model));
        hub.is_of(&model, dir.path(), &whole.dir).unwrap();
        let mut other = sketch;
        other[10] ^= 1;
        fs::write(dir.path().join("model.safetensors"), other).unwrap();
        says(hub.is_of(&model, dir.path(), &whole.dir), &["model.safetensors", "planned with"]);
    }
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &[255; 9000])];
    bench.server.seed(Kind::Model, "org/none", &files).unwrap();
    let hub = bench.hub();
    let pinned = hub.pin(&"org/none".parse().unwrap()).unwrap();
    let model = hub.model_files(&pinned, &PullOptions::default()).unwrap();
    says(hub.sketch(&model, tempfile::tempdir().unwrap().path()), &["safetensors"]);
}
