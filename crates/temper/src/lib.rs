//! What did the user ask, and what will we do? Recipe, plan, run.
//!
//! Read [`train`](mod@train) first: it is the whole house seen from the front door.

/// `eprintln!` to whoever still listens: a terminal that was closed, or a pipe, ends no run.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

pub mod build;
pub mod cli;
pub mod device;
pub mod diagnostic;
pub mod events;
pub mod export;
pub mod failure;
pub mod fetch;
pub mod finish;
pub mod inference;
pub mod job;
pub mod language;
pub mod logs;
pub mod memory;
pub mod opened;
pub mod plan;
pub mod profile;
pub mod progress;
pub mod provenance;
pub mod push;
pub mod pushing;
pub mod ranks;
pub mod recipe;
pub mod report;
pub mod reporters;
pub mod resolve;
pub mod run_dir;
pub mod runs;
pub mod signals;
pub mod sweep;
pub mod tensorboard;
pub mod train;
pub mod units;

use std::process::ExitCode;

use failure::Failure;

/// The version of burn that this is built on.
pub const BURN: &str = "0.22.1";

/// Prints the failure, if there is one, and says how the process ends.
pub fn exit(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_unsaid() {
                say!("{failure}");
            }
            failure.exit_code()
        }
    }
}
