//! The audit that always runs: what in the data would make training pointless or its measure false.

use rayon::prelude::*;

use crate::{
    examples::Examples,
    labels::Column,
    load::RowHash,
    report::{DataReport, Finding, Severity, SplitReport},
};

/// Share of truncated rows, and of unknown tokens, above which a warning is due.
const SHARE: f64 = 0.05;
/// A class this many times as common as another is a finding.
const IMBALANCE: usize = 10;

type Split<'a> = (&'a Examples, &'a [RowHash]);

/// Everything that looks wrong, worst first.
pub(crate) fn findings(report: &DataReport, train: Split, eval: Split, eval_wanted: bool) -> Vec<Finding> {
    let mut audit = Audit(Vec::new());
    if train.0.is_empty() {
        audit.add(Severity::Error, "no-rows", "there are no training rows");
        return audit.0;
    }
    if eval_wanted && eval.0.is_empty() {
        audit.add(Severity::Error, "no-eval-rows", "there are no evaluation rows; give data.eval or more rows");
    }
    audit.labels(train.0, &report.train, &report.eval);
    audit.duplicates(train);
    audit.leakage(train, eval);
    for (name, split, (examples, hashes)) in [("training", &report.train, train), ("evaluation", &report.eval, eval)] {
        audit.rows(name, split, report.max_length, examples, hashes);
    }
    audit.0.sort_by_key(|finding| finding.severity);
    audit.0
}

struct Audit(Vec<Finding>);

impl Audit {
    fn add(&mut self, severity: Severity, code: &'static str, message: impl Into<String>) {
        self.0.push(Finding { severity, code, message: message.into() });
    }

    fn labels(&mut self, train: &Examples, report: &SplitReport, eval: &SplitReport) {
        let class = matches!(train.store.labels, Column::Class(_));
        if let Some([low, high]) = report.scores.filter(|[low, high]| low == high) {
            let message = format!("every training score is {low}; there is nothing to learn");
            debug_assert_eq!(low, high);
            self.add(Severity::Error, "constant-score", message);
        }
        let used: Vec<_> = report.labels.iter().filter(|count| count.rows > 0).collect();
        match used.as_slice() {
            [only] if class => {
                let message = format!("every training row is \"{}\"; a classifier needs two classes", only.name);
                self.add(Severity::Error, "one-class", message);
            }
            [] if !report.labels.is_empty() => {
                self.add(Severity::Error, "no-labels", "no training row has any label");
            }
            _ => {}
        }
        let without = |report: &SplitReport| -> Vec<String> {
            report.labels.iter().filter(|count| count.rows == 0).map(|count| format!("\"{}\"", count.name)).collect()
        };
        for (code, split, missing) in [
            ("class-missing-in-train", "training", without(report)),
            ("class-missing-in-eval", "evaluation", if eval.rows == 0 { Vec::new() } else { without(eval) }),
        ] {
            if !missing.is_empty() {
                let message = format!("no {split} row has {}", first(&missing));
                self.add(Severity::Warning, code, message);
            }
        }
        let most = used.iter().max_by_key(|count| count.rows);
        let least = used.iter().min_by_key(|count| count.rows);
        if let (Some(most), Some(least), true) = (most, least, class)
            && most.rows >= IMBALANCE * least.rows
        {
            let message = format!(
                "\"{}\" has {} training rows, \"{}\" only {}; accuracy hides the rare class, look at F1",
                most.name, most.rows, least.name, least.rows
            );
            self.add(Severity::Warning, "label-imbalance", message);
        }
    }

    fn duplicates(&mut self, (train, hashes): Split) {
        let mut order: Vec<(u64, u64, u32)> =
            hashes.iter().enumerate().map(|(row, hash)| (hash.normal, hash.exact, row as u32)).collect();
        order.par_sort_unstable();
        let (mut exact, mut near, mut conflicts) = (Sample::default(), Sample::default(), Sample::default());
        for group in order.chunk_by(|a, b| a.0 == b.0) {
            if group.len() == hashes.len() && group.len() > 1 {
                let message = format!("all {} training rows say the same", group.len());
                return self.add(Severity::Error, "identical-rows", message);
            }
            let label = train.fingerprint(group[0].2 as usize);
            if let Some(other) = group.iter().find(|(_, _, row)| train.fingerprint(*row as usize) != label) {
                conflicts.add(|| pair(train, group[0].2, train, other.2));
            }
            for pair_of in group.windows(2) {
                let kind = if pair_of[0].1 == pair_of[1].1 { &mut exact } else { &mut near };
                kind.add(|| pair(train, pair_of[0].2, train, pair_of[1].2));
            }
        }
        if exact.count > 0 {
            let message = format!("{} training rows repeat another one: {}", exact.count, exact.shown());
            self.add(Severity::Warning, "duplicate-rows", message);
        }
        if near.count > 0 {
            let message = format!(
                "{} training rows repeat another one but for case or white space: {}",
                near.count,
                near.shown()
            );
            self.add(Severity::Info, "near-duplicate-rows", message);
        }
        if conflicts.count > 0 {
            let message =
                format!("{} texts come with different labels in training: {}", conflicts.count, conflicts.shown());
            self.add(Severity::Warning, "conflicting-labels", message);
        }
    }

    fn leakage(&mut self, (train, train_hashes): Split, (eval, eval_hashes): Split) {
        let mut order: Vec<(u64, u32)> =
            train_hashes.iter().enumerate().map(|(row, hash)| (hash.normal, row as u32)).collect();
        order.par_sort_unstable();
        let mut shared = Sample::default();
        for (row, hash) in eval_hashes.iter().enumerate() {
            let at = order.partition_point(|(normal, _)| *normal < hash.normal);
            if let Some((_, other)) = order.get(at).filter(|(normal, _)| *normal == hash.normal) {
                shared.add(|| pair(eval, row as u32, train, *other));
            }
        }
        if shared.count > 0 {
            let message = format!(
                "{} of {} evaluation rows are also training rows, which flatters the evaluation: {}",
                shared.count,
                eval.len(),
                shared.shown()
            );
            self.add(Severity::Warning, "leakage", message);
        }
    }

    fn rows(&mut self, name: &str, report: &SplitReport, max_length: usize, examples: &Examples, hashes: &[RowHash]) {
        let mut blank = Sample::default();
        for (row, _) in hashes.iter().enumerate().filter(|(_, hash)| hash.blank) {
            blank.add(|| examples.source(row).to_string());
        }
        if blank.count > 0 {
            let message = format!("{} {name} rows have no text: {}", blank.count, blank.shown());
            self.add(Severity::Warning, "empty-rows", message);
        }
        let cut = report.truncated_rows as f64 / report.rows.max(1) as f64;
        if cut > SHARE {
            let message = format!(
                "{} of {} {name} rows ({:.0} %) are longer than {max_length} tokens; {} tokens are cut off \
                 (data.max_length)",
                report.truncated_rows,
                report.rows,
                100.0 * cut,
                report.tokens_lost
            );
            self.add(Severity::Warning, "truncated-rows", message);
        }
        if report.unknown_share > SHARE {
            let share = 100.0 * report.unknown_share;
            let message =
                format!("the tokenizer does not know {share:.0} % of the {name} tokens; is it the right one?");
            self.add(Severity::Warning, "unknown-tokens", message);
        }
    }
}

/// A count and its first few cases.
#[derive(Default)]
struct Sample {
    count: usize,
    cases: Vec<String>,
}

impl Sample {
    fn add(&mut self, case: impl FnOnce() -> String) {
        self.count += 1;
        if self.cases.len() < 3 {
            self.cases.push(case());
        }
    }

    fn shown(&self) -> String {
        let more = if self.count > self.cases.len() { ", …" } else { "" };
        format!("{}{more}", self.cases.join(", "))
    }
}

fn pair(a: &Examples, row: u32, b: &Examples, other: u32) -> String {
    format!("{} = {}", a.source(row as usize), b.source(other as usize))
}

/// The first ten of some names.
fn first(names: &[String]) -> String {
    let more = if names.len() > 10 { format!(" and {} more", names.len() - 10) } else { String::new() };
    format!("{}{more}", names[..names.len().min(10)].join(", "))
}
