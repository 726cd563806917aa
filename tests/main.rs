//! Everything that needs more than one crate, in one binary.
#![allow(clippy::unwrap_used)]

mod bad_files;
mod bad_recipes;
mod bench;
mod causal;
mod corridor;
mod devices;
mod golden;
mod house;
mod hub;
mod jobs;
mod ranks;
mod runs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// Runs `temper` in the root of the repository.
fn temper(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// `temper`, to be run in the root of the repository. Whoever asks burn for its default device, which depends on what was
/// compiled in, panics over that name.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_temper"));
    command.current_dir(root()).args(arguments).env("NO_COLOR", "1").env("BURN_DEVICE", "none");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
