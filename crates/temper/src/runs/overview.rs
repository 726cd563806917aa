//! The table of runs: one a row.

use std::cmp::Ordering;

use clap::ValueEnum;

use super::Run;
use crate::report::{Cell, Table};
use crate::units;

/// What runs are sorted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// When they last wrote, newest first.
    #[default]
    Written,
    /// The best value of the metric that decides, best first, metric by metric.
    Metric,
    /// Time of training, shortest first.
    Time,
    /// Name.
    Name,
    /// The last training loss, least first.
    Loss,
}

/// Sorts runs; those that lack what they are sorted by come last, in the order of their names.
pub fn sort(runs: &mut [Run], by: Sort) {
    runs.sort_by(|a, b| natural(&a.name, &b.name));
    match by {
        Sort::Name => {}
        Sort::Written => runs.sort_by(|a, b| lacking(a.written.as_ref(), b.written.as_ref(), |a, b| b.cmp(a))),
        Sort::Time => runs.sort_by(|a, b| lacking(a.seconds, b.seconds, |a, b| a.total_cmp(&b))),
        Sort::Loss => runs.sort_by(|a, b| lacking(a.loss, b.loss, |a, b| a.total_cmp(&b))),
        Sort::Metric => runs.sort_by(|a, b| {
            let key = |run: &Run| run.best_by().zip(run.score());
            lacking(key(a), key(b), |(metric, a), (other, b)| {
                let order = if metric.higher_is_better() { b.total_cmp(&a) } else { a.total_cmp(&b) };
                metric.name().cmp(other.name()).then(order)
            })
        }),
    }
}

/// `order` of what both have; what is not there comes last.
fn lacking<T>(a: Option<T>, b: Option<T>, order: impl Fn(T, T) -> Ordering) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => order(a, b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

/// The order of names in which `9` comes before `10`.
fn natural(a: &str, b: &str) -> Ordering {
    let key = |name: &str| -> Vec<(String, usize, String)> {
        let mut parts = Vec::new();
        let mut rest = name;
        while !rest.is_empty() {
            let words = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let end = rest[words..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| words + end);
            let digits = rest[words..end].trim_start_matches('0');
            parts.push((rest[..words].to_owned(), digits.len(), digits.to_owned()));
            rest = &rest[end..];
        }
        parts
    };
    key(a).cmp(&key(b)).then_with(|| a.cmp(b))
}

/// The runs as a table, and below it what is damaged.
pub fn overview(runs: &[Run]) -> (Table, Vec<String>) {
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in runs.iter().flat_map(|run| &run.set) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let heads = ["run", "state", "step", "best", "loss", "tok/s", "time", "last written (UTC)"];
    let row = |(number, run): (usize, &Run)| {
        let set = |key: &&str| run.set.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value.as_str());
        let cells = [run.state.words().into(), progress(run), best(run), optional(run.loss, units::number)];
        let times =
            [optional(run.tokens_per_second, units::short), optional(run.seconds, units::seconds), written(run)];
        let cells = cells.into_iter().chain(times).map(Cell::from).chain(keys.iter().map(|key| set(key).into()));
        std::iter::once(Cell::run(&run.name, number)).chain(cells).collect()
    };
    let table = Table {
        title: "Runs".into(),
        heads: heads.into_iter().chain(keys.iter().copied()).map(Cell::from).collect(),
        rows: runs.iter().enumerate().map(row).collect(),
    };
    let damaged = runs.iter().flat_map(|run| run.damaged.iter().map(|what| format!("{}: {what}", run.name)));
    (table, damaged.collect())
}

fn progress(run: &Run) -> String {
    let step = units::grouped(run.step);
    run.steps.map_or(step.clone(), |steps| format!("{step}/{}", units::grouped(steps)))
}

fn best(run: &Run) -> String {
    match (&run.metric, &run.best) {
        (Some(metric), Some(best)) => {
            let value = optional(best.value, units::number);
            format!("{metric} {value} at {}", units::grouped(best.step))
        }
        _ => NONE.into(),
    }
}

fn written(run: &Run) -> String {
    run.written.as_deref().and_then(|time| time.get(..16)).map_or(NONE.into(), |time| time.replace('T', " "))
}

/// What stands where nothing is known.
pub(super) const NONE: &str = "-";

pub(super) fn optional(value: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    value.map_or(NONE.into(), shown)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::runs::find;
    use crate::runs::tests::{evaluated, step, write};

    fn three(dir: &Path) -> Vec<Run> {
        write(&dir.join("run10"), "1e-3", &[step(2, 0.5), evaluated(2, "0.75", true)].concat());
        write(&dir.join("run9"), "1e-3", &[step(1, 0.25), evaluated(3, "0.875", true), step(4, 0.25)].concat());
        write(&dir.join("empty"), "1e-3", "");
        std::fs::remove_file(dir.join("empty/plan.json")).unwrap();
        find(dir).unwrap()
    }

    #[test]
    fn runs_are_sorted_by_what_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = three(dir.path());
        for (by, names) in [
            (Sort::Name, ["empty", "run9", "run10"]),
            (Sort::Metric, ["run9", "run10", "empty"]),
            (Sort::Time, ["run10", "run9", "empty"]),
            (Sort::Loss, ["run9", "run10", "empty"]),
        ] {
            sort(&mut runs, by);
            assert_eq!(runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>(), names, "{by:?}");
        }
        sort(&mut runs, Sort::Written);
        assert_eq!(runs[0].name, "empty", "its file is of today");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = three(dir.path());
        runs.iter_mut().for_each(|run| run.written = None);
        let (table, damaged) = overview(&runs);
        let lines = table.lines();
        assert!(lines[0].starts_with("run    state       step  best"), "{}", lines[0]);
        assert!(lines[1].starts_with("empty  broken off  0     -"), "{}", lines[1]);
        assert!(
            lines[2].starts_with("run10  broken off  2/8   accuracy 0.75 at 2   0.5   2k     1.0s  -"),
            "{}",
            lines[2]
        );
        assert_eq!(damaged.len(), 1);
        assert!(damaged[0].starts_with("empty: plan.json: "), "{damaged:?}");
    }
}
