//! What will happen: every default filled in, every input pinned by its hash, every step counted.
//!
//! Two machines given the same plan run the same steps. `fingerprint` covers all that decides a number; a run directory
//! goes on only with a plan of the same fingerprint.

mod fingerprint;
mod shown;

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use temper_data::{DataConfig, DataReport, Micro};
use temper_device::Passed;
use temper_engine::{EvalConfig, OptimConfig, ScheduleConfig, TrainConfig};
use temper_hub::Pinned;
use temper_peft::AdapterConfig;
use temper_tasks::{Metric, Problem};

use crate::fetch::Source;
use crate::memory::Memory;
use crate::ranks::RanksPlan;
use crate::recipe::{ExportConfig, FrozenDtype};

/// What will happen.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Hash of everything below that decides a number.
    pub fingerprint: String,
    /// What comes from the hub, at which commit. A run that goes on keeps its commits.
    pub sources: Vec<Source>,
    /// The hub, when it is not the public one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Bytes of weights that training will fetch.
    pub to_come: u64,
    /// Where the run goes.
    pub run: RunPlan,
    /// The network.
    pub model: ModelPlan,
    /// What is taught.
    pub task: TaskPlan,
    /// From which rows.
    pub data: DataPlan,
    /// What trains.
    pub adapter: AdapterPlan,
    /// For how long.
    pub train: TrainPlan,
    /// What the run leaves behind, and where it is pushed.
    pub export: ExportConfig,
    /// On what.
    pub device: DevicePlan,
    /// By how many.
    pub distributed: RanksPlan,
    /// What it will take.
    pub memory: Memory,
}

/// Where the run goes.
#[derive(Debug, Clone, Serialize)]
pub struct RunPlan {
    /// Its name, in cards and reports.
    pub name: String,
    /// Its directory.
    pub dir: String,
    /// Whether TensorBoard files are written.
    pub tensorboard: bool,
}

/// A file, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedFile {
    /// The path, as the recipe has it.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// The network.
#[derive(Debug, Clone, Serialize)]
pub struct ModelPlan {
    /// The directory of the pretrained weights; absent when trained from random weights.
    pub base: Option<String>,
    /// `model_type` of config.json.
    pub architecture: String,
    /// The class of Transformers that loads the result.
    pub class: String,
    /// Configuration, weights and tokenizer.
    pub files: Vec<PinnedFile>,
    /// The adapter that training goes on from.
    pub adapter: Vec<PinnedFile>,
    /// Parameters that get new, random values.
    pub new_parameters: Vec<String>,
    /// Tensors of the checkpoint that the model has no place for.
    pub unused_tensors: Vec<String>,
    /// Parameters of the linear layers of the backbone's layers, with which each token is multiplied.
    pub multiplied: u64,
    /// Floating-point operations of these layers for a token of a step, a teacher's too: two for each weight forward, two where a
    /// gradient goes through the layer, two where the weight itself trains.
    #[serde(skip)]
    pub operations: u64,
    /// How the frozen weights of its linear layers are kept.
    pub frozen_dtype: FrozenDtype,
    /// The longest input that the model can hold, in tokens.
    pub max_positions: usize,
}

/// What is taught.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TaskPlan {
    /// See [`temper_tasks::sequence_classification`].
    SequenceClassification(ClassifierPlan),
    /// See [`temper_tasks::causal_lm`].
    CausalLm(CausalPlan),
    /// See [`temper_tasks::masked_lm`].
    MaskedLm {
        /// Share of the tokens that are hidden.
        mask_probability: f64,
        /// What decides which checkpoint is best.
        best_by: Metric,
    },
    /// See [`temper_tasks::distillation`].
    Distillation {
        /// The network to learn from.
        teacher: String,
        /// Its configuration, weights and tokenizer.
        files: Vec<PinnedFile>,
        /// Hash of its ids of the student's tokens.
        tokens: String,
        /// The width of its hidden states.
        width: usize,
        /// What decides which checkpoint is best.
        best_by: Metric,
    },
}

/// A classifier.
#[derive(Debug, Clone, Serialize)]
pub struct ClassifierPlan {
    /// What a label is.
    pub problem: Problem,
    /// The outputs of the head, in order.
    pub labels: Vec<String>,
    /// The weight of each output in the loss.
    pub class_weights: Vec<f32>,
    /// Label smoothing.
    pub label_smoothing: f32,
    /// What is measured.
    pub metrics: Vec<Metric>,
    /// What decides which checkpoint is best.
    pub best_by: Metric,
}

/// A language model.
#[derive(Debug, Clone, Serialize)]
pub struct CausalPlan {
    /// Whether the output layer is the token embeddings.
    pub tied: bool,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// The weight of the z-loss.
    pub z_loss: f64,
    /// What is measured beside loss and perplexity.
    pub metrics: Vec<Metric>,
    /// What of an answer `regex_match` compares.
    pub answer: Option<String>,
    /// Answers that the report shows.
    pub samples: usize,
    /// The most tokens of an answer.
    pub max_new_tokens: usize,
    /// The tokens that end an answer.
    pub end_ids: Vec<u32>,
    /// What decides which checkpoint is best.
    pub best_by: Metric,
}

impl TaskPlan {
    /// What decides which checkpoint is best.
    pub fn best_by(&self) -> Metric {
        match self {
            Self::SequenceClassification(task) => task.best_by,
            Self::CausalLm(task) => task.best_by,
            Self::MaskedLm { best_by, .. } | Self::Distillation { best_by, .. } => *best_by,
        }
    }

    /// Whether the output layer is the token embeddings.
    pub fn ties(&self) -> bool {
        matches!(self, Self::CausalLm(CausalPlan { tied: true, .. }) | Self::MaskedLm { .. })
    }

    /// The names of the labels; empty where there are none.
    pub fn labels(&self) -> &[String] {
        match self {
            Self::SequenceClassification(task) => &task.labels,
            Self::CausalLm(_) | Self::MaskedLm { .. } | Self::Distillation { .. } => &[],
        }
    }
}

/// From which rows.
#[derive(Debug, Clone, Serialize)]
pub struct DataPlan {
    /// The table of the recipe: which columns, which weights.
    pub config: DataConfig,
    /// Every file, with its hash.
    pub files: Vec<PinnedFile>,
    /// Longest input, in tokens with the special ones.
    pub max_length: usize,
    /// Counts, lengths and what the audit found.
    pub report: DataReport,
}

/// A module with an adapter.
#[derive(Debug, Clone, Serialize)]
pub struct AdaptedModule {
    /// Its path.
    pub path: String,
    /// The rank of its adapter.
    pub rank: usize,
    /// Its alpha.
    pub alpha: f64,
}

/// Parameters of one part of the model.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// `backbone`, `head` or `adapter`.
    pub name: String,
    /// All of them.
    pub total: usize,
    /// Those that train.
    pub trainable: usize,
}

/// What trains.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterPlan {
    /// The table of the recipe, with `modules_to_save` completed by the new modules.
    pub config: AdapterConfig,
    /// The modules with an adapter.
    pub modules: Vec<AdaptedModule>,
    /// Parameters by part.
    pub groups: Vec<Group>,
    /// Parameters of the model itself that train, by path.
    #[serde(skip)]
    pub trained: HashSet<String>,
}

impl AdapterPlan {
    /// Parameters in all.
    pub fn total(&self) -> usize {
        self.groups.iter().map(|group| group.total).sum()
    }

    /// Parameters that train.
    pub fn trainable(&self) -> usize {
        self.groups.iter().map(|group| group.trainable).sum()
    }
}

/// For how long.
#[derive(Debug, Clone, Serialize)]
pub struct TrainPlan {
    /// The table of the recipe.
    pub config: TrainConfig,
    /// The optimizer.
    pub optim: OptimConfig,
    /// The learning rate's shape.
    pub schedule: ScheduleConfig,
    /// When to evaluate.
    pub eval: EvalConfig,
    /// Optimizer steps.
    pub steps: u64,
    /// Optimizer steps in a pass over the training rows.
    pub steps_per_epoch: u64,
    /// Steps of warmup.
    pub warmup_steps: u64,
    /// Rows per forward pass, at most.
    pub micro_batch: usize,
    /// Steps between evaluations; absent: none.
    pub eval_every: Option<u64>,
    /// Rows per forward pass in evaluation.
    pub eval_batch: usize,
}

impl TrainPlan {
    /// How the rows of a step are cut.
    pub fn micro(&self) -> Micro {
        micro(&self.config, self.micro_batch)
    }
}

/// How the rows of a step are cut: by tokens if the recipe says how many, else by `rows`.
pub fn micro(config: &TrainConfig, rows: usize) -> Micro {
    config.micro_batch_tokens.map_or(Micro::Rows(rows), Micro::Tokens)
}

/// On what.
#[derive(Debug, Clone, Serialize)]
pub struct DevicePlan {
    /// The device's name, never `auto`.
    pub name: String,
    /// What `auto` passed over before it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<Passed>,
    /// Threads that compute.
    pub threads: usize,
    /// The type that numbers have in the computation.
    pub precision: String,
}

impl fmt::Display for DevicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // cubek's kernels for tensor cores (`adjust_dtypes`) round f32 operands where the hardware knows TF32; cuBLASLt does not.
        let tf32 = self.name.starts_with("cuda") && self.precision == "f32" && !temper_kernels::has_cublaslt();
        let note = if tf32 { " (products on tensor cores in TF32)" } else { "" };
        write!(f, "{}, {} threads, {}{note}", self.name, self.threads, self.precision)
    }
}

impl Plan {
    /// The repository of the hub that the recipe's `key` names.
    pub fn source(&self, key: &str) -> Option<&Pinned> {
        self.sources.iter().find(|source| source.key == key).map(|source| &source.pinned)
    }
}
