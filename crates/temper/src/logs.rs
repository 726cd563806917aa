//! Structured logs, to stderr and, once a run has a directory, to its `train.log` as JSON lines.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;
use crate::failure::{Context, Failure, Kind};
use crate::profile::{self, Profile};

static FILE: OnceLock<Mutex<File>> = OnceLock::new();
static JSON: AtomicBool = AtomicBool::new(false);

/// Installs the subscriber, once in a process: stderr from `level` on, the file from `info` on, and spans into `profile`.
pub fn install(level: tracing::Level, format: LogFormat, profile: Option<Profile>) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    // hf_hub logs each retry of what we report ourselves.
    let ours = |level: LevelFilter| {
        let others = LevelFilter::WARN.min(level);
        Targets::new().with_target("temper", level).with_target("hf_hub", LevelFilter::OFF).with_default(others)
    };
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let level = LevelFilter::from_level(level);
    let stderr = match format {
        LogFormat::Text => {
            fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false).boxed()
        }
        LogFormat::Json => fmt::layer().json().with_writer(io::stderr).boxed(),
    };
    let file = fmt::layer().json().with_writer(|| RunLog).with_filter(ours(LevelFilter::INFO.max(level)));
    let spans = Targets::new().with_target(profile::TARGET, LevelFilter::TRACE);
    let profile = profile.map(|profile| profile.with_filter(spans));
    // A second call, in one test process say, keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(stderr.with_filter(ours(level))).with(file).with(profile).try_init();
}

/// Whether stderr is read by a program, line by line: JSON was asked for, and there is no terminal.
pub fn for_programs() -> bool {
    JSON.load(Ordering::Relaxed) && !io::stderr().is_terminal()
}

/// From now on the log also goes to `path`.
pub fn to_file(path: &Path) -> Result<(), Failure> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.context(Kind::Other, format!("failed to open {}", path.display()))?;
    let _ = FILE.set(Mutex::new(file));
    Ok(())
}

/// The log file of the run, or nothing before there is one.
struct RunLog;

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match FILE.get().map(Mutex::lock) {
            Some(Ok(mut file)) => file.write(bytes),
            _ => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
