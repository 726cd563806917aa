//! A trial's process: started, watched, asked to stop.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::failure::{Context, Failure, Kind};

/// The most bytes of a log that are kept as the reason of a failure.
const REASON: usize = 4096;

/// `temper train` of this binary, whose messages go to a file and from there, line by line, to stderr.
pub(super) struct Process {
    child: Child,
    log: Log,
}

impl Process {
    /// Starts `temper` with `arguments`; what it says is appended to `log`. It has a process group of its own, so that a
    /// Ctrl-C reaches the sweep alone, which passes it on once: a second one would end the trial without a checkpoint.
    pub fn start(arguments: &[String], log: &Path) -> Result<Self, Failure> {
        let program = std::env::current_exe().context(Kind::Other, "failed to find this program")?;
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.context(Kind::Other, format!("failed to open {}", log.display()))?;
        let log = Log::open(log).context(Kind::Other, format!("failed to read {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().context(Kind::Other, "failed to start a trial")?;
        Ok(Self { child, log })
    }

    /// Passes on what it said since the last call, each line behind `prefix`; and how it ended, if it has.
    pub fn watch(&mut self, prefix: &str) -> Result<Option<ExitStatus>, Failure> {
        let ended = self.child.try_wait().context(Kind::Other, "failed to watch a trial")?;
        for line in self.log.lines(ended.is_some()) {
            say!("{prefix}  {line}");
        }
        Ok(ended)
    }

    /// Asks it to save and end; where signals are unknown, ends it.
    pub fn stop(&mut self) {
        #[cfg(unix)]
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: `kill` reads no memory of ours; the process was not waited for yet, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        #[cfg(not(unix))]
        let _ = self.child.kill();
    }

    /// The error that it ended with, in its own words.
    pub fn reason(&self) -> Option<String> {
        let said = &self.log.said;
        let error = if said.starts_with("error: ") { 0 } else { said.find("\nerror: ")? + 1 };
        Some(said[error..].trim_start_matches("error: ").trim_end().to_owned())
    }
}

/// A file that another process writes.
struct Log {
    file: File,
    /// What is no whole line yet.
    rest: Vec<u8>,
    /// The last that was said.
    said: String,
}

impl Log {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, rest: Vec::new(), said: String::new() })
    }

    /// The whole lines that came since the last call, and with `all` a last one without an end. What cannot be read is lost.
    fn lines(&mut self, all: bool) -> Vec<String> {
        let _ = self.file.read_to_end(&mut self.rest);
        let end =
            if all { self.rest.len() } else { self.rest.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1) };
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        let text = String::from_utf8_lossy(&whole);
        self.said.push_str(&text);
        let surplus = self.said.len().saturating_sub(REASON);
        let cut = (surplus..=self.said.len()).find(|&at| self.said.is_char_boundary(at)).unwrap_or(0);
        self.said.drain(..cut);
        text.lines().map(str::to_owned).collect()
    }
}

/// How a trial's process ended.
pub(super) fn ending(status: ExitStatus) -> Ending {
    const INTERRUPTED: i32 = Kind::Interrupted as i32;
    const DIVERGED: i32 = Kind::Diverged as i32;
    const MEMORY: i32 = Kind::Memory as i32;
    match status.code() {
        Some(0) => Ending::Finished,
        Some(INTERRUPTED) => Ending::Interrupted,
        Some(DIVERGED) => Ending::Diverged,
        Some(MEMORY) => Ending::Memory,
        Some(code) => Ending::Failed(format!("exit code {code}")),
        None => killed(status),
    }
}

#[cfg(unix)]
fn killed(status: ExitStatus) -> Ending {
    match std::os::unix::process::ExitStatusExt::signal(&status) {
        // Before it had a handler: while it made its plan.
        Some(libc::SIGTERM | libc::SIGINT | libc::SIGHUP) => Ending::Interrupted,
        Some(signal) => Ending::Failed(format!("killed by signal {signal}")),
        None => Ending::Failed("killed".into()),
    }
}

#[cfg(not(unix))]
fn killed(_: ExitStatus) -> Ending {
    Ending::Failed("killed".into())
}

/// How a trial's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// Exit code 0.
    Finished,
    /// Asked to stop, by us or by somebody else.
    Interrupted,
    /// Not finite.
    Diverged,
    /// Too large.
    Memory,
    /// Anything else.
    Failed(String),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_whole_and_the_last_words_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "of an earlier process\n").unwrap();
        let mut log = Log::open(&path).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(log.lines(false), ["one"]);
        file.write_all(b"o\nthree").unwrap();
        assert_eq!(log.lines(false), ["two"]);
        assert_eq!(log.lines(true), ["three"]);
        file.write_all("é".repeat(REASON).as_bytes()).unwrap();
        log.lines(true);
        assert!(log.said.len() <= REASON && log.said.chars().all(|c| c == 'é'));
    }
}
