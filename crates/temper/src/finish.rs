//! After training: the model card and `report.html`, from the plan, the events and the evaluation of what ships.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use temper_data::{Examples, Label, Severity};
use temper_hub::{
    Card, Confusion, DataFile, DataSource, Dataset, Decision, Head, History, Metric, Pinned, Pipeline, Relation,
    license_of, render,
};
use temper_peft::Method;
use temper_tasks::{Evaluation, Problem, metrics};

use crate::events;
use crate::export::Shipped;
use crate::failure::{Context, Failure, Kind};
use crate::fetch::Source;
use crate::memory;
use crate::plan::{Plan, TaskPlan};
use crate::recipe::{Dtype, FrozenDtype, base_name, plain};
use crate::report::{self, EvaluationPoint, ReportData, Section, Split, WorstError, bins};
use crate::run_dir::write_atomically;

/// Rows of the table of errors.
const WORST: usize = 20;

/// What the pages say of the rows, counted once.
#[derive(Debug, Clone)]
pub struct Rows {
    splits: Vec<Split>,
    files: Vec<DataFile>,
}

impl Rows {
    /// Counts them.
    pub fn count(plan: &Plan, [train, eval]: [&Examples; 2]) -> Self {
        Self {
            splits: vec![split("train", train, plan), split("eval", eval, plan)],
            files: [files(plan, "train", train), files(plan, "eval", eval)].concat(),
        }
    }
}

/// An evaluation, and the rows that were measured.
pub type Measured<'a> = Option<(&'a Evaluation, &'a Examples)>;

/// What people read of a run.
pub struct Pages<'a> {
    shipped: &'a Shipped<'a>,
    scores: Option<&'a metrics::Scores>,
    files: &'a [DataFile],
    data: ReportData,
}

/// A model card and the curves that it shows, SVG.
pub struct Front {
    /// What `README.md` says.
    pub card: Card,
    /// `curves.svg`; empty where the card shows none.
    pub curves: String,
}

impl Front {
    /// Writes both into `dir`.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        if !self.curves.is_empty() {
            write_atomically(&dir.join("curves.svg"), self.curves.as_bytes())?;
        }
        write_atomically(&dir.join("README.md"), render(&self.card).as_bytes())
    }
}

impl<'a> Pages<'a> {
    /// Reads what they say, from the events on the disk and the evaluation of what ships.
    pub fn read(shipped: &'a Shipped<'a>, measured: Measured<'a>, rows: &'a Rows, run: &Path) -> Result<Self, Failure> {
        let data = report_data(shipped, measured, rows, run)?;
        Ok(Self { shipped, scores: measured.map(|(measured, _)| &measured.scores), files: &rows.files, data })
    }

    /// `report.html`, when all is done. This process began after step `since`.
    pub fn report(self, since: u64) -> String {
        report::render(&ReportData { peak_memory: memory::peak(), peak_since: since, ..self.data })
    }

    /// The card of what trained, or of the same with its adapter merged.
    pub fn front(&self, merged: bool) -> Front {
        let adapted = self.shipped.plan.adapter.config.method.is_adapter();
        let relation = if adapted && !merged { Relation::Adapter } else { Relation::Finetune };
        Front { card: self.card(relation), curves: report::render_svg_curves(&self.data) }
    }
}

fn report_data(shipped: &Shipped<'_>, measured: Measured<'_>, rows: &Rows, run: &Path) -> Result<ReportData, Failure> {
    let plan = shipped.plan;
    let title = |(title, rows): (&str, Vec<(String, String)>)| Section { title: title.into(), rows };
    let mut data = ReportData {
        name: plan.run.name.clone(),
        summary: summary(plan),
        recipe: shipped.recipe.source.text(),
        plan: plan.sections().into_iter().map(title).collect(),
        data: rows.splits.clone(),
        metric: plan.task.best_by().name().into(),
        trainable_parameters: plan.adapter.trainable() as u64,
        parameters: plan.adapter.total() as u64,
        confusion: measured.and_then(|(measured, eval)| confusion(plan, measured, eval)),
        errors: measured.map(|(measured, eval)| worst(shipped, measured, eval)).unwrap_or_default(),
        samples: measured.map(|(measured, _)| measured.samples.clone()).unwrap_or_default(),
        device: plan.device.to_string(),
        versions: versions(),
        ..ReportData::default()
    };
    let path = run.join("events.jsonl");
    let known = events::read_known(&path).context(Kind::Other, format!("failed to read {}", path.display()))?;
    if let Some(bad) = &known.bad {
        tracing::warn!("{} is damaged, and the report is made of the rest: {bad}", path.display());
    }
    data.add_events(&known.records);
    Ok(data)
}

fn summary(plan: &Plan) -> String {
    let base = plan.model.base.as_deref().map_or("random weights", |base| base.rsplit('/').next().unwrap_or(base));
    let adapter = &plan.adapter.config;
    let on = match plan.model.frozen_dtype {
        FrozenDtype::F32 => String::new(),
        dtype => format!(" on a base in {}", dtype.name()),
    };
    let method = match adapter.method {
        Method::Lora => format!("LoRA rank {}{on}", adapter.rank),
        Method::Dora => format!("DoRA rank {}{on}", adapter.rank),
        Method::Full => "full fine-tuning".into(),
        Method::Frozen => "head only".into(),
    };
    format!("{} · {base} · {method}", plan.model.class)
}

fn versions() -> Vec<(String, String)> {
    vec![("temper".into(), env!("CARGO_PKG_VERSION").into()), ("burn".into(), crate::BURN.into())]
}

fn split(name: &str, examples: &Examples, plan: &Plan) -> Split {
    let report = if name == "train" { &plan.data.report.train } else { &plan.data.report.eval };
    let lengths: Vec<usize> = (0..examples.len()).map(|row| examples.length(row)).collect();
    Split {
        name: name.into(),
        rows: report.rows as u64,
        tokens: report.tokens,
        truncated: report.truncated_rows as u64,
        lengths: bins(&lengths),
        labels: report.labels.iter().map(|label| (label.name.clone(), label.rows as u64)).collect(),
    }
}

/// Classes of each row, true and predicted, where each row has one.
fn classes(plan: &Plan, measured: &Evaluation, eval: &Examples) -> Option<Vec<(usize, usize)>> {
    match &plan.task {
        TaskPlan::SequenceClassification(task) if task.problem == Problem::SingleLabel => {}
        _ => return None,
    }
    let rows = measured.logits.iter().enumerate();
    rows.map(|(row, logits)| match eval.label(row) {
        Label::Class(class) => Some((class as usize, metrics::argmax(logits))),
        _ => None,
    })
    .collect()
}

fn confusion(plan: &Plan, measured: &Evaluation, eval: &Examples) -> Option<report::Confusion> {
    let (truth, guess): (Vec<usize>, Vec<usize>) = classes(plan, measured, eval)?.into_iter().unzip();
    let labels = plan.task.labels().to_vec();
    let counts = metrics::confusion(&truth, &guess, labels.len());
    Some(report::Confusion { labels, counts })
}

/// The wrong rows of which the model was surest.
fn worst(shipped: &Shipped<'_>, measured: &Evaluation, eval: &Examples) -> Vec<WorstError> {
    let labels = shipped.plan.task.labels();
    let classes = classes(shipped.plan, measured, eval).unwrap_or_default();
    let wrong = classes.into_iter().enumerate().filter(|(_, (truth, guess))| truth != guess);
    let mut errors: Vec<(usize, WorstError)> = wrong
        .map(|(row, (truth, guess))| {
            let probability = metrics::softmax(&measured.logits[row])[guess];
            let (label, predicted) = (labels[truth].clone(), labels[guess].clone());
            (row, WorstError { text: String::new(), label, predicted, probability })
        })
        .collect();
    errors.sort_by(|a, b| b.1.probability.total_cmp(&a.1.probability));
    errors.truncate(WORST);
    let text = |row: usize| shipped.tokenizer.decode(&eval.ids(row)).unwrap_or_default();
    errors.into_iter().map(|(row, error)| WorstError { text: text(row), ..error }).collect()
}

impl Pages<'_> {
    fn card(&self, relation: Relation) -> Card {
        let Self { shipped, files, data, .. } = self;
        let (plan, recipe) = (shipped.plan, shipped.recipe);
        let pipeline = Pipeline::from(&plan.task);
        let name = recipe.export.name.clone().unwrap_or_else(|| plan.run.name.clone());
        let mut card = Card::new(&name, relation, pipeline);
        card.summary = format!("{}, trained with temper.", data.summary);
        card.language = recipe.export.language.iter().cloned().collect();
        card.history = history(data);
        card.curves = Some("curves.svg".into());
        card.half = match relation {
            Relation::Adapter => ["dtype", "torch_dtype"]
                .iter()
                .filter_map(|key| shipped.config.raw[key].as_str())
                .any(|dtype| dtype != "float32"),
            Relation::Finetune => recipe.export.dtype != Dtype::F32,
        };
        if relation == Relation::Adapter {
            card.tags = vec![format!("{:?}", plan.adapter.config.method).to_lowercase()];
        }
        card.files = files.to_vec();
        card.labels = plan.task.labels().to_vec();
        if let TaskPlan::SequenceClassification(task) = &plan.task {
            card.head = match task.problem {
                Problem::SingleLabel => Head::Class,
                Problem::MultiLabel => Head::Labels,
                Problem::Regression => Head::Score,
            };
        }
        card.pairs = plan.data.config.text_pair.is_some();
        card.command = match pipeline {
            Pipeline::TextClassification if card.pairs => "temper predict DIR \"a text\" \"its second\"".into(),
            Pipeline::TextClassification => "temper predict DIR \"a text\"".into(),
            Pipeline::TextGeneration => "temper chat DIR".into(),
            Pipeline::FillMask | Pipeline::FeatureExtraction => {
                "temper train --recipe RECIPE --set model.base=DIR".into()
            }
        };
        card.hyperparameters =
            plan.sections().into_iter().filter(|(title, _)| *title == "train").flat_map(|(_, rows)| rows).collect();
        card.recipe = without_directories(&data.recipe, &recipe.local_paths());
        card.versions.clone_from(&data.versions);
        card.device.clone_from(&data.device);
        self.say_origin(&mut card);
        self.say_results(&mut card);
        card
    }

    /// Says what it was made from, and under which licence.
    fn say_origin(&self, card: &mut Card) {
        let (plan, recipe) = (self.shipped.plan, self.shipped.recipe);
        let inherited = || recipe.model.base.as_ref().and_then(|base| license_of(&recipe.resolve(base)));
        match self.shipped.licence {
            Some(decision) => decision.tell(card),
            None => card.license = recipe.export.license.clone().or_else(inherited),
        }
        let base = plan.source("model.base");
        card.base_revision = base.map(|pinned| pinned.commit.to_string());
        let base = base.map(|pinned| pinned.repo.id().to_owned()).or_else(|| plan.export.base_model.clone());
        // A directory is no name on the hub, even where it looks like one.
        let local = || recipe.model.base.as_ref().map(|base| format!("./{}", base_name(base)));
        card.base_model = base.or_else(local).unwrap_or_default();
        card.sources = data_sources(plan, self.shipped.licence);
        if let Some(endpoint) = &plan.endpoint {
            card.endpoint.clone_from(endpoint);
        }
    }

    /// Says what was measured and what was found wrong.
    fn say_results(&self, card: &mut Card) {
        let plan = self.shipped.plan;
        let eval_file = card.files.iter().find(|file| file.split == "eval").map(|file| file.name.clone());
        if let (Some(scores), Some(kind)) = (self.scores, eval_file) {
            let dataset = match plan.sources.iter().find(|source| source.key == "data.eval") {
                Some(Source { pinned: Pinned { repo, commit, .. }, split, .. }) => {
                    let [kind, name] = [repo.id(), repo.id()].map(str::to_owned);
                    Dataset { kind, name, split: split.clone(), revision: Some(commit.to_string()) }
                }
                None => Dataset { name: kind.clone(), kind, split: Some("eval".into()), revision: None },
            };
            card.evaluations = vec![temper_hub::Evaluation { dataset, metrics: card_metrics(scores) }];
            let rows = plan.data.report.eval.rows;
            let chose = if plan.train.eval_every.is_some() { "; they also chose the checkpoint" } else { "" };
            card.evaluated = vec![format!("The {rows} evaluation rows named above{chose}.")];
        }
        let serious = plan.data.report.findings.iter().filter(|finding| finding.severity != Severity::Info);
        card.not_evaluated = serious.map(|finding| format!("Found in the data: {}.", finding.message)).collect();
        let (dtype, adapter) = (plan.export.dtype, plan.adapter.config.method.is_adapter());
        if dtype != Dtype::F32 && (card.relation == Relation::Finetune || !adapter) {
            let stored = format!("The weights are stored in {}, rounded after everything was measured.", dtype.name());
            card.not_evaluated.push(stored);
        }
        if plan.model.frozen_dtype != FrozenDtype::F32 && card.relation == Relation::Adapter {
            card.not_evaluated.push(format!(
                "The base was in {} while the adapter learned and was measured; the code above loads it as it is stored, and its \
                 outputs differ by what rounding changed.",
                plan.model.frozen_dtype.name()
            ));
        }
        card.confusion = self.data.confusion.as_ref().map(|confusion| Confusion {
            labels: confusion.labels.clone(),
            counts: confusion.counts.iter().map(|row| row.iter().map(|&n| n as usize).collect()).collect(),
        });
    }
}

/// `text` with the file's or directory's own name in place of each of `paths`: the directories above it are this machine's.
fn without_directories(text: &str, paths: &[String]) -> String {
    let inner = |c: char| c.is_alphanumeric() || "/\\._-".contains(c);
    let mut out = text.to_owned();
    for path in paths.iter().filter(|path| path.contains(['/', '\\'])) {
        let mut rest = std::mem::take(&mut out);
        while let Some(at) = rest.find(path.as_str()) {
            let end = at + path.len();
            let whole = !rest[..at].ends_with(inner) && !rest[end..].starts_with(inner);
            out.push_str(&rest[..at]);
            out.push_str(if whole { base_name(path) } else { path });
            rest.drain(..end);
        }
        out.push_str(&rest);
    }
    out
}

/// The data sets of the hub that rows came from, each once.
fn data_sources(plan: &Plan, licence: Option<&Decision>) -> Vec<DataSource> {
    let mut sources: Vec<DataSource> = Vec::new();
    for source in plan.sources.iter().filter(|source| source.key.starts_with("data.")) {
        let (id, revision) = (source.pinned.repo.id().to_owned(), source.pinned.commit.to_string());
        let (config, split) = (source.config.clone().unwrap_or_default(), source.split.clone());
        let same = |known: &&mut DataSource| known.id == id && known.revision == revision && known.config == config;
        let of = source.pinned.repo.to_string();
        let terms = licence.and_then(|licence| licence.terms.iter().find(|terms| terms.of == of));
        let license = terms.and_then(|terms| terms.name.clone().or_else(|| terms.id.clone()));
        match sources.iter_mut().find(same) {
            Some(known) => known.splits.extend(split.filter(|split| !known.splits.contains(split))),
            None => sources.push(DataSource { id, config, splits: split.into_iter().collect(), revision, license }),
        }
    }
    sources
}

/// The evaluations of the run as a table.
fn history(data: &ReportData) -> Option<History> {
    let names: BTreeSet<&String> = data.evaluations.iter().flat_map(|evaluation| evaluation.scores.keys()).collect();
    let row = |evaluation: &EvaluationPoint| {
        let score = |name: &&String| evaluation.scores.get(*name).map_or("".into(), |value| format!("{value:.4}"));
        std::iter::once(evaluation.step.to_string()).chain(names.iter().map(score)).collect()
    };
    let rows: Vec<Vec<String>> = data.evaluations.iter().map(row).collect();
    let columns = std::iter::once("step".to_owned()).chain(names.iter().map(|name| (*name).clone())).collect();
    (!rows.is_empty()).then_some(History { columns, rows })
}

/// The files that rows came from, with how many came from each.
fn files(plan: &Plan, split: &str, examples: &Examples) -> Vec<DataFile> {
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for row in 0..examples.len() {
        *rows.entry(plain(examples.source(row).path).display().to_string()).or_default() += 1;
    }
    let file = |(path, rows): (String, usize)| {
        let pinned = plan.data.files.iter().find(|pinned| pinned.path == path)?;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Some(DataFile { split: split.into(), name, rows, sha256: pinned.sha256.clone() })
    };
    rows.into_iter().filter_map(file).collect()
}

/// What was measured; an undefined metric was not.
fn card_metrics(scores: &metrics::Scores) -> Vec<Metric> {
    let metric = |(name, value): (&String, &f64)| Metric { kind: name.clone(), name: name.clone(), value: *value };
    scores.iter().filter(|(_, value)| value.is_finite()).map(metric).collect()
}

impl From<&TaskPlan> for Pipeline {
    fn from(task: &TaskPlan) -> Self {
        match task {
            TaskPlan::SequenceClassification(_) => Self::TextClassification,
            TaskPlan::CausalLm(_) => Self::TextGeneration,
            TaskPlan::MaskedLm { .. } => Self::FillMask,
            TaskPlan::Distillation { .. } => Self::FeatureExtraction,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_keeps_the_names_of_files_and_not_where_they_lie() {
        let paths = ["../examples/encoder/", "data/a.jsonl", "runs", "../examples/encoder/x"].map(String::from);
        let text = "base = \"../examples/encoder/\"\ntrain = ['data/a.jsonl', \"hf://datasets/data/a.jsonl\"]\nruns\n# data.train=data/a.jsonl";
        let bare =
            "base = \"encoder\"\ntrain = ['a.jsonl', \"hf://datasets/data/a.jsonl\"]\nruns\n# data.train=a.jsonl";
        assert_eq!(without_directories(text, &paths), bare);
        assert_eq!(without_directories("x = \"../examples/encoder/x\"", &paths), "x = \"x\"");
    }
}
