//! Xet when something goes wrong: nothing is lost, nothing is doubled.

use std::time::Duration;

use temper_hub::{Hub, PullOptions};
use temper_testhub::{Fault, Options, Role, Side, Trouble};

use crate::{
    bench::{Bench, pull_model, says},
    push::{commits, model_files, push_of},
    push_faults::{kill_a_push_at, landed_once, weights},
};

/// Chunks are sent in blocks, each with a grant, an upload and a commit; then the shard says which file they are.
const GRANTS: &str = "/v1/xorb-grants/*";
const BLOCKS: &str = "*/xorb-uploads/*";
const COMMITS: &str = "/v1/xorb-commits/*";
const SHARDS: &str = "*/shards";

fn bench() -> Bench {
    Bench::with(Options { lfs_threshold: 4096, xet: true, ..Options::default() })
}

#[test]
fn an_upload_that_is_cut_or_refused_is_sent_again() {
    for (path, trouble) in [
        (GRANTS, Trouble::Status(503)),
        (BLOCKS, Trouble::CutUpload(100)),
        (BLOCKS, Trouble::Status(503)),
        (BLOCKS, Trouble::LandedThenCut),
        (BLOCKS, Trouble::WrongUpload),
        (COMMITS, Trouble::Landed(502)),
        (SHARDS, Trouble::CutUpload(100)),
        (SHARDS, Trouble::Status(500)),
        (SHARDS, Trouble::Landed(502)),
        (SHARDS, Trouble::LandedThenCut),
    ] {
        let bench = bench();
        bench.server.fault(Fault::new("*", path, trouble.clone()).on(Side::Storage));
        let push = push_of(&bench, "me/x", 1, &model_files(&weights()));
        bench.hub().push(&push, &|_| {}).unwrap_or_else(|error| panic!("{path}, {trouble:?}: {error}"));
        landed_once(&bench);
    }
}

#[test]
fn a_storage_that_goes_on_failing_is_an_error_and_a_later_push_completes() {
    for (path, trouble, words) in [
        ("/v1/xorb*", Trouble::Status(503), ["through Xet storage", "HF_HUB_DISABLE_XET"]),
        (SHARDS, Trouble::Status(400), ["through Xet storage", "HF_HUB_DISABLE_XET"]),
        ("*/xet-write-token/*", Trouble::Status(403), ["upload files to", "refuses"]),
    ] {
        let bench = bench();
        bench.server.fault(Fault::new("*", path, trouble).times(100));
        let push = push_of(&bench, "me/x", 1, &model_files(&weights()));
        says(bench.hub().push(&push, &|_| {}), &words);
        assert_eq!(commits(&bench, "me/x"), 0, "{path}");
        bench.server.clear_faults();
        bench.hub().push(&push, &|_| {}).unwrap();
        landed_once(&bench);
    }
}

#[test]
fn a_token_of_the_storage_that_expires_is_renewed() {
    let bench = bench();
    bench.server.fault(Fault::new("POST", GRANTS, Trouble::TokenExpired).on(Side::Storage));
    let push = push_of(&bench, "me/x", 1, &model_files(&weights()));
    // Renewed, or refused in words: never a commit without its files.
    if let Err(error) = bench.hub().push(&push, &|_| {}) {
        assert!(error.to_string().contains("Xet") && commits(&bench, "me/x") == 0, "{error}");
        let fresh = bench.server.issue("me", Role::Write);
        Hub::new(bench.settings(Some(&fresh))).unwrap().push(&push, &|_| {}).unwrap();
    }
    landed_once(&bench);
}

#[test]
fn killed_while_pushing_over_xet() {
    for path in ["/xet-write-token/", "/xorb-uploads/", "/shards"] {
        let bench = bench();
        let push = push_of(&bench, "me/x", 1, &model_files(&weights()));
        bench.server.fault(Fault::new("*", &format!("*{path}*"), Trouble::Delay(Duration::from_millis(400))));
        kill_a_push_at(&bench, path);
        bench.server.clear_faults();
        bench.hub().push(&push, &|_| {}).unwrap();
        landed_once(&bench);
    }
}

#[test]
fn bytes_from_the_storage_are_verified_and_xet_alone_is_refused_in_words() {
    let bench = bench();
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights())];
    bench.hub().push(&push_of(&bench, "me/x", 1, &files), &|_| {}).unwrap();
    let wrong = || Fault::new("GET", "*model.safetensors", Trouble::WrongBytes).on(Side::Storage);
    bench.server.fault(wrong().times(2));
    says(pull_model(&bench.hub(), "me/x"), &["model.safetensors", "twice"]);
    bench.server.fault(Fault::new("GET", "*model.safetensors", Trouble::CutDownload(100_000)).on(Side::Storage));
    let whole = pull_model(&bench.hub(), "me/x").unwrap();
    assert_eq!(std::fs::read(whole.dir.join("model.safetensors")).unwrap(), weights());
    // A hub that names the Xet hash and no place on the web.
    let hub = Hub::new(temper_hub::Settings {
        cache: bench.settings(None).token_file,
        ..bench.settings(Some(bench.server.token()))
    });
    let nowhere = Trouble::Header("location".into(), "http://".into());
    bench.server.fault(Fault::new("GET", "*/resolve/*/model.safetensors", nowhere).times(9).on(Side::Hub));
    let hub = hub.unwrap();
    let pinned = hub.pin(&"me/x".parse().unwrap()).unwrap();
    says(hub.pull_model(&pinned, &PullOptions::default(), &|_| {}), &["Xet storage alone"]);
}
