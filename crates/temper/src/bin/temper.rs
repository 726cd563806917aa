//! `temper`: fine-tune and train models from a TOML recipe.

use std::process::ExitCode;

use clap::Parser;
use temper::cli::Cli;

fn main() -> ExitCode {
    temper::exit(Cli::parse().run())
}
