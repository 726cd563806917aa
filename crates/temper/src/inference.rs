//! A trained classifier, loaded from what a run exported: for `eval`, `predict` and `merge`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde_json::{Map, Value, json};
use temper_data::{DataConfig, Examples, LabelKind, Target, TokenBatch, Tokenizer};
use temper_hub::{Card, Pipeline, Relation, license_of};
use temper_models::{Config, Weights};
use temper_peft::file::{self, AdapterFile, PeftConfig};
use temper_tasks::{Evaluation, Metric, Problem, SequenceClassifier, Task, metrics};

use crate::failure::{Context, Failure, Kind};
use crate::finish::Front;
use crate::plan::TaskPlan;
use crate::provenance::{Objective, Provenance};
use crate::recipe::Dtype;
use crate::resolve::pin;
use crate::{build, export, fetch};

/// Rows per forward pass.
const ROWS: usize = 32;

/// A trained classifier.
pub struct Trained {
    /// Where it was read.
    pub dir: PathBuf,
    /// What its adapter calls its base.
    base: String,
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
        let at = |what: &str| format!("failed to load {what} of {shown}");
        let adapter = dir.join("adapter_config.json").is_file().then(|| file::open(&dir)).transpose();
        let adapter = adapter.context(Kind::Data, at("the adapter"))?;
        let weights_dir = match &adapter {
            None => dir.clone(),
            Some(adapter) => base_of(&adapter.config)?,
        };
        // What another program saved may be an adapter alone; then the rest is its base's.
        let place = |names: &[&str]| {
            let here = names.iter().any(|name| dir.join(name).is_file());
            if here { &dir } else { &weights_dir }
        };
        let config_dir = place(&["config.json"]);
        if !config_dir.join("config.json").is_file() {
            return Err(Failure::new(Kind::Data, format!("error: {shown} is neither a finished run nor an export")));
        }
        let mut config = Config::read(config_dir).context(Kind::Data, at("the configuration"))?;
        if let (Some(adapter), true) = (&adapter, config_dir != &dir) {
            take_head(&mut config, adapter);
        }
        let provenance = Provenance::read(&dir)?;
        let task = task_of(&config, provenance.as_ref(), &shown)?;
        let tokenizer_dir = place(&["tokenizer.json", "vocab.txt", "vocab.json"]);
        let tokenizer = Tokenizer::from_dir(tokenizer_dir).context(Kind::Data, at("the tokenizer"))?;
        if let (Some(provenance), Some(_)) = (&provenance, &adapter) {
            provenance.check_base(&weights_dir, |paths| paths.into_iter().map(pin).collect())?;
        }
        let weights = Weights::open(&weights_dir).context(Kind::Data, at("the weights"))?;
        let model = build::classifier(&config, &task, device);
        let model = build::restore(model, &config, &task, &weights, adapter.as_ref())?;
        let max_length = model_max_length(tokenizer_dir).unwrap_or_else(|| config.max_positions().min(512));
        let base = adapter.and_then(|adapter| adapter.config.base_model_name_or_path).unwrap_or_default();
        Ok(Self { dir, base, config, task, model, tokenizer, max_length, provenance })
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
            let front = self.merged_front();
            if let Some(provenance) = &self.provenance {
                let card = Some(front.card.clone());
                Provenance { base: Vec::new(), card, ..provenance.clone() }.write(dir)?;
            }
            front.write(dir)
        };
        export::export_merged(&self.model, outputs, write, out)
    }

    /// The card of the adapter as that of the merged weights. An adapter of another program has none that could be read:
    /// then it says what is known.
    fn merged_front(&self) -> Front {
        let known = self.provenance.as_ref().and_then(|provenance| provenance.card.clone());
        let mut card = known.unwrap_or_else(|| {
            let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
            let mut card = Card::new(&name, Relation::Finetune, Pipeline::TextClassification);
            card.license = license_of(&self.dir);
            card.labels = self.task.labels().to_vec();
            card.base_model.clone_from(&self.base);
            card
        });
        (card.relation, card.tags, card.half) = (Relation::Finetune, Vec::new(), false);
        let curves = fs::read_to_string(self.dir.join("curves.svg")).unwrap_or_default();
        card.curves = card.curves.filter(|_| !curves.is_empty());
        Front { card, curves }
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

/// Makes the configuration of a base that of the classifier whose head `adapter` carries: PEFT saves none. The labels are
/// the base's if there are as many, and else `LABEL_0` and so on, as in Transformers.
fn take_head(config: &mut Config, adapter: &AdapterFile) {
    if adapter.config.task_type.as_deref() != Some("SEQ_CLS") {
        return;
    }
    config.raw["architectures"] = json!([format!("{}ForSequenceClassification", config.class_stem())]);
    let output = |name: &str| name.ends_with("classifier.weight") || name.ends_with("classifier.out_proj.weight");
    let head = adapter.tensors.iter().find(|(name, _)| output(name) && !name.contains("pre_classifier"));
    if let Some(labels) = head.map(|(_, values)| values.shape[0]).filter(|labels| *labels != config.labels().len()) {
        let names = (0..labels).map(|label| (label.to_string(), json!(format!("LABEL_{label}"))));
        config.raw["id2label"] = Value::Object(names.collect());
    }
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
