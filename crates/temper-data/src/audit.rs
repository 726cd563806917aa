//! The audit that always runs: what in the data would make training pointless or its measure false.

use std::sync::Arc;

use rayon::prelude::*;

use crate::{
    examples::{Examples, Rows, Store},
    hash::RowHash,
    labels::Column,
    order::per_epoch,
    report::{DataReport, Finding, Severity, SplitReport},
    tokenizer::Tokenizer,
};

/// Share of truncated rows, and of unknown tokens, above which a warning is due.
const SHARE: f64 = 0.05;
/// What rounding may change of a file's share.
const ROUNDED: f64 = 0.1;
/// A class this many times as common as another is a finding.
const IMBALANCE: usize = 10;

/// Rows of one side of a data set, and what each says.
pub(crate) struct Split {
    pub name: &'static str,
    pub examples: Examples,
    hashes: Vec<RowHash>,
    /// Rows left out because they are too long.
    pub dropped: Cases,
}

impl Split {
    /// The rows `rows` of `store`, whose rows say `hashes`; those that were cut are left out if `dropping`.
    pub(crate) fn new(
        name: &'static str,
        store: Arc<Store>,
        mut rows: Vec<u32>,
        hashes: &[RowHash],
        names: &Arc<[String]>,
        dropping: bool,
    ) -> Self {
        let whole = |row: &u32| store.lost[*row as usize] == 0;
        let mut dropped = Cases::default();
        if dropping {
            let examples =
                Examples::new(store.clone(), rows.iter().copied().filter(|row| !whole(row)).collect(), names.clone());
            (0..examples.len()).for_each(|row| dropped.add(|| long(&examples, row)));
            rows.retain(whole);
        }
        let hashes = rows.iter().map(|&row| hashes[row as usize]).collect();
        Self { name, examples: Examples::new(store, rows, names.clone()), hashes, dropped }
    }

    /// Whether a row has no text but white space.
    pub(crate) fn is_blank(&self, row: usize) -> bool {
        self.hashes[row].blank
    }
}

/// A row and its length before cutting.
pub(crate) fn long(examples: &Examples, row: usize) -> String {
    format!("{} ({} tokens)", examples.source(row), examples.length(row) + examples.lost(row))
}

/// Everything that looks wrong, worst first.
pub(crate) fn findings(
    report: &DataReport,
    train: &Split,
    eval: &Split,
    eval_wanted: bool,
    tokenizer: &Tokenizer,
) -> Vec<Finding> {
    let mut audit = Audit(Vec::new());
    if train.examples.is_empty() {
        audit.add(Severity::Error, "no-rows", "there are no training rows");
        return audit.0;
    }
    if eval_wanted && eval.examples.is_empty() {
        audit.add(Severity::Error, "no-eval-rows", "there are no evaluation rows (data.eval, or a part of data.train)");
    }
    audit.labels(&train.examples, &report.train, &report.eval);
    audit.duplicates(train);
    audit.leakage(train, eval);
    for (split, counts) in [(train, &report.train), (eval, &report.eval)] {
        audit.rows(split, counts, report.max_length);
        audit.targets(split, tokenizer);
    }
    audit.sorted()
}

/// The findings with those on files of which an epoch has another share than their weights say, for it has whole rows.
pub(crate) fn weights(findings: Vec<Finding>, train: &Examples) -> Vec<Finding> {
    let mut audit = Audit(findings);
    let unit = if matches!(&*train.rows, Rows::Packs(_)) { "packs" } else { "rows" };
    for (run, weight) in train.runs() {
        let of = run.len();
        let (said, seen) = (of as f64 * weight, per_epoch(of, weight));
        if (seen as f64 - said).abs() <= ROUNDED * said {
            continue;
        }
        let severity = if seen == 0 { Severity::Error } else { Severity::Warning };
        let message = format!(
            "an epoch has whole {unit}: with a weight of {weight}, {seen} of the {of} from {} on; write a weight that makes whole \
             ones (data.train)",
            train.source(run.start)
        );
        audit.add(severity, "rounded-weight", message);
    }
    audit.sorted()
}

/// Findings, as they come.
pub(crate) struct Audit(pub Vec<Finding>);

impl Audit {
    pub(crate) fn add(&mut self, severity: Severity, code: &'static str, message: impl Into<String>) {
        self.0.push(Finding { severity, code, message: message.into() });
    }

    /// The findings, worst first.
    pub(crate) fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.severity);
        self.0
    }

    fn labels(&mut self, train: &Examples, report: &SplitReport, eval: &SplitReport) {
        let class = matches!(train.store.labels, Column::Class(_));
        if let Some([low, _]) = report.scores.filter(|[low, high]| low == high) {
            let message = format!("every training score is {low}; there is nothing to learn");
            self.add(Severity::Error, "constant-score", message);
        }
        if let Some([score, _]) = eval.scores.filter(|[low, high]| low == high) {
            let message = format!("every evaluation score is {score}: correlations with it are undefined");
            self.add(Severity::Warning, "constant-eval-score", message);
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
        let measured = || eval.labels.iter().filter(|count| count.rows > 0);
        if class && eval.rows > 0 && !measured().any(|count| used.iter().any(|own| own.name == count.name)) {
            let [train, eval] =
                [used.first().copied(), measured().next()].map(|count| count.map_or("", |count| &count.name));
            let message = format!(
                "no evaluation row has the label of a training row: \"{eval}\" is none of theirs, such as \"{train}\""
            );
            self.add(Severity::Error, "other-labels-in-eval", message);
        }
        let plain = |name: &str| name.trim().trim_end_matches(".0").to_lowercase();
        let mut names: Vec<_> =
            used.iter().copied().chain(measured()).map(|count| (plain(&count.name), &count.name)).collect();
        names.sort();
        names.dedup();
        if let Some(alike) = names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let message = format!(
                "the labels \"{}\" and \"{}\" are two, and differ in case, white space or \".0\" alone",
                alike[0].1, alike[1].1
            );
            self.add(Severity::Warning, "labels-alike", message);
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

    fn duplicates(&mut self, Split { examples: train, hashes, .. }: &Split) {
        let mut order: Vec<(u64, u64, u32)> =
            hashes.iter().enumerate().map(|(row, hash)| (hash.normal, hash.exact, row as u32)).collect();
        order.par_sort_unstable();
        let (mut exact, mut near, mut conflicts) = (Cases::default(), Cases::default(), Cases::default());
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

    fn leakage(&mut self, train: &Split, eval: &Split) {
        let (train_hashes, eval_hashes) = (&train.hashes, &eval.hashes);
        let (train, eval) = (&train.examples, &eval.examples);
        let mut order: Vec<(u64, u32)> =
            train_hashes.iter().enumerate().map(|(row, hash)| (hash.normal, row as u32)).collect();
        order.par_sort_unstable();
        let mut shared = Cases::default();
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

    /// Where tokens are what is learned, as in masked language models, there must be one. Causal language models have a
    /// finding of their own.
    fn targets(&mut self, Split { name, examples, .. }: &Split, tokenizer: &Tokenizer) {
        let from_tokens = matches!(examples.store.labels, Column::None) && !examples.is_causal();
        let special = |row: usize| examples.ids(row).iter().all(|&id| tokenizer.is_special(id));
        if from_tokens && !examples.is_empty() && (0..examples.len()).all(special) {
            let mut cases = Cases::default();
            (0..examples.len()).for_each(|row| cases.add(|| examples.source(row).to_string()));
            let message = format!(
                "the {name} rows have no token but special ones, and nothing to learn: {}; give rows whose text the \
                 tokenizer knows",
                cases.shown()
            );
            self.add(Severity::Error, "nothing-to-learn", message);
        }
    }

    fn rows(&mut self, split: &Split, report: &SplitReport, max_length: usize) {
        let Split { name, examples, hashes, .. } = split;
        let mut blank = Cases::default();
        for (row, _) in hashes.iter().enumerate().filter(|(_, hash)| hash.blank) {
            blank.add(|| examples.source(row).to_string());
        }
        if blank.count > 0 {
            let left = match examples.store.labels {
                _ if *name != "training" => "",
                _ if examples.is_causal() => " to learn, and at most that it ends is learned from them",
                Column::None => ", and nothing is learned from them",
                _ => "",
            };
            let message = format!("{} {name} rows have no text{left}: {}", blank.count, blank.shown());
            self.add(Severity::Warning, "empty-rows", message);
        }
        let cut = report.truncated_rows as f64 / report.rows.max(1) as f64;
        // Those of causal language models have findings of their own.
        if cut > SHARE && !examples.is_causal() {
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
#[derive(Debug, Default)]
pub(crate) struct Cases {
    pub count: usize,
    cases: Vec<String>,
}

impl Cases {
    pub(crate) fn add(&mut self, case: impl FnOnce() -> String) {
        self.count += 1;
        if self.cases.len() < 3 {
            self.cases.push(case());
        }
    }

    pub(crate) fn shown(&self) -> String {
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
