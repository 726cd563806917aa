//! `train`: short for `temper train`.

use std::process::ExitCode;

use clap::Parser;
use temper::cli::TrainCli;

fn main() -> ExitCode {
    temper::exit(TrainCli::parse().run())
}
