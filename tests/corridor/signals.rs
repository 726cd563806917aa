//! Runs that are asked to stop.

use super::*;

/// `nohup` has SIGHUP ignored, and so it stays.
#[test]
fn a_signal_that_was_ignored_before_stays_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), &["train.max_steps=30", "train.save_every=1"]);
    let quoted: Vec<String> = arguments.iter().map(|argument| format!("'{argument}'")).collect();
    let script = format!("trap '' HUP; exec '{}' {}", env!("CARGO_BIN_EXE_temper"), quoted.join(" "));
    let mut run = std::process::Command::new("sh").args(["-c", &script]).current_dir(root()).spawn().unwrap();
    let begun = Instant::now();
    while !dir.path().join("checkpoints/step-000001").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60) && run.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let hup = std::process::Command::new("kill").args(["-HUP", &run.id().to_string()]).status().unwrap();
    assert!(hup.success() && run.wait().unwrap().success());
    assert_eq!(losses(dir.path()).len(), 30);
}

/// Sends SIGTERM after the first step; the exit code.
fn terminated(mut run: Child, dir: &Path) -> Option<i32> {
    while !dir.join("events.jsonl").is_file() || losses(dir).is_empty() {
        assert!(run.try_wait().unwrap().is_none(), "the run ended early");
        std::thread::sleep(Duration::from_millis(20));
    }
    terminate(&run);
    run.wait().unwrap().code()
}

fn terminate(run: &Child) {
    let pid = run.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
}

/// As where a job is preempted while it fetches its model.
#[test]
fn sigterm_before_there_is_anything_to_save_has_the_same_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let arguments = arguments(&dir.path().join("run"), &["model.base=lab/model"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = command(&arguments);
    child.env("HF_ENDPOINT", format!("http://{}", silent.local_addr().unwrap())).env("HF_HOME", dir.path());
    let child = child.stderr(Stdio::piped()).spawn().unwrap();
    let _asked = silent.accept().unwrap();
    terminate(&child);
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("before there was anything to save"), "{}", text(&out.stderr));
    assert!(!dir.path().join("run").exists());
}

#[test]
fn sigterm_saves_and_says_so_with_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let child = start(dir.path(), &["train.max_steps=2000"]);
    assert_eq!(terminated(child, dir.path()), Some(5));
    assert!(fs::read_dir(dir.path().join("checkpoints")).unwrap().count() >= 1);
    assert!(!dir.path().join("export").exists());
}

/// As where `train 2>&1 | tee log` gets Ctrl-C, or a terminal is closed.
#[test]
fn a_signal_is_heard_where_nobody_reads_what_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), &["train.max_steps=2000"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(terminated(child, dir.path()), Some(5));
}
