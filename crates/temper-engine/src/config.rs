//! The `[train]`, `[optim]`, `[schedule]` and `[eval]` tables.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[train]`: how long, how fast, how much at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Peak learning rate. Default 2e-4 (adapters); full fine-tuning usually wants 2e-5 to 5e-5.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Passes over the training rows; a fraction is allowed. Default 3. Contradicts `max_steps`.
    #[schemars(range(max = 1_000_000), extend("exclusiveMinimum" = 0))]
    pub epochs: Option<f64>,
    /// Optimizer steps. Contradicts `epochs`.
    #[schemars(range(min = 1))]
    pub max_steps: Option<u64>,
    /// Wall-clock limit, such as `"90s"`, `"15m"` or `"2h30m"`: at the limit the run saves, evaluates and ends well.
    pub max_wall: Option<String>,
    /// Rows per optimizer step (packs, where rows are packed), over all devices and accumulation. Default 32.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub global_batch: usize,
    /// Rows per forward pass. Default: `global_batch`. Lowering it saves memory; the result is the same.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub micro_batch: Option<usize>,
    /// Tokens per forward pass, padding included, instead of `micro_batch`: short rows go together in larger numbers.
    /// Lowering it saves memory; the result is the same. Contradicts `micro_batch`.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub micro_batch_tokens: Option<usize>,
    /// Whether layers keep their inputs alone and are computed again for their gradients: a third more work for much less
    /// memory, and the same result. Default `auto`.
    pub gradient_checkpointing: Checkpointing,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off. Default 1.0.
    #[schemars(range(min = 0))]
    pub max_grad_norm: f64,
    /// Seed of everything random: new weights, data order, dropout. Default 42.
    pub seed: u64,
    /// Steps between two progress reports. Default 10.
    #[schemars(range(min = 1))]
    pub log_every: u64,
    /// Steps between two checkpoints. Default: at each evaluation.
    #[schemars(range(min = 1))]
    pub save_every: Option<u64>,
    /// How many of the last checkpoints to keep, beside the best. Default 2.
    #[schemars(range(min = 1))]
    pub keep_last: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lr: 2e-4,
            epochs: None,
            max_steps: None,
            max_wall: None,
            global_batch: 32,
            micro_batch: None,
            micro_batch_tokens: None,
            gradient_checkpointing: Checkpointing::Auto,
            max_grad_norm: 1.0,
            seed: 42,
            log_every: 10,
            save_every: None,
            keep_last: 2,
        }
    }
}

/// When layers are computed again for their gradients (Chen et al. 2016, arXiv:1604.06174).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Checkpointing {
    /// Where the plan says that the run would not fit otherwise.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
    /// Always, and the inputs of layers wait in the host's memory: for GPUs.
    Offload,
}

/// `[optim]`: the optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Which optimizer. Default `adamw`.
    pub kind: OptimKind,
    /// Decoupled weight decay. Default 0.01. Norms, biases and magnitudes (DoRA) are never decayed.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// AdamW and Lion: decay rates of the moments. Default [0.9, 0.999] (Lion: [0.9, 0.99]).
    #[schemars(extend("items" = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}))]
    pub betas: Option<[f64; 2]>,
    /// AdamW: added to the root of the second moment. Default 1e-8.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// SGD: momentum. Default 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub momentum: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self { kind: OptimKind::Adamw, weight_decay: 0.01, betas: None, eps: 1e-8, momentum: 0.0 }
    }
}

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OptimKind {
    /// Loshchilov & Hutter 2019, arXiv:1711.05101, as `torch.optim.AdamW`.
    Adamw,
    /// The same with moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), as `bitsandbytes.optim.AdamW8bit`: those of
    /// parameters below 4,096 values stay f32.
    Adamw8bit,
    /// Stochastic gradient descent, as `torch.optim.SGD` with decoupled decay.
    Sgd,
    /// Chen et al. 2023, arXiv:2302.06675.
    Lion,
    /// Shazeer & Stern 2018, arXiv:1804.04235, as `torch.optim.Adafactor`: keeps of a matrix one number a row and one a
    /// column. The step is `lr` times the root mean square of the parameter, so `lr` wants 1e-3 to 1e-2.
    Adafactor,
}

/// `[schedule]`: the learning rate over the steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Shape after warmup. Default `linear`.
    pub kind: ScheduleKind,
    /// Steps over which the rate rises linearly, from 0 (`wsd`: from `min_ratio · lr`). Contradicts `warmup_ratio`.
    pub warmup_steps: Option<u64>,
    /// Warmup as a fraction of all steps, in [0, 1). Default 0.06.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub warmup_ratio: Option<f64>,
    /// After warmup the rate never falls below `min_ratio · lr`. Default 0.
    #[schemars(range(min = 0, max = 1))]
    pub min_ratio: f64,
    /// WSD: fraction of all steps spent decaying at the end. Default 0.2.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub decay_ratio: f64,
    /// WSD: shape of the decay. Default `linear`.
    pub decay: Decay,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Linear,
            warmup_steps: None,
            warmup_ratio: None,
            min_ratio: 0.0,
            decay_ratio: 0.2,
            decay: Decay::Linear,
        }
    }
}

/// Shape of the learning rate after warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Stays at the peak.
    Constant,
    /// Falls linearly to `min_ratio`.
    Linear,
    /// Half a cosine down to `min_ratio`.
    Cosine,
    /// Warmup, stable, decay (Hu et al. 2024, arXiv:2404.06395).
    Wsd,
}

/// Shape of WSD's decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Linear in the step.
    Linear,
    /// Half a cosine.
    Cosine,
    /// `1 - sqrt(x)` (Hägele et al. 2024, arXiv:2405.18392).
    Sqrt,
}

/// `[eval]`: when to evaluate, which checkpoint is best, when to stop early.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// `"epoch"` (default), `"never"`, or a number of steps.
    pub every: Every,
    /// The metric that decides which checkpoint is best, such as `"accuracy"` or `"loss"`; of equal ones the one with less
    /// loss is better. Default: the task's own.
    pub metric: Option<String>,
    /// Evaluations without improvement after which training stops; 0 (default) never stops early.
    pub patience: u32,
    /// The smallest change of the metric that counts as improvement for `patience`. Default 0.
    #[schemars(range(min = 0))]
    pub min_delta: f64,
    /// Rows per forward pass in evaluation. Default: twice the micro-batch; of one in tokens, as many of the longest rows as
    /// twice its tokens.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub batch: Option<usize>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every: Every::Named(EveryName::Epoch), metric: None, patience: 0, min_delta: 0.0, batch: None }
    }
}

/// How often something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Every {
    /// Every so many steps.
    Steps(#[schemars(range(min = 1))] u64),
    /// By name.
    Named(EveryName),
}

/// How often, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EveryName {
    /// At the end of each epoch and at the end of training.
    Epoch,
    /// Not at all.
    Never,
}
