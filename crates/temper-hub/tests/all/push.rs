//! Pushing as it should be.

use std::{fs, path::PathBuf, time::Duration};

use temper_hub::{Hub, Push, PushFile, Pusher, RepoId, Target};
use temper_testhub::{Fault, Kind, Options, Role, Trouble};

use crate::bench::{Bench, noise, says};

/// A push of `files`, which are written below the bench's home.
pub fn push_of(bench: &Bench, id: &str, step: u64, files: &[(&str, &[u8])]) -> Push {
    let dir = bench.home.path().join(format!("run/step-{step}"));
    let write = |(path, content): &(&str, &[u8])| {
        let local = dir.join(path);
        fs::create_dir_all(local.parent().unwrap()).unwrap();
        fs::write(&local, content).unwrap();
        PushFile { path: (*path).into(), local }
    };
    Push {
        target: Target::model(RepoId::model(id).unwrap()),
        message: format!("Training in progress, step {step}"),
        run: "run-1".into(),
        step,
        files: files.iter().map(write).collect(),
        replace: Vec::new(),
        tags: Vec::new(),
        journal: Some(bench.home.path().join("run")),
    }
}

pub fn model_files(weights: &[u8]) -> [(&str, &[u8]); 3] {
    [("README.md", b"# A model\n"), ("adapter_config.json", b"{}"), ("adapter_model.safetensors", weights)]
}

/// The commits of `main` that are not the hub's own first one.
pub fn commits(bench: &Bench, id: &str) -> usize {
    bench.server.titles(Kind::Model, id, "main").unwrap().len() - 1
}

/// Bytes that the storage took.
pub fn uploaded(bench: &Bench) -> u64 {
    let requests = bench.server.requests();
    requests.iter().filter(|request| request.method == "PUT").map(|request| request.body_bytes).sum()
}

#[test]
fn a_push_is_one_commit_and_a_second_sends_nothing() {
    let bench = Bench::new();
    let weights = noise(300_000, 1);
    let push = push_of(&bench, "me/new", 10, &model_files(&weights));
    let hub = bench.hub();
    let pushed = hub.push(&push, &|progress| assert!(progress.bytes <= progress.total)).unwrap();
    assert_eq!((pushed.sent, pushed.unchanged, pushed.was_there), (300_012, 0, false));
    assert_eq!(pushed.commit.as_str(), bench.server.head(Kind::Model, "me/new", "main").unwrap());
    assert_eq!(commits(&bench, "me/new"), 1);
    assert_eq!(bench.server.read(Kind::Model, "me/new", "main", "adapter_model.safetensors").unwrap(), weights);
    assert!(bench.anonymous().pin(&"me/new".parse().unwrap()).is_err(), "a new repository is private");
    bench.server.clear_requests();
    let again = hub.push(&push, &|_| {}).unwrap();
    assert_eq!((again.sent, again.unchanged, again.was_there), (0, 3, true));
    assert_eq!(again.commit, pushed.commit);
    assert_eq!((commits(&bench, "me/new"), uploaded(&bench)), (1, 0));
    // Another step that changes the small file only.
    let next = push_of(&bench, "me/new", 20, &[("README.md", b"# Better\n"), ("adapter_model.safetensors", &weights)]);
    let next = hub.push(&next, &|_| {}).unwrap();
    assert_eq!((next.sent, next.unchanged, uploaded(&bench)), (9, 1, 0));
    assert_eq!(commits(&bench, "me/new"), 2);
}

#[test]
fn branches_tags_and_replaced_directories() {
    let bench = Bench::new();
    let hub = bench.hub();
    let files: [(&str, &[u8]); 2] = [("last-checkpoint/a.json", b"1"), ("last-checkpoint/sub/b.json", b"1")];
    let mut push = push_of(&bench, "me/ckpt", 1, &files);
    push.target.branch = "ckpt/run-1".into();
    push.tags = vec!["step-1".into()];
    let first = hub.push(&push, &|_| {}).unwrap();
    assert_eq!(commits(&bench, "me/ckpt"), 0, "main is as it was");
    assert_eq!(bench.server.head(Kind::Model, "me/ckpt", "step-1").unwrap(), first.commit.as_str());
    hub.push(&push, &|_| {}).unwrap();
    let mut push = push_of(&bench, "me/ckpt", 2, &[("last-checkpoint/a.json", b"2"), ("README.md", b"x")]);
    push.target.branch = "ckpt/run-1".into();
    push.replace = vec!["last-checkpoint/".into()];
    hub.push(&push, &|_| {}).unwrap();
    let paths = bench.server.paths(Kind::Model, "me/ckpt", "ckpt/run-1").unwrap();
    assert_eq!(paths, [".gitattributes", "README.md", "last-checkpoint/a.json"]);
    push.tags = vec!["step-1".into()];
    says(hub.push(&push, &|_| {}), &["step-1", "another commit"]);
}

#[test]
fn large_files_go_in_parts() {
    let options =
        Options { lfs_threshold: 4096, multipart_threshold: 100_000, part_bytes: 65_536, ..Options::default() };
    let bench = Bench::with(options);
    let weights = noise(300_001, 2);
    bench.server.fault(Fault::new("PUT", "*", Trouble::CutUpload(1000)));
    bench.hub().push(&push_of(&bench, "me/parts", 1, &model_files(&weights)), &|_| {}).unwrap();
    assert_eq!(bench.server.read(Kind::Model, "me/parts", "main", "adapter_model.safetensors").unwrap(), weights);
    assert_eq!(bench.server.pending_faults(), 0);
    assert!(bench.server.requests().iter().filter(|request| request.method == "PUT").count() >= 6);
}

#[test]
fn by_xet_when_the_hub_offers_it() {
    let bench = Bench::with(Options { lfs_threshold: 4096, xet: true, ..Options::default() });
    let weights = noise(300_000, 3);
    let push = push_of(&bench, "me/xet", 1, &model_files(&weights));
    bench.hub().push(&push, &|_| {}).unwrap();
    assert_eq!(bench.server.read(Kind::Model, "me/xet", "main", "adapter_model.safetensors").unwrap(), weights);
    let snapshot = crate::bench::pull_model(&bench.hub(), "me/xet").unwrap();
    assert_eq!(fs::read(snapshot.dir.join("adapter_model.safetensors")).unwrap(), weights);
    // Without Xet the same hub takes the same file by LFS.
    let mut settings = bench.settings(Some(bench.server.token()));
    settings.xet.value = false;
    let other = noise(300_000, 4);
    let push = push_of(&bench, "me/xet", 2, &model_files(&other));
    Hub::new(settings).unwrap().push(&push, &|_| {}).unwrap();
    assert_eq!(bench.server.read(Kind::Model, "me/xet", "main", "adapter_model.safetensors").unwrap(), other);
}

#[test]
fn what_stands_against_a_push_is_said_before_training() {
    let bench = Bench::new();
    let target = |id: &str| Target::model(RepoId::model(id).unwrap());
    let ready = bench.hub().prepare(&target("me/new")).unwrap();
    assert!(ready.created && ready.private && ready.account.name == "me");
    assert!(!bench.hub().prepare(&target("me/new")).unwrap().created);
    says(bench.anonymous().prepare(&target("me/new")), &["without a token", "temper hub login"]);
    says(bench.offline().prepare(&target("me/new")), &["offline"]);
    let reader = Hub::new(bench.settings(Some(&bench.server.issue("me", Role::Read)))).unwrap();
    says(reader.prepare(&target("me/new")), &["only read", "permission to write"]);
    says(bench.hub().prepare(&target("you/theirs")), &["you/theirs"]);
    bench.server.seed(Kind::Model, "you/theirs", &[("a", "a")]).unwrap();
    says(bench.hub().prepare(&target("you/theirs")), &["you/theirs"]);
    says(bench.hub().prepare(&target("nobody")), &["you/nobody"]);
    bench.server.join("lab", "me", true);
    assert!(bench.hub().prepare(&target("lab/shared")).unwrap().created);
    bench.server.set_private(Kind::Model, "me/new", false).unwrap();
    says(bench.hub().prepare(&target("me/new")), &["is public", "private = false"]);
    bench.hub().prepare(&Target { private: false, ..target("me/new") }).unwrap();
}

#[test]
fn secrets_and_odd_names_never_leave() {
    let bench = Bench::new();
    let secret = push_of(&bench, "me/new", 1, &[("run.json", b"{\"env\": \"hf_abcdefghijABCDEFGHIJ0123456789abcd\"}")]);
    let message = says(bench.hub().push(&secret, &|_| {}), &["run.json", "access token"]);
    assert!(!message.contains("hf_abc"), "{message}");
    for path in ["../x", "/x", ".git/config", "a\\b", ""] {
        let mut push = push_of(&bench, "me/new", 1, &[("x", b"x")]);
        push.files[0].path = path.into();
        says(bench.hub().push(&push, &|_| {}), &["me/new"]);
    }
    assert!(bench.server.requests().is_empty());
}

#[test]
fn a_pull_request_to_somebody_elses_repository() {
    let bench = Bench::new();
    bench.server.seed(Kind::Model, "you/theirs", &[("config.json", "{}")]).unwrap();
    let mut push = push_of(&bench, "you/theirs", 1, &model_files(&noise(10_000, 5)));
    push.target.pull_request = true;
    let pushed = bench.hub().push(&push, &|_| {}).unwrap();
    assert!(pushed.pull_request.as_deref().unwrap().contains("/discussions/"), "{pushed:?}");
    assert_eq!(bench.server.titles(Kind::Model, "you/theirs", "refs/pr/1").unwrap()[0], push.message);
    let again = bench.hub().push(&push, &|_| {}).unwrap();
    assert_eq!((again.commit, again.was_there), (pushed.commit, true));
    assert!(bench.server.head(Kind::Model, "you/theirs", "refs/pr/2").is_err(), "no second pull request");
}

#[test]
fn the_pusher_never_waits_and_keeps_the_newest() {
    let bench = Bench::new();
    bench.server.fault(Fault::new("GET", "/api/whoami-v2", Trouble::Delay(Duration::from_millis(500))));
    let run: PathBuf = bench.home.path().join("run");
    let pusher = Pusher::start(&bench.hub(), &run, |push, _| Ok(push)).unwrap();
    let weights: Vec<_> = (1..=4).map(|step| noise(50_000, step)).collect();
    let start = std::time::Instant::now();
    let mut replaced = Vec::new();
    for (step, weights) in (1..).zip(&weights) {
        let push = push_of(&bench, "me/run", step, &model_files(weights));
        replaced.extend(pusher.offer(push.clone()).unwrap());
        // The run goes on: what was offered is replaced, as engines do it, by rename.
        for file in &push.files {
            fs::write(file.local.with_extension("new"), "later").unwrap();
            fs::rename(file.local.with_extension("new"), &file.local).unwrap();
        }
        if step == 1 {
            while !bench.server.requests().iter().any(|request| request.path.contains("whoami")) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    assert!(start.elapsed() < Duration::from_millis(450), "{:?}", start.elapsed());
    assert!(pusher.is_busy());
    assert_eq!(replaced, [2, 3]);
    let outcomes = pusher.finish(|| false);
    let steps: Vec<_> = outcomes.iter().map(|outcome| (outcome.step, outcome.result.is_ok())).collect();
    assert_eq!(steps, [(1, true), (4, true)]);
    assert_eq!(commits(&bench, "me/run"), 2);
    assert_eq!(bench.server.read(Kind::Model, "me/run", "main", "adapter_model.safetensors").unwrap(), weights[3]);
    assert!(!run.join(".push/stage").exists());
}

#[test]
fn an_abandoned_push_ends_soon_and_a_later_one_completes_it() {
    let bench = Bench::new();
    let weights = noise(300_000, 6);
    bench.server.fault(Fault::new("POST", "*/objects/batch", Trouble::Delay(Duration::from_millis(300))));
    let pusher = Pusher::start(&bench.hub(), &bench.home.path().join("run"), |push, _| Ok(push)).unwrap();
    let push = push_of(&bench, "me/run", 1, &model_files(&weights));
    pusher.offer(push.clone()).unwrap();
    while !bench.server.requests().iter().any(|request| request.path.contains("batch")) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let outcomes = pusher.finish(|| true);
    assert!(matches!(outcomes[0].result, Err(temper_hub::Error::Abandoned)), "{outcomes:?}");
    assert_eq!(commits(&bench, "me/run"), 0);
    bench.hub().push(&push, &|_| {}).unwrap();
    assert_eq!(commits(&bench, "me/run"), 1);
}

#[test]
fn a_silent_hub_holds_nobody_up() {
    let bench = Bench::new();
    bench.server.fault(Fault::new("POST", "*/objects/batch", Trouble::Delay(Duration::from_secs(20))));
    let settings = bench.settings(Some(bench.server.token()));
    let patience = temper_hub::Patience { silence: Duration::from_secs(30), ..settings.patience };
    let hub = Hub::new(temper_hub::Settings { patience, ..settings }).unwrap();
    let pusher = Pusher::start(&hub, &bench.home.path().join("run"), |push, _| Ok(push)).unwrap();
    pusher.offer(push_of(&bench, "me/run", 1, &model_files(&noise(300_000, 6)))).unwrap();
    while !bench.server.requests().iter().any(|request| request.path.contains("batch")) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = std::time::Instant::now();
    assert!(pusher.finish(|| true).is_empty());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn what_cannot_be_prepared_is_an_outcome() {
    let bench = Bench::new();
    let refuse = |_, _: &std::path::Path| Err("it cannot be read".to_owned());
    let pusher = Pusher::start(&bench.hub(), &bench.home.path().join("run"), refuse).unwrap();
    pusher.offer(push_of(&bench, "me/run", 1, &[("README.md", b"x")])).unwrap();
    let outcomes = pusher.finish(|| false);
    let said = outcomes[0].result.as_ref().unwrap_err().to_string();
    assert!(said.contains("it cannot be read") && said.contains("me/run"), "{said}");
}
