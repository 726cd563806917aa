//! Jobs for schedulers: a batch script for Slurm, a manifest for Kubernetes, which a person can read and edit.
//!
//! Both rest on what holds for every run: a signal makes it write a checkpoint and end with exit code 5, the same command
//! goes on from the last checkpoint, and one process at a time has the run directory. What is left to the scheduler is to
//! send the signal in time and to start the same command again, after some exit codes and not after others.

pub mod kubernetes;
pub mod shell;
pub mod slurm;
mod values;

use std::path::{Path, PathBuf};

use clap::Args;
use temper_files::is_special;
use temper_world::Backend;

use crate::failure::{Context, Failure, Kind};
use crate::recipe::{Recipe, plain};
use crate::run_dir::write_atomically;

/// Files that a comment names; of more it says how many.
const NAMED: usize = 12;

/// What a job trains.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The recipe, found to be right.
    pub recipe: &'a Recipe,
    /// Its path, as the user wrote it.
    pub path: &'a Path,
    /// What takes the place of its values, `train.lr=1e-4` say.
    pub overrides: &'a [String],
}

/// Where a job is written to.
#[derive(Debug, Args)]
pub struct Output {
    /// Write it to FILE, whole or not at all, instead of printing it. A file that is there and different stays as it is.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is different.
    #[arg(long, requires = "out")]
    force: bool,
}

impl Output {
    /// Writes `text` where it was asked for, and says so; gives it back when it is to be printed.
    ///
    /// # Errors
    /// When the file is there and different, or cannot be written.
    pub fn write(&self, text: String) -> Result<Option<String>, Failure> {
        let Some(path) = &self.out else { return Ok(Some(text)) };
        let shown = path.display();
        let old = if is_special(path) { None } else { Some(std::fs::read(path)) };
        match old {
            Some(Ok(old)) if old == text.as_bytes() => return Ok(None),
            Some(Ok(_)) if !self.force => {
                let help = "give another name, or replace it with `--force`";
                let message = format!("error: {shown} is there, and is different\n  = help: {help}");
                return Err(Failure::new(Kind::Recipe, message));
            }
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(Kind::Other, format!("failed to read {shown}"));
            }
            _ => {}
        }
        write_atomically(path, text.as_bytes())?;
        Ok(None)
    }
}

impl Work<'_> {
    /// The path of the recipe, as text.
    fn path(&self) -> Result<&str, Failure> {
        let refused = || {
            let message = format!("error: the path of the recipe, {}, is not UTF-8", self.path.display());
            Failure::new(Kind::Recipe, message)
        };
        self.path.to_str().ok_or_else(refused)
    }

    /// The arguments of `temper` that run it. A job that asks for GPUs takes one or fails: `auto` would also train on the
    /// processor.
    fn arguments(&self, recipe: &str, gpus: bool) -> Result<Vec<Vec<String>>, Failure> {
        let device = self.recipe.device.use_.as_str();
        if gpus && device == "cpu" {
            let message = "error: the job asks for GPUs, and `use` in [device] is the processor";
            let help = "leave out the GPUs, or write `--set device.use=cuda`";
            return Err(Failure::new(Kind::Recipe, format!("{message}\n  = help: {help}")));
        }
        let cuda = (gpus && device == "auto").then(|| "device.use=cuda".to_owned());
        let set = self.overrides.iter().cloned().chain(cuda).map(|set| vec!["--set".to_owned(), set]);
        // In one word: a name may begin as an option does.
        let train = [vec!["train".to_owned()], vec![format!("--recipe={recipe}")]];
        Ok(train.into_iter().chain(set).collect())
    }

    /// Refuses a recipe whose ranks would meet another way than they do in the job.
    fn meets_by(&self, there: Backend) -> Result<(), Failure> {
        let (asked, there) = (self.recipe.distributed.backend, there.name());
        if asked.name() == there || matches!(asked, Backend::Auto | Backend::Nccl) {
            return Ok(());
        }
        let message = format!(
            "error: the job's processes meet by `{there}`, and `backend` in [distributed] is `{}`",
            asked.name()
        );
        Err(Failure::new(Kind::Recipe, format!("{message}\n  = help: write `--set distributed.backend=auto`")))
    }

    /// The files and directories that a recipe at `place` reads.
    fn files(&self, place: &str) -> Vec<String> {
        let beside = Path::new(place).parent().unwrap_or(Path::new(""));
        let files = self.recipe.local_inputs().into_iter();
        let mut files: Vec<String> = files.map(|path| plain(&beside.join(path)).display().to_string()).collect();
        files.sort();
        files.dedup();
        let more = files.len().saturating_sub(NAMED);
        files.truncate(NAMED);
        if more > 0 {
            files.push(format!("and {more} more"));
        }
        files
    }
}

/// `text` in a comment: on one line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "\u{2028}\u{2029}".contains(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_stays_on_its_line() {
        assert_eq!(comment("a\nrm -r b\r\u{85}\u{2028}c"), "a\u{fffd}rm -r b\u{fffd}\u{fffd}\u{fffd}c");
    }
}
