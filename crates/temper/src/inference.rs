//! A trained classifier, loaded from what a run exported: for `eval`, `predict` and `merge`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::{Map, Value, json};
use temper_data::{DataConfig, Examples, LabelKind, Target, TokenBatch, Tokenizer};
use temper_models::{Config, Weights};
use temper_peft::file::{self, PeftConfig};
use temper_tasks::{Evaluation, Metric, Problem, SequenceClassifier, Task, metrics};

use crate::failure::{Context, Failure, Kind};
use crate::plan::TaskPlan;
use crate::provenance::{Objective, Provenance};
use crate::recipe::Dtype;
use crate::{build, export, fetch};

/// Rows per forward pass.
const ROWS: usize = 32;
/// A trained classifier.
pub struct Trained {
    /// Where it was read.
    pub dir: PathBuf,
    config: Config,
    task: TaskPlan,
    model: SequenceClassifier,
    tokenizer: Tokenizer,
    max_length: usize,
    provenance: Option<Provenance>,
}

impl Trained {
    /// Reads a run directory or an export: full weights, or an adapter with the base that it names.
    ///
    /// # Errors
    /// When something is missing, is not a classifier, or does not belong together.
    pub fn open(path: &Path, device: &Device) -> Result<Self, Failure> {
        let dir = if path.join("export").is_dir() { path.join("export") } else { path.to_path_buf() };
        let shown = dir.display().to_string();
        if !dir.join("config.json").is_file() {
            return Err(Failure::new(Kind::Data, format!("error: {shown} is neither a finished run nor an export")));
        }
        let at = |what: &str| format!("failed to load {what} of {shown}");
        let config = Config::read(&dir).context(Kind::Data, at("the configuration"))?;
        let provenance = Provenance::read(&dir)?;
        let task = task_of(&config, provenance.as_ref(), &shown)?;
        let tokenizer = Tokenizer::from_dir(&dir).context(Kind::Data, at("the tokenizer"))?;
        let adapter = dir.join("adapter_config.json").is_file().then(|| file::open(&dir)).transpose();
        let adapter = adapter.context(Kind::Data, at("the adapter"))?;
        let weights_dir = match &adapter {
            None => dir.clone(),
            Some(adapter) => base_of(&adapter.config)?,
        };
        if let (Some(provenance), Some(_)) = (&provenance, &adapter) {
            provenance.check_base(&weights_dir)?;
        }
        let weights = Weights::open(&weights_dir).context(Kind::Data, at("the weights"))?;
        let model = build::classifier(&config, &task, device);
        let model = build::restore(model, &config, &task, &weights, adapter.as_ref())?;
        let max_length = model_max_length(&dir).unwrap_or_else(|| config.max_positions().min(512));
        Ok(Self { dir, config, task, model, tokenizer, max_length, provenance })
    }

    /// The `[data]` table with the columns of training; the default for a model of another program.
    pub fn columns(&self) -> DataConfig {
        self.provenance.as_ref().map(Provenance::data).unwrap_or_default()
    }

    /// The label names.
    pub fn labels(&self) -> &[String] {
        self.task.labels()
    }

    /// Whether it carries an adapter.
    pub fn is_adapted(&self) -> bool {
        self.dir.join("adapter_config.json").is_file()
    }

    /// Reads the rows of a labelled file.
    pub fn examples(&self, data: &DataConfig) -> Result<Examples, Failure> {
        let TaskPlan::SequenceClassification { problem, labels, .. } = &self.task else {
            unreachable!("checked in open")
        };
        let kind = match problem {
            Problem::SingleLabel => LabelKind::Class(Some(labels.clone())),
            Problem::MultiLabel => LabelKind::Multi(Some(labels.clone())),
            Problem::Regression => LabelKind::Score,
        };
        let dataset = temper_data::load(data, Path::new(""), Target::Labels(kind), &self.tokenizer, self.max_length, 0)
            .context(Kind::Data, "failed to read the data")?;
        if dataset.train.is_empty() {
            return Err(Failure::new(Kind::Data, "error: there are no rows to measure on"));
        }
        Ok(dataset.train)
    }

    /// Measures the model on labelled rows.
    pub fn evaluate(&self, examples: &Examples) -> Evaluation {
        self.model.evaluate(&self.tokenizer.pad_id(), examples, ROWS)
    }

    /// One JSON object for each text or pair: `label` and `scores` by label name.
    pub fn predict(&self, texts: &[(String, Option<String>)]) -> Result<Vec<Value>, Failure> {
        let logits = self.logits(&self.model, texts)?;
        Ok(texts
            .iter()
            .zip(logits)
            .map(|((text, pair), logits)| self.prediction(text, pair.as_deref(), &logits))
            .collect())
    }

    fn logits(&self, model: &SequenceClassifier, texts: &[(String, Option<String>)]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut all = Vec::with_capacity(texts.len());
        for texts in texts.chunks(ROWS) {
            let encode =
                |(text, pair): &(String, Option<String>)| self.tokenizer.encode(text, pair.as_deref(), self.max_length);
            let encoded: Result<Vec<_>, _> = texts.iter().map(encode).collect();
            let encoded = encoded.context(Kind::Data, "failed to read a text")?;
            all.extend(model.predict_batch(&TokenBatch::from_encoded(&encoded, self.tokenizer.pad_id())));
        }
        Ok(all)
    }

    fn prediction(&self, text: &str, pair: Option<&str>, logits: &[f32]) -> Value {
        let TaskPlan::SequenceClassification { problem, labels, .. } = &self.task else {
            unreachable!("checked in open")
        };
        let by_label = |values: Vec<f64>| -> Value {
            Value::Object(labels.iter().cloned().zip(values.into_iter().map(Value::from)).collect::<Map<_, _>>())
        };
        let mut out = json!({ "text": text });
        if let Some(pair) = pair {
            out["text_pair"] = json!(pair);
        }
        match problem {
            Problem::SingleLabel => {
                out["label"] = json!(labels[metrics::argmax(logits)]);
                out["scores"] = by_label(metrics::softmax(logits));
            }
            Problem::MultiLabel => {
                let present = labels.iter().zip(logits).filter(|(_, logit)| **logit > 0.0);
                out["labels"] = json!(present.map(|(label, _)| label).collect::<Vec<_>>());
                out["scores"] = by_label(logits.iter().map(|&logit| metrics::sigmoid(logit)).collect());
            }
            Problem::Regression => out["score"] = json!(logits[0]),
        }
        out
    }

    /// Adds the adapter into the weights, proves that nothing changed on `probe` texts, and writes the model into `out`.
    /// Returns the largest difference of logits.
    pub fn merge(&self, out: &Path, probe: &[(String, Option<String>)]) -> Result<f32, Failure> {
        if !self.is_adapted() {
            let dir = self.dir.display();
            return Err(Failure::new(
                Kind::Recipe,
                format!("error: {dir} has full weights: there is nothing to merge"),
            ));
        }
        let holds_something = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
        if holds_something && !out.join("config.json").is_file() {
            let message = format!("error: {} exists and holds no model; name another directory", out.display());
            return Err(Failure::new(Kind::Recipe, message));
        }
        let outputs = |model: &SequenceClassifier| Ok(self.logits(model, probe)?.concat());
        let write = |merged: &SequenceClassifier, dir: &Path| {
            export::write_weights(merged, &self.config, Dtype::F32, dir)?;
            export::write_config(&class_of(&self.config), &self.task, &self.config, Dtype::F32, dir)?;
            export::write_tokenizer(&self.tokenizer, self.max_length, dir)?;
            let merged = |provenance: &Provenance| Provenance { base: Vec::new(), ..provenance.clone() };
            self.provenance.as_ref().map_or(Ok(()), |provenance| merged(provenance).write(dir))
        };
        export::export_merged(&self.model, outputs, write, out)
    }
}

/// Where the base of an adapter lies: a directory, or a repository of the hub.
fn base_of(config: &PeftConfig) -> Result<PathBuf, Failure> {
    let base = config.base_model_name_or_path.as_deref().unwrap_or_default();
    if Path::new(base).is_dir() || Path::new(base).is_absolute() {
        return Ok(base.into());
    }
    fetch::model(base, config.revision.as_deref())
}

/// The class that wrote a `config.json`.
fn class_of(config: &Config) -> String {
    config.raw["architectures"][0].as_str().unwrap_or_default().to_owned()
}

/// What a `config.json` of ours, or of Transformers, says about the head.
fn task_of(config: &Config, provenance: Option<&Provenance>, shown: &str) -> Result<TaskPlan, Failure> {
    let class = class_of(config);
    if !class.ends_with("ForSequenceClassification") {
        let message = format!("error: {shown} holds a {class}, and this command is for sequence classification");
        return Err(Failure::new(Kind::Data, message));
    }
    let problem = match config.raw["problem_type"].as_str() {
        Some("multi_label_classification") => Problem::MultiLabel,
        Some("regression") => Problem::Regression,
        _ => Problem::SingleLabel,
    };
    let labels = config.labels();
    let objective = provenance.and_then(|provenance| provenance.objective.clone());
    let Objective { class_weights, label_smoothing, metrics } =
        objective.filter(|objective| objective.class_weights.len() == labels.len()).unwrap_or_else(|| Objective {
            class_weights: vec![1.0; labels.len()],
            label_smoothing: 0.0,
            metrics: problem.possible_metrics().to_vec(),
        });
    Ok(TaskPlan::SequenceClassification {
        problem,
        labels,
        class_weights,
        label_smoothing,
        metrics,
        best_by: Metric::Loss,
    })
}

fn model_max_length(dir: &Path) -> Option<usize> {
    let text = fs::read_to_string(dir.join("tokenizer_config.json")).ok()?;
    let settings: Value = serde_json::from_str(&text).ok()?;
    settings["model_max_length"].as_u64().map(|length| length as usize).filter(|&length| length <= 1 << 20)
}
