//! `temper sweep`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{LogArgs, LogFormat, RecipeArgs, writeln};
use crate::failure::{Failure, Kind};
use crate::job::shell::word;
use crate::ranks;
use crate::sweep::{Asked, MedianRule, Sweep, sweep};

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Try every combination of these values, such as `train.lr=1e-4,3e-4`. May be given several times.
    #[arg(long, value_name = "KEY=V1,V2,...", required_unless_present = "random", conflicts_with = "random")]
    grid: Vec<String>,
    /// Try N random draws of the keys that `--range` and `--choice` name.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    random: Option<u32>,
    /// Draw a number between two, `train.lr=1e-5..1e-3:log` on a logarithmic scale; whole numbers give whole numbers.
    #[arg(long, value_name = "KEY=LOW..HIGH[:log]", requires = "random")]
    range: Vec<String>,
    /// Draw one of these values.
    #[arg(long, value_name = "KEY=V1,V2,...", requires = "random")]
    choice: Vec<String>,
    /// The seed of the draws: the same seed draws the same values, and more draws begin with the fewer. Default: 0.
    #[arg(long, value_name = "N", requires = "random")]
    seed: Option<u64>,
    /// When to stop a trial early. One that is stopped keeps its last checkpoint and has no export.
    #[arg(long, value_name = "RULE", default_value = "never")]
    stop: Rule,
    /// Evaluations that each trial has before it may be stopped. Default: 2.
    #[arg(long, value_name = "N")]
    min_evals: Option<usize>,
    /// Trials that must have ended before another may be stopped. Default: 3.
    #[arg(long, value_name = "N")]
    min_trials: Option<usize>,
    /// Where the trials go. Default: `runs/NAME-sweep`.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Start over: remove what the trials of an earlier sweep left in its directory.
    #[arg(long)]
    fresh: bool,
}

/// When to stop a trial early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    /// Let all trials end.
    Never,
    /// When its best score is worse than the median of the other trials' averages up to there (Golovin et al. 2017).
    Median,
}

impl SweepArgs {
    pub(super) fn run(self, logs: &LogArgs) -> Result<(), Failure> {
        if ranks::place()?.size > 1 {
            let message = "error: this process is a rank of several, and each would run the sweep: start it alone";
            return Err(Failure::new(Kind::Recipe, message));
        }
        // clap lets them pass beside what excludes `--random`.
        if self.random.is_none() && (self.seed.is_some() || !self.range.is_empty() || !self.choice.is_empty()) {
            let message = "error: --range, --choice and --seed have no effect without --random";
            return Err(Failure::new(Kind::Recipe, message));
        }
        if logs.log_format == LogFormat::Json {
            let message = "error: the lines of several trials are for people: --log-format json is for one run";
            return Err(Failure::new(Kind::Recipe, message));
        }
        if self.random.is_some() && self.range.is_empty() && self.choice.is_empty() {
            let message = "error: --random draws nothing\n  = help: name keys with `--range` or `--choice`";
            return Err(Failure::new(Kind::Recipe, message));
        }
        if self.stop == Rule::Never && (self.min_evals.is_some() || self.min_trials.is_some()) {
            let message = "error: --min-evals and --min-trials have no effect while no trial is stopped\n  = help: write `--stop \
                           median` too, or remove them";
            return Err(Failure::new(Kind::Recipe, message));
        }
        let rule = MedianRule { min_evals: self.min_evals.unwrap_or(2), min_trials: self.min_trials.unwrap_or(3) };
        let asked = Asked {
            grid: self.grid,
            random: self.random.unwrap_or(0) as usize,
            range: self.range,
            choice: self.choice,
            seed: self.seed.unwrap_or(0),
        };
        let summary = sweep(&Sweep {
            recipe: self.recipe.recipe,
            set: self.recipe.overrides,
            asked,
            stop: (self.stop == Rule::Median).then_some(rule),
            dir: self.dir,
            fresh: self.fresh,
            log_level: logs.log_level,
        })?;
        summary.table.lines().iter().try_for_each(|line| writeln(line))?;
        match summary.best {
            Some(best) => {
                writeln(&best)?;
                writeln(&format!("more: temper runs {} --html sweep.html", word(&summary.dir.display().to_string())))
            }
            None => Err(Failure::new(Kind::Other, "error: no trial came to a score")),
        }
    }
}
