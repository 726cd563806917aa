//! The run directory: `recipe.toml`, `plan.json`, `events.jsonl`, `train.log`, `checkpoints/`, `tensorboard/`, `export/`,
//! `report.html`. One process at a time; the same command again goes on where the last one stopped.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{Context, Failure, Kind};
use crate::plan::Plan;

/// Creates `dir` and locks it, for as long as the file is open, unless another `who` has.
pub fn lock(dir: &Path, who: &str) -> Result<File, Failure> {
    let shown = dir.display();
    fs::create_dir_all(dir).context(Kind::Other, format!("failed to create {shown}"))?;
    let failed = || format!("failed to lock {shown}");
    let lock = File::create(dir.join(".lock")).context(Kind::Other, failed())?;
    for patience in (0..LOOKS).rev() {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => Err(error).context(Kind::Other, failed())?,
            Err(TryLockError::WouldBlock) if patience > 0 => std::thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    Err(Failure::new(Kind::Other, format!("error: another {who} is running in {shown}")))
}

/// Whether a process has [locked](lock) `dir`.
pub fn is_running(dir: &Path) -> bool {
    let lock = File::open(dir.join(".lock"));
    // Shared: two who look do not take each other for one who works.
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// How often a lock is asked for: who only [looks](is_running) has it for a blink.
const LOOKS: u32 = 10;

/// A run directory that this process, or rank 0 of its run, has locked.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held by rank 0.
    _lock: Option<File>,
}

impl RunDir {
    /// Opens or creates the directory of `plan`. A directory that holds another plan is refused, unless `fresh` empties it.
    pub fn open(plan: &Plan, recipe: &str, fresh: bool) -> Result<Self, Failure> {
        let path = PathBuf::from(&plan.run.dir);
        refuse_what_is_not_ours(&path)?;
        let lock = lock(&path, "process")?;
        let dir = Self { path, _lock: Some(lock) };
        // What a killed process was replacing.
        temper_files::clear(&dir.path);
        temper_files::clear(&dir.join(".push"));
        if fresh {
            dir.clear()?;
        }
        dir.refuse_another_plan(plan)?;
        // The plan first: it is what tells a run's directory from others.
        let json = serde_json::to_vec_pretty(plan).context(Kind::Other, "failed to write the plan")?;
        dir.write(PLAN, &json)?;
        dir.write("recipe.toml", recipe.as_bytes())?;
        Ok(dir)
    }

    /// The directory of `plan`, for a rank that only reads in it.
    pub fn beside(plan: &Plan) -> Self {
        Self { path: PathBuf::from(&plan.run.dir), _lock: None }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        write_atomically(&self.join(name), bytes)
    }

    /// Refuses a run whose `inputs` lie in what it writes, and with `--fresh` deletes.
    pub fn spare(plan: &Plan, inputs: impl Iterator<Item = PathBuf>) -> Result<(), Failure> {
        let run = Path::new(&plan.run.dir);
        for input in inputs {
            let Ok(real) = input.canonicalize() else { continue };
            let within = |name: &&&str| run.join(name).canonicalize().is_ok_and(|place| real.starts_with(place));
            if let Some(name) = DIRECTORIES.iter().chain(&FILES).chain([&PLAN]).find(within) {
                let (input, run) = (input.display(), run.display());
                let message = format!(
                    "error: {input} is in {run}/{name}, which this run replaces\n  = help: give this run its own directory with \
                     `--set run.dir=...`"
                );
                return Err(Failure::new(Kind::Recipe, message));
            }
        }
        Ok(())
    }

    fn refuse_another_plan(&self, plan: &Plan) -> Result<(), Failure> {
        let Ok(text) = fs::read_to_string(self.join(PLAN)) else { return Ok(()) };
        let old = serde_json::from_str::<serde_json::Value>(&text);
        let checkpoints = fs::read_dir(self.join("checkpoints")).is_ok_and(|mut entries| entries.next().is_some());
        if !checkpoints || old.as_ref().is_ok_and(|old| old["fingerprint"] == plan.fingerprint.as_str()) {
            return Ok(());
        }
        let what = match old {
            Ok(old) => format!("of another plan (different: {})", plan.differences_from(old)?.join(", ")),
            Err(error) => format!("whose {PLAN} is damaged ({error})"),
        };
        Err(Failure::new(
            Kind::Recipe,
            format!(
                "error: {} holds a run {what}\n  = help: start over with `--fresh`, or \
                 give this run its own directory with `--set run.dir=...`",
                self.path.display()
            ),
        ))
    }

    /// Removes what runs write, and nothing else.
    fn clear(&self) -> Result<(), Failure> {
        for name in DIRECTORIES {
            remove(fs::remove_dir_all(self.join(name)), &self.join(name))?;
        }
        for name in FILES.into_iter().chain([PLAN]) {
            remove(fs::remove_file(self.join(name)), &self.join(name))?;
        }
        Ok(())
    }
}

/// What runs write, beside the plan.
const DIRECTORIES: [&str; 5] = ["checkpoints", "tensorboard", "export", "merged", ".push"];
const FILES: [&str; 5] = ["events.jsonl", "recipe.toml", "report.html", "samples.jsonl", "train.log"];
const PLAN: &str = "plan.json";

/// A directory without a sign of a run, and with something in it that a run would replace, belongs to somebody.
fn refuse_what_is_not_ours(path: &Path) -> Result<(), Failure> {
    let is_there = |name: &&str| path.join(name).symlink_metadata().is_ok();
    if [PLAN, "events.jsonl", ".lock"].iter().any(is_there) {
        return Ok(());
    }
    match DIRECTORIES.iter().chain(&FILES).find(|name| is_there(name)) {
        None => Ok(()),
        Some(name) => Err(Failure::new(
            Kind::Recipe,
            format!(
                "error: {} holds `{name}` and no run ({PLAN} is missing): training here would replace it\n  = help: give \
                 the run a directory of its own with `dir` in [run]",
                path.display()
            ),
        )),
    }
}

/// Writes a file whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = temper_files::write(path, |file| fs::write(file, bytes));
    written.context(Kind::Other, format!("failed to write {}", path.display()))
}

/// Writes JSON for people, whole or not at all.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).context(Kind::Other, "failed to write JSON")?;
    write_atomically(path, (text + "\n").as_bytes())
}

fn remove(result: std::io::Result<()>, path: &Path) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(Kind::Other, format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
