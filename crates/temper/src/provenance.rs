//! `temper.json`: what an export remembers of its training, so that it can be used away from its run.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use temper_data::{ChatColumns, DataConfig, Format, LabelColumns, LongRows, TrainOn};
use temper_hub::Card;
use temper_tasks::Metric;

use crate::failure::{Context, Failure, Kind};
use crate::plan::{CausalPlan, PinnedFile, Plan, TaskPlan};
use crate::recipe::{FrozenDtype, base_name};
use crate::run_dir::write_json;

/// The file's name.
const NAME: &str = "temper.json";

/// What an export remembers of its training. Nothing in it names a place on the machine that trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version of temper that wrote it.
    pub temper: String,
    /// How the rows are read.
    pub columns: Columns,
    /// How a classifier was taught.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// How a language model's answers are judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Answers>,
    /// The weights that an adapter was trained on; empty for full weights.
    pub base: Vec<PinnedFile>,
    /// How the base's linear layers were kept under the adapter.
    #[serde(default)]
    pub frozen_dtype: FrozenDtype,
    /// How far training had come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<Trained>,
    /// What its card says: a merge writes the same card for other weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
}

/// How far training had come when something was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trained {
    /// Optimizer steps done.
    pub step: u64,
    /// Whether they were all that were to be done.
    pub finished: bool,
}

/// How the rows are read: their columns, and what a chat template makes of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Columns {
    text: String,
    text_pair: Option<String>,
    label: LabelColumns,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<Format>,
    #[serde(default)]
    columns: ChatColumns,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    template_variables: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template_date: Option<String>,
    #[serde(default)]
    train_on: TrainOn,
    #[serde(default)]
    long_rows: LongRows,
}

/// How a language model's answers are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// What is measured beside loss and perplexity.
    pub metrics: Vec<Metric>,
    /// What of an answer `regex_match` compares.
    pub answer: Option<String>,
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
}

impl Default for Answers {
    fn default() -> Self {
        Self { metrics: Vec::new(), answer: None, max_new_tokens: 64 }
    }
}

/// How a classifier was taught.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// The weight of each label in the loss.
    pub class_weights: Vec<f32>,
    /// Label smoothing.
    pub label_smoothing: f32,
    /// What was measured.
    pub metrics: Vec<Metric>,
}

impl Provenance {
    /// Of what `plan` trains.
    pub fn of(plan: &Plan, trained: Trained, card: Card) -> Self {
        let data = plan.data.config.clone();
        let answers = match &plan.task {
            TaskPlan::CausalLm(CausalPlan { metrics, answer, max_new_tokens, .. }) => {
                Some(Answers { metrics: metrics.clone(), answer: answer.clone(), max_new_tokens: *max_new_tokens })
            }
            _ => None,
        };
        let objective = match &plan.task {
            TaskPlan::SequenceClassification(task) => Some(Objective {
                class_weights: task.class_weights.clone(),
                label_smoothing: task.label_smoothing,
                metrics: task.metrics.clone(),
            }),
            TaskPlan::CausalLm(_) | TaskPlan::MaskedLm { .. } | TaskPlan::Distillation { .. } => None,
        };
        let adapted = plan.adapter.config.method.is_adapter();
        let weights = plan.model.files.iter().filter(|file| adapted && file.path.ends_with(".safetensors"));
        let name = |file: &PinnedFile| PinnedFile { path: base_name(&file.path).into(), ..file.clone() };
        Self {
            temper: env!("CARGO_PKG_VERSION").into(),
            columns: Columns {
                text: data.text,
                text_pair: data.text_pair,
                label: data.label,
                format: data.format,
                columns: data.columns,
                template_variables: data.template_variables,
                template_date: data.template_date,
                train_on: data.train_on,
                long_rows: data.long_rows,
            },
            objective,
            answers,
            base: weights.map(name).collect(),
            frozen_dtype: plan.model.frozen_dtype,
            trained: Some(trained),
            card: Some(card),
        }
    }

    /// Writes it into an export.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        let card = self.card.as_ref().map(Card::without_secrets);
        let value = serde_json::to_value(Self { card, ..self.clone() }).context(Kind::Other, "failed to write JSON")?;
        write_json(&dir.join(NAME), &value)
    }

    /// Reads that of an export; other programs' models have none.
    ///
    /// # Errors
    /// When it is there and cannot be understood.
    pub fn read(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(NAME);
        let Ok(text) = fs::read_to_string(&path) else { return Ok(None) };
        let what = || format!("failed to understand {}", path.display());
        let read: Self = serde_json::from_str(&text).context(Kind::Data, what())?;
        match read.wrong() {
            None => Ok(Some(read)),
            Some(reason) => Err(Failure::new(Kind::Data, format!("error: {}: {reason}", what()))),
        }
    }

    /// What cannot have been written by temper.
    fn wrong(&self) -> Option<&'static str> {
        let plain = |file: &PinnedFile| base_name(&file.path) == file.path && file.path.ends_with(".safetensors");
        let hash =
            |file: &PinnedFile| file.sha256.len() == 64 && file.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !self.base.iter().all(|file| plain(file) && hash(file)) {
            return Some("`base` must name safetensors files and their sha256");
        }
        let sound = |objective: &Objective| {
            let weight = |weight: &f32| weight.is_finite() && *weight > 0.0;
            (0.0..1.0).contains(&objective.label_smoothing) && objective.class_weights.iter().all(weight)
        };
        if !self.objective.as_ref().is_none_or(sound) {
            return Some("`objective` is out of range");
        }
        let judged = |answers: &Answers| answers.answer.as_ref().is_none_or(|answer| Regex::new(answer).is_ok());
        (!self.answers.as_ref().is_none_or(judged)).then_some("`answers` has no regular expression")
    }

    /// The `[data]` table with the columns of training.
    pub fn data(&self) -> DataConfig {
        let columns = self.columns.clone();
        DataConfig {
            text: columns.text,
            text_pair: columns.text_pair,
            label: columns.label,
            format: columns.format,
            columns: columns.columns,
            template_variables: columns.template_variables,
            template_date: columns.template_date,
            train_on: columns.train_on,
            long_rows: columns.long_rows,
            ..DataConfig::default()
        }
    }

    /// Refuses weights that are not those that the adapter was trained on: the sum of the two would be noise that looks
    /// like a model.
    pub fn check_base(
        &self,
        dir: &Path,
        pin: impl FnOnce(Vec<PathBuf>) -> Result<Vec<PinnedFile>, Failure>,
    ) -> Result<(), Failure> {
        let found = pin(self.base.iter().map(|file| dir.join(&file.path)).collect())?;
        match self.base.iter().zip(&found).find(|(wanted, found)| wanted.sha256 != found.sha256) {
            None => Ok(()),
            Some((wanted, found)) => Err(Failure::new(
                Kind::Data,
                format!(
                    "error: {} is not the file that the adapter was trained on: its sha256 is {}…, and was {}…",
                    found.path,
                    &found.sha256[..12],
                    &wanted.sha256[..12]
                ),
            )),
        }
    }
}
