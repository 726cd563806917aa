//! Runs side by side: what was planned otherwise, and what came of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use temper_tasks::Metric;

use super::overview::{NONE, optional};
use super::{Evaluation, Run};
use crate::report::{Cell, Table};
use crate::units;

/// What of a plan is no choice: where it goes, what it takes, what was counted, what follows from the rest.
const APART: [&str; 7] =
    ["fingerprint", "memory", "run", "to_come", "data.report", "adapter.modules", "adapter.groups"];

/// Tables of the recipe, as the plan calls them.
const TABLES: [(&str, &str); 6] = [
    ("train.config.", "train."),
    ("train.optim.", "optim."),
    ("train.schedule.", "schedule."),
    ("train.eval.", "eval."),
    ("adapter.config.", "adapter."),
    ("data.config.", "data."),
];

/// Differences within a list above which only the list is named.
const WITHIN: usize = 3;

/// The most letters of a value that are shown.
const LETTERS: usize = 40;

/// The values of a plan by their dotted names, with the list that each lies in.
#[derive(Default)]
struct Leaves {
    values: BTreeMap<String, Value>,
    lists: BTreeMap<String, String>,
}

impl Leaves {
    fn of(plan: &Value) -> Self {
        let mut leaves = Self::default();
        leaves.add("", plan, None);
        leaves
    }

    /// Whether there is a value, or a list, of that name.
    fn has(&self, name: &str) -> bool {
        self.values.contains_key(name) || self.lists.values().any(|list| list == name)
    }

    fn add(&mut self, path: &str, value: &Value, list: Option<&str>) {
        if APART.contains(&path) {
            return;
        }
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match value {
            Value::Object(table) => table.iter().for_each(|(key, value)| self.add(&below(key), value, list)),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let list = list.unwrap_or(path);
                items.iter().enumerate().for_each(|(i, item)| self.add(&below(&i.to_string()), item, Some(list)));
            }
            _ => {
                self.lists.extend(list.map(|list| (path.to_owned(), list.to_owned())));
                self.values.insert(path.to_owned(), value.clone());
            }
        }
    }
}

/// The values of the plans that are not the same in all runs, key by key.
pub fn differences(runs: &[Run]) -> Table {
    let leaves: Vec<Leaves> = runs.iter().map(|run| Leaves::of(&run.plan)).collect();
    let names: BTreeSet<&String> = leaves.iter().flat_map(|leaves| leaves.values.keys()).collect();
    let values = |name: &str| leaves.iter().map(|leaves| leaves.values.get(name)).collect::<Vec<_>>();
    let differ = |name: &&&String| values(name).windows(2).any(|pair| known(pair[0]) != known(pair[1]));
    // What became of a key of the recipe has its name, and is what counts.
    let superseded = |name: &&&String| named(name) != ***name && leaves.iter().any(|leaves| leaves.has(&named(name)));
    let names: Vec<&String> = names.iter().filter(differ).filter(|name| !superseded(name)).copied().collect();
    let list = |name: &str| leaves.iter().find_map(|leaves| leaves.lists.get(name)).map(String::as_str);
    let mut rows: Vec<(String, Vec<Cell>)> = Vec::new();
    for name in &names {
        match list(name) {
            Some(list) if names.iter().filter(|other| list_of(&leaves, other) == Some(list)).count() > WITHIN => {
                if rows.iter().all(|(key, _)| *key != named(list)) {
                    let items = runs.iter().map(|run| items(&run.plan, list).into());
                    rows.push((named(list), items.collect()));
                }
            }
            // The same list where it is one value.
            None if leaves.iter().any(|leaves| leaves.lists.values().any(|list| list == *name)) => {
                let whole = runs.iter().zip(&leaves).map(|(run, leaves)| match leaves.values.get(*name) {
                    value @ Some(_) => shown(value).into(),
                    None => items(&run.plan, name).into(),
                });
                rows.push((named(name), whole.collect()));
            }
            _ => rows.push((named(name), values(name).into_iter().map(|value| shown(value).into()).collect())),
        }
    }
    let rows = rows.into_iter().map(|(name, cells)| std::iter::once(name.into()).chain(cells).collect());
    Table { title: "What differs".into(), heads: heads("key", runs), rows: rows.collect() }
}

fn list_of<'a>(leaves: &'a [Leaves], name: &str) -> Option<&'a str> {
    leaves.iter().find_map(|leaves| leaves.lists.get(name)).map(String::as_str)
}

/// A key that a plan lacks and one that is null say the same.
fn known(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

/// The key as a recipe calls it.
fn named(name: &str) -> String {
    let table = TABLES.iter().find_map(|(plan, recipe)| Some(format!("{recipe}{}", name.strip_prefix(plan)?)));
    table.unwrap_or_else(|| name.to_owned())
}

fn shown(value: Option<&Value>) -> String {
    let text = match known(value) {
        None => NONE.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What a list says where its items are too many to compare.
fn items(plan: &Value, list: &str) -> String {
    let found = list.split('.').try_fold(plan, |value, key| match value {
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        value => value.get(key),
    });
    match found.and_then(Value::as_array).map(Vec::len) {
        Some(1) => "1 item".into(),
        Some(count) => format!("{count} items"),
        None => NONE.into(),
    }
}

fn heads(first: &str, runs: &[Run]) -> Vec<Cell> {
    let names = runs.iter().enumerate().map(|(number, run)| Cell::run(&run.name, number));
    std::iter::once(first.into()).chain(names).collect()
}

/// What came of the runs: the scores of the best and of the last evaluation, loss, speed and time. The best of a row is
/// marked where it is known which way is better.
pub fn scores(runs: &[Run]) -> Table {
    let mut rows = vec![texts("state", runs, |run| run.state.words().into())];
    rows.push(texts("steps", runs, |run| units::grouped(run.step)));
    let when = [("best", best as fn(&Run) -> Option<&Evaluation>), ("last", last)];
    // Where all ended at their best, it is said once.
    let once = runs.iter().all(|run| best(run).map(|best| best.step) == last(run).map(|last| last.step));
    for (when, evaluation) in when.into_iter().take(if once { 1 } else { 2 }) {
        rows.push(texts(&format!("{when} evaluation at step"), runs, |run| {
            evaluation(run).map_or(NONE.into(), |evaluation| units::grouped(evaluation.step))
        }));
        let measured = runs.iter().filter_map(evaluation).flat_map(|evaluation| evaluation.scores.0.keys());
        let mut metrics: Vec<&String> = measured.collect();
        metrics.sort_by_key(|metric| (!runs.iter().any(|run| run.metric.as_ref() == Some(metric)), *metric));
        metrics.dedup();
        for metric in metrics {
            let higher = Metric::from_name(metric).map(Metric::higher_is_better);
            let value = |run: &Run| evaluation(run).and_then(|evaluation| evaluation.scores.get(metric));
            rows.push(numbers(&format!("  {metric}"), runs, higher, value, units::number));
        }
    }
    rows.push(numbers("training loss", runs, Some(false), |run| run.loss, units::number));
    rows.push(numbers("tokens per second", runs, Some(true), |run| run.tokens_per_second, units::short));
    rows.push(numbers("time of training", runs, None, |run| run.seconds, units::seconds));
    Table { title: "What came of it".into(), heads: heads("", runs), rows }
}

fn best(run: &Run) -> Option<&Evaluation> {
    run.best.as_ref()
}

fn last(run: &Run) -> Option<&Evaluation> {
    run.last.as_ref()
}

fn texts(name: &str, runs: &[Run], text: impl Fn(&Run) -> String) -> Vec<Cell> {
    std::iter::once(name.into()).chain(runs.iter().map(|run| text(run).into())).collect()
}

fn numbers(
    name: &str,
    runs: &[Run],
    higher: Option<bool>,
    value: impl Fn(&Run) -> Option<f64>,
    shown: fn(f64) -> String,
) -> Vec<Cell> {
    let values: Vec<Option<f64>> = runs.iter().map(|run| value(run).filter(|value| value.is_finite())).collect();
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    let best = higher.and_then(|higher| known.iter().copied().reduce(if higher { f64::max } else { f64::min }));
    // Where all that have one are equal, or one run alone has one, none is the best.
    let differ = known.iter().any(|value| *value != known[0]);
    let cell = |value: &Option<f64>| Cell {
        text: optional(*value, shown),
        best: differ && value.is_some() && *value == best,
        run: None,
    };
    std::iter::once(name.into()).chain(values.iter().map(cell)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runs::find;
    use crate::runs::tests::{evaluated, step, write};

    fn runs() -> Vec<Run> {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("a"), "1e-3", &[step(2, 0.5), evaluated(2, "0.75", true)].concat());
        write(&dir.path().join("b"), "2e-3", &[step(2, 0.25), evaluated(2, "0.5", true)].concat());
        find(dir.path()).unwrap()
    }

    fn texts(table: &Table) -> Vec<Vec<String>> {
        let text = |row: &Vec<Cell>| row.iter().map(|cell| cell.text.clone()).collect();
        table.rows.iter().map(text).collect()
    }

    #[test]
    fn only_what_differs_is_shown_under_the_names_of_the_recipe() {
        let mut runs = runs();
        assert_eq!(texts(&differences(&runs)), [["train.lr", "0.001", "0.002"]]);
        runs[1].plan = runs[0].plan.clone();
        assert!(differences(&runs).rows.is_empty());
        runs[1].plan = Value::Null;
        let found = texts(&differences(&runs));
        assert!(found.contains(&["train.lr", "0.001", "-"].map(str::to_owned).to_vec()), "{found:?}");
    }

    #[test]
    fn long_lists_that_differ_are_named_as_a_whole() {
        let mut runs = runs();
        let files = |count: usize, bytes: usize| {
            (0..count).map(|i| json!({ "path": format!("file {i}"), "bytes": bytes })).collect::<Vec<_>>()
        };
        for (run, bytes) in runs.iter_mut().zip([4, 8]) {
            let (data, model) = (files(9, bytes), files(1, bytes));
            run.plan =
                json!({ "data": { "files": data }, "model": { "files": model }, "adapter": { "modules": model } });
        }
        let rows = [["data.files", "9 items", "9 items"], ["model.files.0.bytes", "4", "8"]];
        assert_eq!(texts(&differences(&runs)), rows);
    }

    #[test]
    fn what_became_of_a_key_stands_for_it() {
        let mut runs = runs();
        let plans = [
            json!({ "data": { "config": { "max_length": null, "train": "a" }, "max_length": 64 } }),
            json!({ "data": { "config": { "max_length": 128, "train": [{ "path": "b", "weight": 2 }] }, "max_length": 128 } }),
        ];
        runs.iter_mut().zip(plans).for_each(|(run, plan)| run.plan = plan);
        let rows = texts(&differences(&runs));
        assert_eq!(
            rows.iter().filter(|row| row[0] == "data.max_length").collect::<Vec<_>>(),
            [&["data.max_length", "64", "128"]]
        );
        assert!(rows.contains(&["data.train", "a", "1 item"].map(str::to_owned).to_vec()), "{rows:?}");
    }

    #[test]
    fn the_best_of_each_row_is_marked() {
        let lines = scores(&runs()).lines();
        let line = |name: &str| lines.iter().find(|line| line.trim_start().starts_with(name)).unwrap().clone();
        assert_eq!(line("accuracy"), "  accuracy               0.75 *      0.5");
        assert_eq!(line("loss"), "  loss                   0.5         0.5", "equal ones have no mark");
        assert_eq!(line("training loss"), "training loss            0.5         0.25 *");
        assert_eq!(line("tokens per second"), "tokens per second        2k          2k");
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(shown(Some(&json!("é".repeat(50)))), format!("{}…", "é".repeat(40)));
        assert_eq!(shown(Some(&json!(["a", 1]))), "[\"a\",1]");
    }
}
