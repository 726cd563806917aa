//! Everything that needs more than one crate, in one binary.
#![allow(clippy::unwrap_used)]

mod bad_recipes;
mod corridor;
mod house;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Runs `temper` in the root of the repository.
fn temper(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// `temper`, to be run in the root of the repository.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(temper_binary());
    command.current_dir(root()).args(arguments).env("NO_COLOR", "1");
    command
}

/// The binary, beside the tests: `cargo test --workspace` builds it first.
fn temper_binary() -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    dir.pop();
    dir.join(format!("temper{}", std::env::consts::EXE_SUFFIX))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
