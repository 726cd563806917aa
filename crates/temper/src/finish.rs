//! After training: the model card and `report.html`, from the plan, the events and the evaluation of what ships.

use std::collections::{BTreeMap, BTreeSet};

use temper_data::{Examples, Label, Severity};
use temper_hub::{
    Card, Confusion, DataFile, DataSource, Dataset, History, Metric, Pinned, Pipeline, Relation, license_of, render,
};
use temper_peft::Method;
use temper_tasks::{Evaluation, Problem, metrics};

use crate::events;
use crate::export::Shipped;
use crate::failure::{Context, Failure, Kind};
use crate::fetch::Source;
use crate::memory;
use crate::plan::{Plan, TaskPlan};
use crate::recipe::plain;
use crate::report::{self, EvaluationPoint, ReportData, Section, Split, WorstError, bins};
use crate::run_dir::RunDir;

/// Rows of the table of errors.
const WORST: usize = 20;

/// What people read of a run.
pub struct Pages {
    /// `report.html`.
    pub report: String,
    /// The model card of what trained.
    pub card: String,
    /// The model card of the same with its adapter merged.
    pub merged_card: String,
    /// The curves that the cards show, SVG.
    pub curves: String,
}

impl Pages {
    /// Writes them, from the events on the disk and the evaluation of what ships.
    pub fn compose(
        shipped: &Shipped<'_>,
        measured: Option<&Evaluation>,
        splits: [&Examples; 2],
        run: &RunDir,
    ) -> Result<Self, Failure> {
        let data = report_data(shipped, measured, splits, run)?;
        let adapted = matches!(shipped.plan.adapter.config.method, Method::Lora | Method::Dora);
        let relation = if adapted { Relation::Adapter } else { Relation::Finetune };
        let card = |relation| render(&card(shipped, measured, &data, splits, relation));
        Ok(Self {
            report: report::render(&data),
            card: card(relation),
            merged_card: card(Relation::Finetune),
            curves: report::render_svg_curves(&data),
        })
    }
}

fn report_data(
    shipped: &Shipped<'_>,
    measured: Option<&Evaluation>,
    [train, eval]: [&Examples; 2],
    run: &RunDir,
) -> Result<ReportData, Failure> {
    let plan = shipped.plan;
    let title = |(title, rows): (&str, Vec<(String, String)>)| Section { title: title.into(), rows };
    let mut data = ReportData {
        name: plan.run.name.clone(),
        summary: summary(plan),
        recipe: shipped.recipe.source.text(),
        plan: plan.sections().into_iter().map(title).collect(),
        data: vec![split("train", train, plan), split("eval", eval, plan)],
        metric: plan.task.best_by().name().into(),
        trainable_parameters: plan.adapter.trainable() as u64,
        parameters: plan.adapter.total() as u64,
        confusion: measured.and_then(|measured| confusion(plan, measured, eval)),
        errors: measured.map(|measured| worst(shipped, measured, eval)).unwrap_or_default(),
        peak_memory: memory::peak(),
        device: format!("{}, {} threads, {}", plan.device.name, plan.device.threads, plan.device.precision),
        versions: versions(),
        ..ReportData::default()
    };
    let path = run.join("events.jsonl");
    let records = events::read(&path).context(Kind::Other, format!("failed to read {}", path.display()))?;
    data.add_events(&records);
    Ok(data)
}

fn summary(plan: &Plan) -> String {
    let base = plan.model.base.as_deref().map_or("random weights", |base| base.rsplit('/').next().unwrap_or(base));
    let adapter = &plan.adapter.config;
    let method = match adapter.method {
        Method::Lora => format!("LoRA rank {}", adapter.rank),
        Method::Dora => format!("DoRA rank {}", adapter.rank),
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
    let TaskPlan::SequenceClassification { problem: Problem::SingleLabel, .. } = plan.task else { return None };
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

fn card(
    shipped: &Shipped<'_>,
    measured: Option<&Evaluation>,
    data: &ReportData,
    [train, eval]: [&Examples; 2],
    relation: Relation,
) -> Card {
    let (plan, recipe) = (shipped.plan, shipped.recipe);
    let adapted = matches!(plan.adapter.config.method, Method::Lora | Method::Dora);
    let pipeline = match plan.task {
        TaskPlan::SequenceClassification { .. } => Pipeline::TextClassification,
        TaskPlan::MaskedLm { .. } => Pipeline::FillMask,
        TaskPlan::Distillation { .. } => Pipeline::FeatureExtraction,
    };
    let name = recipe.export.name.clone().unwrap_or_else(|| plan.run.name.clone());
    let mut card = Card::new(&name, relation, pipeline);
    card.summary = format!("{}, trained with temper.", data.summary);
    card.language = recipe.export.language.iter().cloned().collect();
    let inherited = || recipe.model.base.as_ref().and_then(|base| license_of(&recipe.resolve(base)));
    match shipped.licence {
        Some(decision) => {
            card.license.clone_from(&decision.license);
            card.license_name.clone_from(&decision.license_name);
            card.license_notes.clone_from(&decision.notes);
        }
        None => card.license = recipe.export.license.clone().or_else(inherited),
    }
    let base = plan.source("model.base");
    card.base_revision = base.map(|pinned| pinned.commit.to_string());
    let base = base.map(|pinned| pinned.repo.id().to_owned()).or_else(|| plan.export.base_model.clone());
    card.base_model = base.or_else(|| recipe.model.base.clone()).unwrap_or_default();
    card.sources = data_sources(plan);
    card.history = history(data);
    card.curves = Some("curves.svg".into());
    card.tags = if adapted { vec![format!("{:?}", plan.adapter.config.method).to_lowercase()] } else { Vec::new() };
    card.files = [files(plan, "train", train), files(plan, "eval", eval)].concat();
    card.labels = plan.task.labels().to_vec();
    let eval_file = card.files.iter().find(|file| file.split == "eval").map(|file| file.name.clone());
    if let (Some(measured), Some(kind)) = (measured, eval_file) {
        let dataset = match plan.sources.iter().find(|source| source.key == "data.eval") {
            Some(Source { pinned: Pinned { repo, commit, .. }, split, .. }) => {
                let [kind, name] = [repo.id(), repo.id()].map(str::to_owned);
                Dataset { kind, name, split: split.clone(), revision: Some(commit.to_string()) }
            }
            None => Dataset { name: kind.clone(), kind, split: Some("eval".into()), revision: None },
        };
        card.evaluations = vec![temper_hub::Evaluation { dataset, metrics: card_metrics(&measured.scores) }];
        let rows = plan.data.report.eval.rows;
        card.evaluated = vec![format!("The {rows} evaluation rows named above; they also chose the checkpoint.")];
    }
    card.not_evaluated = vec![
        "Data from other sources, other languages, other lengths.".into(),
        "Bias towards groups of people, robustness against attacks, calibration.".into(),
    ];
    let serious = plan.data.report.findings.iter().filter(|finding| finding.severity != Severity::Info);
    card.not_evaluated.extend(serious.map(|finding| format!("Found in the data: {}.", finding.message)));
    card.confusion = data.confusion.as_ref().map(|confusion| Confusion {
        labels: confusion.labels.clone(),
        counts: confusion.counts.iter().map(|row| row.iter().map(|&n| n as usize).collect()).collect(),
    });
    card.command = match pipeline {
        Pipeline::TextClassification => "temper predict DIR \"a text\"".into(),
        Pipeline::FillMask | Pipeline::FeatureExtraction => "temper train --recipe RECIPE --set model.base=DIR".into(),
    };
    card.hyperparameters =
        plan.sections().into_iter().filter(|(title, _)| *title == "train").flat_map(|(_, rows)| rows).collect();
    card.recipe.clone_from(&data.recipe);
    card.versions.clone_from(&data.versions);
    card.device.clone_from(&data.device);
    card
}

/// The data sets of the hub that rows came from, each once.
fn data_sources(plan: &Plan) -> Vec<DataSource> {
    let mut sources: Vec<DataSource> = Vec::new();
    for source in plan.sources.iter().filter(|source| source.key.starts_with("data.")) {
        let (id, revision) = (source.pinned.repo.id().to_owned(), source.pinned.commit.to_string());
        let (config, split) = (source.config.clone().unwrap_or_default(), source.split.clone());
        let same = |known: &&mut DataSource| known.id == id && known.revision == revision && known.config == config;
        match sources.iter_mut().find(same) {
            Some(known) => known.splits.extend(split.filter(|split| !known.splits.contains(split))),
            None => {
                sources.push(DataSource { id, config, splits: split.into_iter().collect(), revision, license: None })
            }
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

fn card_metrics(scores: &metrics::Scores) -> Vec<Metric> {
    let metric = |(name, value): (&String, &f64)| Metric { kind: name.clone(), name: name.clone(), value: *value };
    scores.iter().map(metric).collect()
}
