//! `temper runs`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{print, writeln};
use crate::failure::{Context, Failure, Kind};
use crate::recipe::nearest;
use crate::report::{Table, render_runs};
use crate::run_dir::write_atomically;
use crate::runs::{Run, Sort, differences, find, is_run, overview, scores, sort};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RunsArgs {
    /// The directory; those below it are looked through.
    #[arg(default_value = "runs")]
    dir: PathBuf,
    /// What the list is sorted by.
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Also write a page with the curves of all runs over each other.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<RunsVerb>,
}

#[derive(Debug, Subcommand)]
enum RunsVerb {
    /// Say what was planned otherwise, and what came of it.
    Compare(CompareArgs),
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Run directories, two or more.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Also write a page with their curves over each other.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl RunsArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(RunsVerb::Compare(args)) = self.verb {
            return args.run();
        }
        let dir = &self.dir;
        if !dir.is_dir() {
            return Err(missing(dir));
        }
        let mut runs = find(dir).context(Kind::Other, format!("failed to read {}", dir.display()))?;
        sort(&mut runs, self.sort);
        let (table, damaged) = overview(&runs);
        if let Some(path) = &self.html {
            write_page(path, &dir.display().to_string(), &runs, std::slice::from_ref(&table))?;
        }
        if self.json {
            return print(&serde_json::to_value(&runs).context(Kind::Other, "failed to print the runs")?);
        }
        if runs.is_empty() {
            return writeln(&format!("no runs in {}", dir.display()));
        }
        let damaged = damaged.into_iter().map(|what| format!("damaged: {what}"));
        table.lines().into_iter().chain(damaged).try_for_each(|line| writeln(&line))
    }
}

impl CompareArgs {
    fn run(self) -> Result<(), Failure> {
        let mut runs = Vec::new();
        for dir in &self.runs {
            if !dir.is_dir() {
                return Err(missing(dir));
            }
            if !is_run(dir) {
                let message =
                    format!("error: {} is no run directory\n  = help: `temper runs DIR` lists runs", dir.display());
                return Err(Failure::new(Kind::Recipe, message));
            }
            runs.push(Run::with_sweep(dir, dir.display().to_string()));
        }
        let (differ, came) = (differences(&runs), scores(&runs));
        if let Some(path) = &self.html {
            write_page(path, "Runs compared", &runs, &[came.clone(), differ.clone()])?;
        }
        if differ.rows.is_empty() {
            writeln("nothing in their plans differs")?;
        } else {
            differ.lines().iter().try_for_each(|line| writeln(line))?;
        }
        writeln("")?;
        came.lines().iter().try_for_each(|line| writeln(line))?;
        let damaged =
            runs.iter().flat_map(|run| run.damaged.iter().map(|what| format!("damaged: {}: {what}", run.name)));
        damaged.into_iter().try_for_each(|line| writeln(&line))
    }
}

fn write_page(path: &Path, title: &str, runs: &[Run], tables: &[Table]) -> Result<(), Failure> {
    let data: Vec<_> = runs.iter().map(|run| run.report.clone()).collect();
    write_atomically(path, render_runs(title, &data, tables).as_bytes())
}

/// There is no such directory; perhaps one is called nearly so.
fn missing(dir: &Path) -> Failure {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let help = nearest(&name, names.iter().map(String::as_str))
        .map(|near| format!("\n  = help: did you mean `{}`?", dir.with_file_name(near).display()))
        .unwrap_or_default();
    Failure::new(Kind::Recipe, format!("error: there is no directory `{}`{help}", dir.display()))
}
