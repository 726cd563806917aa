//! Pushing when something goes wrong: nothing is lost, nothing is doubled.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use temper_hub::{Hub, Push, Settings, Token};
use temper_testhub::{Fault, Kind, Options, Trouble};

use crate::{
    bench::{Bench, noise, says},
    push::{commits, model_files, push_of, uploaded},
};

const COMMIT: &str = "*/commit/*";

pub fn weights() -> Vec<u8> {
    noise(300_000, 1)
}

pub fn landed_once(bench: &Bench) {
    assert_eq!(commits(bench, "me/x"), 1);
    assert_eq!(bench.server.read(Kind::Model, "me/x", "main", "adapter_model.safetensors").unwrap(), weights());
    assert_eq!(bench.server.pending_faults(), 0, "a fault was not met");
}

fn push(bench: &Bench) -> Push {
    push_of(bench, "me/x", 1, &model_files(&weights()))
}

#[test]
fn an_answer_that_was_lost_after_the_commit_landed() {
    for trouble in [Trouble::Landed(504), Trouble::Landed(500), Trouble::Landed(502), Trouble::LandedThenCut] {
        let bench = Bench::new();
        bench.server.fault(Fault::new("POST", COMMIT, trouble.clone()));
        let pushed = bench.hub().push(&push(&bench), &|_| {}).unwrap();
        landed_once(&bench);
        assert_eq!(pushed.commit.as_str(), bench.server.head(Kind::Model, "me/x", "main").unwrap(), "{trouble:?}");
        let posts = bench.server.requests().iter().filter(|request| request.path.contains("/commit/")).count();
        assert_eq!(posts, 1, "{trouble:?}: the commit was sent again");
    }
}

#[test]
fn a_commit_that_did_not_land_is_sent_again_after_looking() {
    for trouble in [Trouble::Status(504), Trouble::Status(503), Trouble::CutUpload(10)] {
        let bench = Bench::new();
        bench.server.fault(Fault::new("POST", COMMIT, trouble));
        bench.hub().push(&push(&bench), &|_| {}).unwrap();
        landed_once(&bench);
        let paths: Vec<_> = bench.server.requests().iter().map(|request| request.path.clone()).collect();
        let at = |what: &str| paths.iter().rposition(|path| path.contains(what)).unwrap();
        assert!(paths.iter().position(|path| path.contains("/commits/")).unwrap() < at("/commit/"));
    }
}

#[test]
fn when_it_cannot_be_known_the_next_run_finds_out() {
    let bench = Bench::new();
    bench.server.fault(Fault::new("POST", COMMIT, Trouble::Landed(504)));
    bench.server.fault(Fault::new("GET", "*/commits/*", Trouble::Status(503)).times(3));
    says(bench.hub().push(&push(&bench), &|_| {}), &["whether the commit", "temper push", "doubles nothing"]);
    let again = bench.hub().push(&push(&bench), &|_| {}).unwrap();
    assert!(again.was_there);
    landed_once(&bench);
}

#[test]
fn somebody_elses_commit_is_built_upon() {
    let bench = Bench::new();
    let hub = bench.hub();
    hub.prepare(&push(&bench).target).unwrap();
    let old = bench.server.head(Kind::Model, "me/x", "main").unwrap();
    bench.server.seed(Kind::Model, "me/x", &[("theirs.txt", "theirs")]).unwrap();
    // The branch looks as it was before their commit.
    let stale = move |refs: &mut serde_json::Value| refs["branches"][0]["targetCommit"] = old.as_str().into();
    bench.server.fault(Fault::new("GET", "*/refs", Trouble::Edit(std::sync::Arc::new(stale))));
    hub.push(&push(&bench), &|_| {}).unwrap();
    assert_eq!(bench.server.pending_faults(), 0);
    assert_eq!(commits(&bench, "me/x"), 2);
    assert_eq!(bench.server.read(Kind::Model, "me/x", "main", "theirs.txt").unwrap(), b"theirs");
    assert_eq!(bench.server.read(Kind::Model, "me/x", "main", "adapter_model.safetensors").unwrap(), weights());
    assert_eq!(uploaded(&bench), 300_000, "the weights were sent once");
    let requests = bench.server.requests();
    let offers = requests.iter().filter(|request| request.path.contains("/commit/"));
    let statuses: Vec<_> = offers.map(|request| request.status).collect();
    assert_eq!(statuses, [Some(412), Some(200)], "the commit says which head it was made for");
}

#[test]
fn an_upload_that_is_cut_is_sent_again() {
    for trouble in [Trouble::CutUpload(100_000), Trouble::Status(500), Trouble::LandedThenCut, Trouble::Landed(504)] {
        let bench = Bench::new();
        bench.server.fault(Fault::new("PUT", "*", trouble));
        bench.hub().push(&push(&bench), &|_| {}).unwrap();
        landed_once(&bench);
    }
    let bench = Bench::new();
    bench.server.fault(Fault::new("PUT", "*", Trouble::CutUpload(100_000)).times(3));
    says(bench.hub().push(&push(&bench), &|_| {}), &["upload adapter_model.safetensors", "no connection"]);
    assert_eq!(commits(&bench, "me/x"), 0);
    bench.hub().push(&push(&bench), &|_| {}).unwrap();
    landed_once(&bench);
}

#[test]
fn a_token_that_expires_in_the_middle_loses_nothing() {
    for path in ["/api/whoami-v2", "*/preupload/*", "*/objects/batch", COMMIT, "*/refs"] {
        let bench = Bench::new();
        bench.server.fault(Fault::new("*", path, Trouble::TokenExpired));
        says(bench.hub().push(&push(&bench), &|_| {}), &["invalid or has expired", "temper hub login"]);
        let fresh = bench.server.issue("me", temper_testhub::Role::Write);
        Hub::new(bench.settings(Some(&fresh))).unwrap().push(&push(&bench), &|_| {}).unwrap();
        landed_once(&bench);
        assert_eq!(uploaded(&bench), 300_000, "{path}: the weights were sent twice");
    }
}

#[test]
fn rate_limits_are_waited_for() {
    let bench = Bench::new();
    for path in ["/api/whoami-v2", "*/preupload/*", "*/objects/batch", "*/refs", COMMIT] {
        bench.server.fault(Fault::new("*", path, Trouble::RateLimited { retry_after: 1 }));
    }
    bench.hub().push(&push(&bench), &|_| {}).unwrap();
    landed_once(&bench);
    bench.server.fault(Fault::new("POST", COMMIT, Trouble::RateLimited { retry_after: 3600 }));
    let next = push_of(&bench, "me/x", 2, &[("README.md", b"new")]);
    says(bench.hub().push(&next, &|_| {}), &["3600 s"]);
    bench.hub().push(&next, &|_| {}).unwrap();
    assert_eq!(commits(&bench, "me/x"), 2);
}

#[test]
#[ignore = "the child of killed_while_pushing"]
fn pushing_child() {
    let variable = |name: &str| std::env::var(name).ok();
    let (Some(endpoint), Some(home), Some(token)) =
        (variable("CHILD_ENDPOINT"), variable("CHILD_HOME"), variable("CHILD_TOKEN"))
    else {
        return;
    };
    let settings = Settings::given(&endpoint, Token::new(&token), home.as_ref()).unwrap();
    let dir = std::path::Path::new(&home).join("run/step-1");
    let mut push = Push {
        target: temper_hub::Target::model(temper_hub::RepoId::model("me/x").unwrap()),
        message: "Training in progress, step 1".into(),
        run: "run-1".into(),
        step: 1,
        files: Vec::new(),
        replace: Vec::new(),
        tags: Vec::new(),
        journal: Some(std::path::Path::new(&home).join("run")),
    };
    for path in ["README.md", "adapter_config.json", "adapter_model.safetensors"] {
        push.files.push(temper_hub::PushFile { path: path.into(), local: dir.join(path) });
    }
    Hub::new(settings).unwrap().push(&push, &|_| {}).unwrap();
}

/// Pushes in a process of its own, which is killed when a request has come whose path holds `path`.
pub fn kill_a_push_at(bench: &Bench, path: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "push_faults::pushing_child"])
        .env("CHILD_ENDPOINT", bench.server.endpoint())
        .env("CHILD_HOME", bench.home.path())
        .env("CHILD_TOKEN", bench.server.token())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !bench.server.requests().iter().any(|request| request.path.contains(path)) {
        assert!(start.elapsed() < Duration::from_secs(20), "{path}: the child never came so far");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    thread::sleep(Duration::from_millis(600));
}

#[test]
fn killed_while_pushing() {
    // Killed when this request has come, by how it is answered: before anything, in the upload, around the commit.
    let slow = || Trouble::Delay(Duration::from_millis(400));
    for (path, trouble) in
        [("*/preupload/*", slow()), ("*/objects/batch", slow()), (COMMIT, slow()), (COMMIT, Trouble::Landed(504))]
    {
        let bench = Bench::with(Options { lfs_threshold: 4096, ..Options::default() });
        let push = push(&bench);
        bench.server.fault(Fault::new("POST", path, trouble.clone()));
        kill_a_push_at(&bench, path.trim_matches('*'));
        bench.server.clear_faults();
        bench.hub().push(&push, &|_| {}).unwrap();
        landed_once(&bench);
        let state = fs::read_to_string(bench.home.path().join("run/.push/state.json")).unwrap();
        assert!(state.contains("\"done\"") && !state.contains("hf_"), "{state}");
    }
}
