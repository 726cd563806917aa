//! Pulling when something goes wrong: nothing wrong is kept, nothing right is fetched twice.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use temper_hub::{Error, Hub, RepoId};
use temper_testhub::{Fault, Kind, Options, Trouble};

use crate::bench::{Bench, noise, pull_all, pull_model, says, walk};

const WEIGHTS: &str = "*model.safetensors";

fn with_model(fault: Fault) -> Bench {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    bench.server.fault(fault);
    bench
}

fn is_right(bench: &Bench) {
    let snapshot = pull_model(&bench.hub(), "lab/tiny").unwrap();
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), noise(700_000, 7));
    assert_eq!(bench.server.pending_faults(), 0, "a fault was not met");
}

/// Bytes of weights that the server was asked for, by the `Range`s of the requests.
fn starts(bench: &Bench) -> Vec<u64> {
    let requests = bench.server.requests();
    let storage = requests.iter().filter(|request| request.side == temper_testhub::Side::Storage);
    storage
        .map(|request| match request.header("range") {
            Some(range) => range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap(),
            None => 0,
        })
        .collect()
}

#[test]
fn a_cut_connection_goes_on_where_it_broke() {
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::CutDownload(300_000)));
    is_right(&bench);
    let starts = starts(&bench);
    assert!(starts.len() == 2 && starts[0] == 0 && starts[1] > 0 && starts[1] <= 300_000, "{starts:?}");
}

#[test]
fn a_short_body_is_completed() {
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::ShortBody(123_456)));
    is_right(&bench);
    assert_eq!(starts(&bench), [0, 123_456]);
}

#[test]
fn cut_for_ever_is_an_error_and_the_next_run_goes_on() {
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::CutDownload(0)).times(3));
    says(pull_model(&bench.hub(), "lab/tiny"), &["model.safetensors", "no connection", "HF_HUB_OFFLINE"]);
    is_right(&bench);
}

#[test]
fn wrong_bytes_are_fetched_once_more_then_refused() {
    is_right(&with_model(Fault::new("GET", WEIGHTS, Trouble::WrongBytes)));
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::WrongBytes).times(2));
    says(pull_model(&bench.hub(), "lab/tiny"), &["model.safetensors", "700000 bytes", "twice"]);
    let folder = bench.folder("models--lab--tiny");
    let kept = walk(&folder);
    assert!(!kept.iter().any(|name| name.contains("incomplete") || name.contains("/model.safetensors")), "{kept:?}");
    is_right(&bench);
}

#[test]
fn a_wrong_start_of_an_earlier_run_is_thrown_away() {
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::CutDownload(300_000)).times(3));
    let sha = pull_model(&bench.anonymous(), "lab/tiny").ok();
    bench.server.clear_faults();
    drop(sha);
    let blobs = bench.folder("models--lab--tiny/blobs");
    for name in walk(&blobs).into_iter().filter(|name| name.len() == 64) {
        fs::remove_file(blobs.join(name)).unwrap();
    }
    let listing = bench.hub().list(&bench.hub().pin(&"lab/tiny".parse().unwrap()).unwrap()).unwrap();
    let hash = listing.file("model.safetensors").unwrap().sha256.clone().unwrap();
    fs::write(blobs.join(format!("{hash}.incomplete")), vec![0; 1000]).unwrap();
    is_right(&bench);
}

#[test]
fn an_error_page_in_place_of_weights_is_never_kept() {
    for trouble in [Trouble::Page(403), Trouble::Page(200), Trouble::Page(404)] {
        let bench = with_model(Fault::new("GET", WEIGHTS, trouble.clone()).times(8));
        let error = pull_model(&bench.hub(), "lab/tiny").unwrap_err();
        assert!(!matches!(error, Error::Io { .. }), "{trouble:?}: {error}");
        let kept = walk(&bench.folder("models--lab--tiny"));
        assert!(!kept.iter().any(|name| name.ends_with("/model.safetensors")), "{trouble:?}: {kept:?}");
        bench.server.clear_faults();
        is_right(&bench);
    }
}

#[test]
fn a_server_that_cannot_go_on_begins_anew() {
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::CutDownload(300_000)));
    bench.server.fault(Fault::new("GET", WEIGHTS, Trouble::CutDownload(0)).times(3));
    assert!(pull_model(&bench.hub(), "lab/tiny").is_err());
    assert_eq!(bench.server.pending_faults(), 0);
    bench.server.faults(vec![Fault::new("GET", WEIGHTS, Trouble::Status(416))]);
    is_right(&bench);
}

#[test]
fn what_is_served_in_place_of_a_file_is_named() {
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::Page(200)).times(8));
    says(pull_model(&bench.hub(), "lab/tiny"), &["bytes of text/html", "the commit names 700000"]);
}

#[test]
fn hostile_names_stop_before_anything_is_written() {
    for name in ["../../../evil", "/etc/evil", "a/../../evil", "C:\\evil", ".git/config", "a\\b", "x\u{0}y", "a//b"] {
        let bench = Bench::new();
        bench.seed_model("lab/tiny");
        bench.server.faults(Fault::hostile_names("lab/tiny", &[name]));
        says(pull_model(&bench.hub(), "lab/tiny"), &["accept file name", "nothing was written"]);
        assert!(walk(bench.home.path()).is_empty(), "{name:?}: {:?}", walk(bench.home.path()));
    }
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    bench.server.faults(Fault::hostile_names("lab/tiny", &["readme.MD"]));
    says(pull_all(&bench.hub(), RepoId::model("lab/tiny").unwrap()), &["letter case"]);
}

#[test]
fn hostile_headers_are_refused() {
    let header = |name: &str, value: &str| Trouble::Header(name.into(), value.into());
    for trouble in [
        header("x-repo-commit", "../../../../evil"),
        header("x-repo-commit", &"d".repeat(40)),
        header("x-linked-etag", "\"../../../evil\""),
        header("etag", "\"../../../evil\""),
    ] {
        let bench = with_model(Fault::new("GET", "*/resolve/*", trouble.clone()).times(100));
        says(pull_model(&bench.hub(), "lab/tiny"), &["accept"]);
        assert!(walk(bench.home.path()).iter().all(|name| !name.contains("evil")), "{trouble:?}");
        assert!(!bench.home.path().parent().unwrap().join("evil").exists());
    }
    let sha = Trouble::Edit(std::sync::Arc::new(|info: &mut serde_json::Value| info["sha"] = "../../evil".into()));
    let bench = with_model(Fault::new("GET", "/api/models/lab/tiny/revision/*", sha));
    says(pull_model(&bench.hub(), "lab/tiny"), &["accept commit"]);
    assert!(walk(bench.home.path()).is_empty());
    let oid = Trouble::Edit(std::sync::Arc::new(|tree: &mut serde_json::Value| tree[0]["oid"] = "../../evil".into()));
    let bench = with_model(Fault::new("GET", "/api/models/lab/tiny/tree/*", oid));
    says(pull_model(&bench.hub(), "lab/tiny"), &["accept hash"]);
    assert!(walk(bench.home.path()).is_empty());
}

#[test]
fn retry_after_is_kept_to_within_bounds() {
    let bench = with_model(Fault::new("GET", "*/resolve/*", Trouble::RateLimited { retry_after: 1 }));
    let start = Instant::now();
    is_right(&bench);
    assert!(start.elapsed() >= Duration::from_secs(1));
    for path in ["*/resolve/*", "*/revision/*", "*/tree/*"] {
        let bench = with_model(Fault::new("GET", path, Trouble::RateLimited { retry_after: 3600 }));
        let start = Instant::now();
        says(pull_model(&bench.hub(), "lab/tiny"), &["allows no more requests", "3600 s"]);
        assert!(start.elapsed() < Duration::from_secs(30), "{path}");
        is_right(&bench);
    }
}

#[test]
fn a_failing_server_is_asked_again_a_few_times() {
    for path in [WEIGHTS, "*/revision/*", "*/tree/*"] {
        is_right(&with_model(Fault::new("GET", path, Trouble::Status(503)).times(2)));
        let bench = with_model(Fault::new("GET", path, Trouble::Status(500)).times(3));
        says(pull_model(&bench.hub(), "lab/tiny"), &["an error of its own", "500"]);
        is_right(&bench);
    }
}

#[test]
fn a_token_that_expires_in_the_middle() {
    let bench = with_model(Fault::new("GET", WEIGHTS, Trouble::TokenExpired));
    says(pull_model(&bench.hub(), "lab/tiny"), &["invalid or has expired"]);
    is_right(&bench);
}

#[test]
fn no_network() {
    let bench = Bench::new();
    let mut settings = bench.settings(None);
    settings.endpoint.value = "http://127.0.0.1:9".into();
    says(pull_model(&Hub::new(settings).unwrap(), "lab/tiny"), &["no connection to 127.0.0.1", "HF_HUB_OFFLINE"]);
}

/// Runs the ignored test `name` of this binary as a process of its own.
fn child(name: &str, bench: &Bench) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env("CHILD_ENDPOINT", bench.server.endpoint())
        .env("CHILD_HOME", bench.home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the child of killed_in_the_middle"]
fn pulling_child() {
    let (Ok(endpoint), Ok(home)) = (std::env::var("CHILD_ENDPOINT"), std::env::var("CHILD_HOME")) else { return };
    let settings = temper_hub::Settings::given(&endpoint, None, home.as_ref()).unwrap();
    pull_model(&Hub::new(settings).unwrap(), "lab/tiny").unwrap();
}

#[test]
fn killed_in_the_middle() {
    let drip = Trouble::Drip { bytes: 20_000, pause: Duration::from_millis(20) };
    let bench = with_model(Fault::new("GET", WEIGHTS, drip));
    let mut child = child("pull_faults::pulling_child", &bench);
    let blobs = bench.folder("models--lab--tiny/blobs");
    let length = || {
        let part = walk(&blobs).into_iter().find(|name| name.len() > 64)?;
        Some(fs::metadata(blobs.join(part)).ok()?.len())
    };
    let start = Instant::now();
    while length().is_none_or(|length| length < 100_000) && start.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = length().unwrap();
    assert!((100_000..700_000).contains(&before), "{before}");
    assert!(!walk(&bench.folder("models--lab--tiny")).iter().any(|name| name.ends_with("/model.safetensors")));
    bench.server.clear_requests();
    is_right(&bench);
    assert_eq!(starts(&bench), [before]);
}

#[test]
fn two_processes_at_once_fetch_once() {
    let bench = Bench::new();
    bench.seed_model("lab/tiny");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pull_model(&bench.hub(), "lab/tiny").unwrap());
        }
    });
    assert_eq!(starts(&bench).len(), 1);
}

#[test]
fn redirects_on_the_same_host() {
    let bench = Bench::with(Options { lfs_threshold: 4096, resolve_cache: true, ..Options::default() });
    bench.seed_model("lab/tiny");
    is_right(&bench);
    bench.server.seed(Kind::Model, "lab/small", &[("a.txt", "a")]).unwrap();
    pull_all(&bench.hub(), RepoId::model("lab/small").unwrap()).unwrap();
}

/// Pulls until some bytes are there, then fills the disk.
#[test]
#[ignore = "the child of a_full_disk"]
fn full_disk_child() {
    let (Ok(endpoint), Ok(home)) = (std::env::var("CHILD_ENDPOINT"), std::env::var("CHILD_HOME")) else { return };
    let home = std::path::Path::new(&home);
    let settings = temper_hub::Settings::given(&endpoint, None, home).unwrap();
    let hub = Hub::new(temper_hub::Settings { patience: crate::bench::SHORT, ..settings }).unwrap();
    let pinned = hub.pin(&"lab/tiny".parse().unwrap()).unwrap();
    let filler = home.join("hub/filler");
    let fill = |progress: temper_hub::Progress| {
        if progress.bytes > 100_000 && !filler.exists() {
            let mut file = fs::File::create(&filler).unwrap();
            while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        }
    };
    let error = hub.pull_model(&pinned, &Default::default(), &fill).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::DiskFull { .. }) && message.contains("HF_HUB_CACHE"), "{message}");
    let kept = walk(&home.join("hub/models--lab--tiny"));
    assert!(!kept.iter().any(|name| name.ends_with("/model.safetensors")), "{kept:?}");
    // With room again, it goes on from what is there.
    fs::remove_file(&filler).unwrap();
    let dir = pull_model(&hub, "lab/tiny").unwrap().dir;
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), noise(700_000, 7));
}

#[test]
fn a_full_disk() {
    let drip = Trouble::Drip { bytes: 20_000, pause: Duration::from_millis(2) };
    let bench = with_model(Fault::new("GET", WEIGHTS, drip));
    let cache = bench.home.path().join("hub");
    fs::create_dir_all(&cache).unwrap();
    let script = "mount -t tmpfs -o size=80m none \"$CHILD_HOME/hub\" || exit 77; exec \"$0\" --ignored --exact \
                  pull_faults::full_disk_child";
    // A file system of its own, which only this child sees.
    let done = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("CHILD_ENDPOINT", bench.server.endpoint())
        .env("CHILD_HOME", bench.home.path())
        .output();
    let words = |done: &std::process::Output| {
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
    };
    match done {
        Ok(done) if words(&done).contains("test result: ok. 1 passed") => {
            let starts = starts(&bench);
            assert!(starts.len() == 2 && starts[1] > 0, "{starts:?}");
        }
        Ok(done) if words(&done).contains("full_disk_child") => panic!("{}", words(&done)),
        Ok(done) => eprintln!("skipped: no file system could be mounted here ({})", words(&done).trim()),
        Err(error) => eprintln!("skipped: there is no `unshare` here ({error})"),
    }
}
