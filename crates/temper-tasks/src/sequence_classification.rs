//! Sequence classification: a label, several labels or a score for one text or a pair of texts.
//!
//! Reference: Transformers' `*ForSequenceClassification`; losses as `torch.nn.CrossEntropyLoss` (class weights, label
//! smoothing), `BCEWithLogitsLoss` (`pos_weight`) and `MSELoss`, each as a sum and the count it is divided by.
//!
//! Shapes: B batch, S sequence, D model, C labels.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{Device, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::{Examples, Label, TokenBatch};
use temper_device::Failed;
use temper_engine::{Loss, Mode, Objective};
use temper_models::{Backbone, Config};
use temper_nn::Pass;

use crate::heads::ClassificationHead;
use crate::metrics::{self, Metric, Scores, class_of, score_of, set_of};
use crate::{Error, Evaluation, Ranks, Sum, Task, all_by_length, input, training};

/// `[task]` with `kind = "sequence-classification"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SequenceClassificationConfig {
    /// What a row's label is. Default `single-label`.
    pub problem: Problem,
    /// Label names, in the order of the head's outputs. Default: those of the data, sorted.
    pub labels: Option<Vec<String>>,
    /// Weights of the classes in the loss: `"balanced"` (rows / (classes · rows of the class)) or a table of label name
    /// to weight; multi-label: the weight of a label's presence. The loss of evaluations has them, too. Default: all 1.
    pub class_weights: Option<ClassWeights>,
    /// Label smoothing in [0, 1): this share of the target is spread evenly over all classes; multi-label: between presence and
    /// absence. The loss of evaluations has it, too. Default 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing: f64,
    /// What to measure. Default: accuracy, f1 and mcc; regression: pearson, spearman and mse.
    pub metrics: Option<Vec<Metric>>,
}

/// What a row's label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// Exactly one of the labels.
    #[default]
    SingleLabel,
    /// Any number of the labels.
    MultiLabel,
    /// A number.
    Regression,
}

impl Problem {
    /// The value of `problem_type` in Transformers' config.json.
    pub fn hugging_face(self) -> &'static str {
        match self {
            Self::SingleLabel => "single_label_classification",
            Self::MultiLabel => "multi_label_classification",
            Self::Regression => "regression",
        }
    }

    /// What is measured unless the recipe says otherwise; the first one decides which checkpoint is best.
    pub fn default_metrics(self) -> &'static [Metric] {
        match self {
            Self::SingleLabel => &[Metric::Accuracy, Metric::F1, Metric::Mcc],
            Self::MultiLabel => &[Metric::F1Macro, Metric::F1Micro, Metric::Accuracy],
            Self::Regression => &[Metric::Spearman, Metric::Pearson, Metric::Mse],
        }
    }

    /// What can be measured at all.
    pub fn possible_metrics(self) -> &'static [Metric] {
        use Metric::{
            Accuracy, F1, F1Macro, F1Micro, Loss, Mae, Mcc, Mse, Pearson, Precision, Recall, RocAuc, Spearman,
        };
        match self {
            Self::SingleLabel => &[Loss, Accuracy, F1, F1Macro, F1Micro, Precision, Recall, Mcc, RocAuc],
            Self::MultiLabel => &[Loss, Accuracy, F1, F1Macro, F1Micro, Precision, Recall, RocAuc],
            Self::Regression => &[Loss, Pearson, Spearman, Mse, Mae],
        }
    }
}

/// Weights of the classes in the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ClassWeights {
    /// `"balanced"`.
    Named(Balanced),
    /// One weight for each label name.
    Table(
        #[schemars(extend("additionalProperties" = {"type": "number", "exclusiveMinimum": 0}))] BTreeMap<String, f64>,
    ),
}

/// Weights from the counts of the training rows, as scikit-learn's `class_weight="balanced"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balanced {
    /// rows / (classes · rows of the class).
    Balanced,
}

/// How logits become a loss and scores.
#[derive(Debug, Clone)]
pub struct Objectives {
    /// What a label is.
    pub problem: Problem,
    /// The weight of each output.
    pub class_weights: Vec<f32>,
    /// Label smoothing.
    pub label_smoothing: f32,
    /// What to measure.
    pub metrics: Vec<Metric>,
}

/// A backbone with Transformers' classification head of its architecture.
#[derive(Module, Debug)]
pub struct SequenceClassifier {
    /// The network under the head.
    pub backbone: Backbone,
    /// Hidden states to logits.
    pub head: ClassificationHead,
    #[module(skip)]
    objective: Objectives,
}

/// Rows with their labels.
#[derive(Debug, Clone)]
pub struct ClassificationBatch {
    /// The tokens.
    pub tokens: TokenBatch,
    /// One label for each row.
    pub labels: Vec<Label>,
}

impl SequenceClassifier {
    /// A model of that architecture with `outputs` labels. Parameters are lazy until loaded or initialised.
    pub fn new(config: &Config, outputs: usize, objective: Objectives, device: &Device) -> Self {
        let backbone = Backbone::new(config, device);
        Self { backbone, head: ClassificationHead::new(config, outputs, device), objective }
    }

    /// Logits [B, C].
    pub fn logits(&self, tokens: &TokenBatch, pass: &Pass) -> Tensor<2> {
        let hidden = self.backbone.forward(&input(tokens, &self.head.device()), pass);
        self.head.forward(hidden, &self.backbone, pass)
    }

    /// Logits of every row, in the order of `examples`.
    fn predict(&self, ranks: &Ranks, examples: &Examples, pad_id: u32, rows: usize) -> Result<Vec<Vec<f32>>, Error> {
        let batches = all_by_length(examples, rows);
        let found = ranks.map(&batches, |rows, pass| self.predict_batch(&examples.batch(rows, pad_id), pass))?;
        let mut all = vec![Vec::new(); examples.len()];
        for (&row, logits) in batches.iter().flatten().zip(found.into_iter().flatten()) {
            all[row as usize] = logits;
        }
        Ok(all)
    }

    /// Logits of each row of a batch.
    ///
    /// # Errors
    /// When the device fails.
    pub fn predict_batch(&self, tokens: &TokenBatch, pass: &Pass) -> Result<Vec<Vec<f32>>, Failed> {
        let logits = self.logits(tokens, pass);
        let [_, outputs] = logits.dims();
        Ok(temper_device::values(logits)?.chunks(outputs).map(<[f32]>::to_vec).collect())
    }

    /// Sum of the losses of the rows, and what to divide it by.
    fn loss_of(&self, logits: Tensor<2>, labels: &[Label]) -> Loss {
        let Objectives { problem, class_weights, label_smoothing, .. } = &self.objective;
        let [rows, outputs] = logits.dims();
        let device = logits.device();
        let matrix = |values| Tensor::<2>::from_data(TensorData::new(values, [rows, outputs]), &device);
        match problem {
            // The target distribution of a row of class y: w_y (1 - e) on y, and w_c e / C on every c.
            Problem::SingleLabel => {
                let mut target = Vec::with_capacity(rows * outputs);
                let mut targets = 0.0;
                for class in labels.iter().map(class_of) {
                    targets += f64::from(class_weights[class]);
                    target.extend(class_weights.iter().enumerate().map(|(c, w)| {
                        let hit = if c == class { 1.0 - label_smoothing } else { 0.0 };
                        w * (hit + label_smoothing / outputs as f32)
                    }));
                }
                Loss::new((log_softmax(logits, 1) * matrix(target)).sum().neg(), targets)
            }
            Problem::MultiLabel => {
                let mut present = Vec::with_capacity(rows * outputs);
                let mut absent = Vec::with_capacity(rows * outputs);
                for set in labels.iter().map(set_of) {
                    for (w, is_present) in class_weights.iter().zip(set) {
                        let y = f32::from(is_present) * (1.0 - label_smoothing) + label_smoothing / 2.0;
                        present.push(w * y);
                        absent.push(1.0 - y);
                    }
                }
                let log_likelihood =
                    log_sigmoid(logits.clone()) * matrix(present) + log_sigmoid(logits.neg()) * matrix(absent);
                Loss::new(log_likelihood.sum().neg(), (rows * outputs) as f64)
            }
            Problem::Regression => {
                let scores: Vec<f32> = labels.iter().map(|label| score_of(label) as f32).collect();
                Loss::new((logits - matrix(scores)).square().sum(), rows as f64)
            }
        }
    }

    /// Scores from logits that are at hand.
    pub fn measure(&self, logits: &[Vec<f32>], labels: &[Label]) -> Scores {
        let metrics = &self.objective.metrics;
        match self.objective.problem {
            Problem::SingleLabel => metrics::single_label(metrics, logits, labels),
            Problem::MultiLabel => metrics::multi_label(metrics, logits, labels),
            Problem::Regression => metrics::regression(metrics, logits, labels),
        }
    }

    /// Mean loss of logits that are at hand.
    fn mean_loss(&self, logits: &[Vec<f32>], labels: &[Label]) -> Result<f64, Failed> {
        let outputs = logits.first().map_or(0, Vec::len);
        let mut all = Sum::default();
        for (logits, labels) in logits.chunks(4096).zip(labels.chunks(4096)) {
            let data = TensorData::new(logits.concat(), [logits.len(), outputs]);
            all = all + Sum::read(self.loss_of(Tensor::from_data(data, &self.head.device()), labels))?;
        }
        Ok(all.mean())
    }
}

impl Objective for SequenceClassifier {
    type Batch = ClassificationBatch;

    fn loss(&self, batch: &Self::Batch, mode: Mode) -> Loss {
        training(mode, |pass| self.loss_of(self.logits(&batch.tokens, pass), &batch.labels))
    }

    fn rows(batch: &Self::Batch) -> Vec<u32> {
        batch.tokens.rows.clone()
    }

    fn tokens(batch: &Self::Batch) -> u64 {
        batch.tokens.tokens()
    }
}

impl Task for SequenceClassifier {
    const CLASS: &'static str = "ForSequenceClassification";

    /// The id of the padding token.
    type Collator = u32;

    fn collate(pad_id: &u32, examples: &Examples, rows: &[u32], _seed: u64) -> Self::Batch {
        let labels = rows.iter().map(|&row| examples.label(row as usize)).collect();
        ClassificationBatch { tokens: examples.batch(rows, *pad_id), labels }
    }

    fn evaluate(&self, ranks: &Ranks, pad_id: &u32, examples: &Examples, rows: usize) -> Result<Evaluation, Error> {
        let logits = self.predict(ranks, examples, *pad_id, rows)?;
        let labels: Vec<Label> = (0..examples.len()).map(|row| examples.label(row)).collect();
        let mut scores = self.measure(&logits, &labels);
        scores.insert(Metric::Loss.name().into(), self.mean_loss(&logits, &labels)?);
        Ok(Evaluation { scores, logits, ..Evaluation::default() })
    }

    fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    fn backbone_mut(&mut self) -> &mut Backbone {
        &mut self.backbone
    }
}
