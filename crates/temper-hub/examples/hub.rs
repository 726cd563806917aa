//! Pulls and pushes whole repositories, with the settings of the environment; prints what happened as a line of JSON.
//!
//!     cargo run --release -p temper-hub --example hub -- pull org/name[@revision]
//!     cargo run --release -p temper-hub --example hub -- push me/name DIRECTORY

use std::{env, fs, path::Path};

use temper_hub::{Hub, PullOptions, Push, PushFile, Reference, RepoId, Settings, Target};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["pull", reference] => pull(reference),
        ["push", id, dir] => push(id, Path::new(dir)),
        _ => return eprintln!("hub pull REFERENCE | hub push ID DIRECTORY"),
    };
    match done {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("failed to {error}");
            std::process::exit(1);
        }
    }
}

fn pull(reference: &str) -> temper_hub::Result<serde_json::Value> {
    let hub = Hub::new(Settings::from_env()?)?;
    let reference: Reference = reference.parse()?;
    let listing = hub.list(&hub.pin(&reference)?)?;
    let snapshot = hub.pull(&listing, &listing.files, &PullOptions::default(), &|_| {})?;
    Ok(serde_json::json!({
        "dir": snapshot.dir, "commit": snapshot.pinned.commit, "fetched": snapshot.fetched, "cached": snapshot.cached,
    }))
}

fn push(id: &str, dir: &Path) -> temper_hub::Result<serde_json::Value> {
    let hub = Hub::new(Settings::from_env()?)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_file()) {
        files.push(PushFile { path: entry.file_name().to_string_lossy().into_owned(), local: entry.path() });
    }
    let push = Push {
        target: Target::model(RepoId::model(id)?),
        message: "End of training".into(),
        run: "example".into(),
        step: 0,
        files,
        replace: Vec::new(),
        tags: Vec::new(),
        journal: Some(dir.into()),
    };
    let pushed = hub.push(&push, &|_| {})?;
    Ok(serde_json::json!({"commit": pushed.commit, "sent": pushed.sent, "unchanged": pushed.unchanged}))
}
