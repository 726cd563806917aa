//! A trained classifier, loaded from what a run exported: for `eval`, `predict` and `merge`.

use std::path::Path;

use burn::tensor::Device;
use serde_json::{Map, Value, json};
use temper_data::{DataConfig, Dataset, Examples, LabelKind, Target, Text, TokenBatch};
use temper_nn::Pass;
use temper_tasks::{Evaluation, Metric, Problem, Ranks, SequenceClassifier, Task, metrics};

use crate::build;
use crate::failure::{Context, Failure, Kind};
use crate::opened::Opened;
use crate::plan::{ClassifierPlan, TaskPlan};
use crate::provenance::Objective;
use crate::resolve::{segments_fit, tokens_fit};

/// Rows per forward pass.
const ROWS: usize = 32;

/// A trained classifier.
pub struct Trained {
    opened: Opened,
    task: ClassifierPlan,
    model: SequenceClassifier,
}

impl Trained {
    /// Makes a model of what was opened.
    ///
    /// # Errors
    /// When it is not a classifier, or a tensor is missing.
    pub fn new(opened: Opened, device: &Device) -> Result<Self, Failure> {
        let task = task_of(&opened)?;
        tokens_fit(&opened.tokenizer, &opened.config).map_err(wrong)?;
        let model = build::classifier(&opened.config, &task, device);
        let model = opened.restore(model, &TaskPlan::SequenceClassification(task.clone()))?;
        Ok(Self { opened, task, model })
    }

    /// What it was made of.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// The label names.
    pub fn labels(&self) -> &[String] {
        &self.task.labels
    }

    /// Reads the rows of a labelled file.
    pub fn rows(&self, data: &DataConfig) -> Result<Dataset, Failure> {
        let ClassifierPlan { problem, labels, .. } = &self.task;
        let kind = match problem {
            Problem::SingleLabel => LabelKind::Class(Some(labels.clone())),
            Problem::MultiLabel => LabelKind::Multi(Some(labels.clone())),
            Problem::Regression => LabelKind::Score,
        };
        if data.text_pair.is_some() {
            segments_fit(&self.opened.tokenizer, &self.opened.config).map_err(wrong)?;
        }
        let dataset = self.opened.rows(data, Target::Labels(kind))?;
        Opened::tell(&dataset.report, |_| false)?;
        Ok(dataset)
    }

    /// Measures the model on labelled rows.
    pub fn evaluate(&self, examples: &Examples) -> Result<Evaluation, Failure> {
        let pad_id = self.opened.tokenizer.pad_id();
        Ok(self.model.evaluate(&Ranks::alone(), &pad_id, examples, ROWS)?)
    }

    /// One JSON object for each text or pair: `label` and `scores` by label name.
    pub fn predict(&self, texts: &[Text]) -> Result<Vec<Value>, Failure> {
        let logits = logits(&self.opened, &self.model, texts)?;
        Ok(texts
            .iter()
            .zip(logits)
            .map(|((text, pair), logits)| self.prediction(text, pair.as_deref(), &logits))
            .collect())
    }

    fn prediction(&self, text: &str, pair: Option<&str>, logits: &[f32]) -> Value {
        let ClassifierPlan { problem, labels, .. } = &self.task;
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
            Problem::Regression if logits.len() > 1 => {
                out["scores"] = by_label(logits.iter().copied().map(f64::from).collect())
            }
            Problem::Regression => out["score"] = json!(logits[0]),
        }
        out
    }

    /// Adds the adapter into the weights, proves that nothing changed on `probe` texts, and writes the model into `out`.
    /// Returns the largest difference of logits.
    pub fn merge(self, out: &Path, probe: &[Text]) -> Result<f32, Failure> {
        let outputs = |model: &SequenceClassifier| Ok(logits(&self.opened, model, probe)?.concat());
        self.opened.merge(self.model, &TaskPlan::SequenceClassification(self.task), outputs, out)
    }
}

fn wrong(what: String) -> Failure {
    Failure::new(Kind::Data, format!("error: {what}"))
}

fn logits(opened: &Opened, model: &SequenceClassifier, texts: &[Text]) -> Result<Vec<Vec<f32>>, Failure> {
    if texts.iter().any(|(_, pair)| pair.is_some()) {
        segments_fit(&opened.tokenizer, &opened.config).map_err(wrong)?;
    }
    let mut all = Vec::with_capacity(texts.len());
    for texts in texts.chunks(ROWS) {
        let encode = |(text, pair): &Text| opened.tokenizer.encode(text, pair.as_deref(), opened.max_length);
        let encoded: Result<Vec<_>, _> = texts.iter().map(encode).collect();
        let encoded = encoded.context(Kind::Data, "failed to read a text")?;
        let batch = TokenBatch::from_encoded(&encoded, opened.tokenizer.pad_id());
        all.extend(model.predict_batch(&batch, &Pass::eval()).map_err(temper_tasks::Error::from)?);
    }
    Ok(all)
}

/// What a `config.json` of ours, or of Transformers, says about the head.
fn task_of(opened: &Opened) -> Result<ClassifierPlan, Failure> {
    let (config, class) = (&opened.config, opened.class());
    if !class.ends_with("ForSequenceClassification") {
        let shown = opened.dir.display();
        let class =
            if class.is_empty() { "model of which config.json names no class in `architectures`" } else { &class };
        let message = format!("error: {shown} holds a {class}, and this command is for sequence classification");
        return Err(Failure::new(Kind::Data, message));
    }
    if config.is_decoder() {
        let shown = opened.dir.display();
        return Err(wrong(format!("{shown} holds a {class}, and temper classifies with encoders alone")));
    }
    let labels = config.labels();
    if let Some((_, label)) = labels.iter().enumerate().find(|(at, label)| labels[..*at].contains(label)) {
        return Err(wrong(format!("`id2label` in config.json calls two classes `{label}`")));
    }
    let problem = match config.raw["problem_type"].as_str() {
        Some("multi_label_classification") => Problem::MultiLabel,
        Some("regression") => Problem::Regression,
        // As Transformers takes it.
        None if labels.len() == 1 => Problem::Regression,
        _ => Problem::SingleLabel,
    };
    let objective = opened.provenance.as_ref().and_then(|provenance| provenance.objective.clone());
    let Objective { class_weights, label_smoothing, metrics } =
        objective.filter(|objective| objective.class_weights.len() == labels.len()).unwrap_or_else(|| Objective {
            class_weights: vec![1.0; labels.len()],
            label_smoothing: 0.0,
            metrics: problem.possible_metrics().to_vec(),
        });
    Ok(ClassifierPlan { problem, labels, class_weights, label_smoothing, metrics, best_by: Metric::Loss })
}
