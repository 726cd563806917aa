//! The `[adapter]` table: which parameters train, and how.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[adapter]`: which parameters train, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// How the backbone is trained. Default: `lora`. The task's own new head always trains.
    pub method: Method,
    /// Rank r of the update `B·A` (unit: columns). Default 8. Raising it adds trainable parameters linearly.
    #[schemars(range(min = 1, max = 65_536))]
    pub rank: usize,
    /// Alpha: the update is scaled by alpha/rank (by alpha/√rank with `rslora`). Default 16.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub alpha: f64,
    /// Dropout probability on the adapter's input, in [0, 1). Default 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub dropout: f64,
    /// Rank-stabilised scaling, alpha/√rank (Kalajdzievski 2023, arXiv:2312.03732). Default false.
    pub rslora: bool,
    /// Modules that get an adapter: `"default"` (the architecture's query and value), `"all-linear"`, a list of name
    /// endings such as `["query", "value"]`, or one regular expression that must match a whole path. Default `"default"`.
    pub targets: Targets,
    /// Ranks that differ from `rank`, by name ending or regular expression (PEFT's `rank_pattern`).
    #[schemars(extend("additionalProperties" = {"type": "integer", "minimum": 1, "maximum": 65_536}))]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas that differ from `alpha`, by name ending or regular expression (PEFT's `alpha_pattern`).
    #[schemars(extend("additionalProperties" = {"type": "number", "exclusiveMinimum": 0}))]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules trained in full and saved whole beside the adapter (name endings). The new head is always among them.
    pub modules_to_save: Vec<String>,
    /// Parameters that stay frozen (regular expressions searched in the path), for `method = "full"`.
    pub freeze: Vec<String>,
    /// An adapter in PEFT's format to go on training, a directory or a name on the hub. Its adapter_config.json says rank, alpha and targets;
    /// default: a new adapter.
    pub from: Option<String>,
    /// Biases that train beside the adapter: `none` (default), `all` or `lora-only`.
    pub bias: Bias,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            method: Method::Lora,
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            rslora: false,
            targets: Targets::default(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: Vec::new(),
            freeze: Vec::new(),
            from: None,
            bias: Bias::None,
        }
    }
}

/// How the backbone is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Low-rank adapters (Hu et al. 2021, arXiv:2106.09685).
    Lora,
    /// Weight-decomposed low-rank adapters (Liu et al. 2024, arXiv:2402.09353).
    Dora,
    /// Every parameter trains, except those matched by `freeze`.
    Full,
    /// The backbone is frozen; only the head and `modules_to_save` train.
    Frozen,
}

impl Method {
    /// Whether it adds an adapter to a frozen backbone.
    pub fn is_adapter(self) -> bool {
        matches!(self, Self::Lora | Self::Dora)
    }
}

/// Which biases train beside the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the backbone.
    All,
    /// The biases of the modules that carry an adapter.
    LoraOnly,
}

/// Which modules get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// `"default"`, `"all-linear"`, or a regular expression that matches the whole module path.
    Pattern(String),
    /// Module path endings: `query` matches `encoder.layer.0.attention.self.query`.
    Names(Vec<String>),
}

impl Default for Targets {
    fn default() -> Self {
        Self::Pattern("default".into())
    }
}
