//! The tables that belong to the whole run: `[model]`, `[device]`, `[export]` and `[run]`.
//!
//! The other tables belong to the crates whose work they describe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_kernels::Format;
use temper_models::SaveDtype;

/// `[model]`: the network to start from. Exactly one of `base` and `config` is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("oneOf" = [{"required": ["base"]}, {"required": ["config"]}]))]
pub struct ModelConfig {
    /// A pretrained model in Hugging Face's layout (`config.json`, `*.safetensors`, `tokenizer.json`): its directory, or
    /// its name on the hub as `organisation/name` or `organisation/name@revision`.
    pub base: Option<String>,
    /// A `config.json` whose network starts from random weights, instead of `base`. Needs `tokenizer`.
    pub config: Option<String>,
    /// The tokenizer: a directory with `tokenizer.json` or vocabulary files, or a name on the hub. Default: `base`.
    pub tokenizer: Option<String>,
    /// How the frozen weights of the base's linear layers are kept in memory, under an adapter. Default `f32`.
    pub frozen_dtype: FrozenDtype,
}

/// How frozen weights of linear layers are kept. Products decode what they need, forward and backward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FrozenDtype {
    /// 32 bits, as they compute.
    #[default]
    F32,
    /// 16 bits: the weights themselves where the files hold bf16.
    Bf16,
    /// The same laid out as products in bf16 read it, forward and backward: as large as f32, and the fastest on processors with
    /// AMX or AVX-512 BF16. Needs `precision = "bf16"`.
    Bf16Packed,
    /// 8 bits, one scale for each row, as bitsandbytes' LLM.int8 weights (Dettmers et al. 2022, arXiv:2208.07339).
    Int8,
    /// 4-bit NormalFloat with double quantisation, 4.13 bits a value: QLoRA (Dettmers et al. 2023, arXiv:2305.14314).
    Nf4,
}

impl FrozenDtype {
    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bf16Packed => "bf16-packed",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }

    /// How they are stored; absent where they are what they compute as.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(Format::Bf16),
            Self::Bf16Packed => Some(Format::Bf16Packed),
            Self::Int8 => Some(Format::Int8),
            Self::Nf4 => Some(Format::Nf4),
        }
    }
}

/// `[device]`: where to compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceConfig {
    /// Which device: `auto`, `cpu`, or a GPU by an interface of this build, `cuda`, `metal`, `vulkan` or `wgpu`; `cuda:1` is
    /// the second. A device that is named is used or refused; `temper devices` lists them. Default `auto`: the first GPU
    /// of this machine in that order, and the processor where there is none.
    #[serde(rename = "use")]
    #[schemars(regex(pattern = r"^(auto|cpu|(cuda|metal|vulkan|wgpu)(:[0-9]+)?)$"))]
    pub use_: String,
    /// Threads of the CPU. Default: one for each core. Raising it above the number of cores slows the run down.
    #[schemars(range(min = 1, max = 4096))]
    pub threads: Option<usize>,
    /// What layers compute in. Weights, optimizer state, norms, softmax and losses are f32 whatever it is. Default `f32`.
    pub precision: Precision,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self { use_: "auto".into(), threads: None, precision: Precision::F32 }
    }
}

/// What layers compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision, 4 bytes a number.
    #[default]
    F32,
    /// Products of layers, forward and backward, round both operands to bfloat16 and add up in f32: faster on processors with
    /// AMX, and on AMD's with AVX-512 BF16; about the same on Intel's that have the latter alone; slower on others. On GPUs a gated
    /// layer's gate and what it gates are bfloat16, too.
    Bf16,
    /// The same with IEEE half precision, and a loss that is scaled so that small gradients do not become zero: a step whose
    /// gradients overflow is skipped. For GPUs without bfloat16; slower on every processor.
    F16,
}

impl Precision {
    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// `[export]`: the model that the run leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportConfig {
    /// Also write the model with the adapter added into its weights, as large as the base, into `merged/`. Default false.
    pub merge: bool,
    /// How full weights are stored. Default `f32`; `f16` and `bf16` halve the file and round every value.
    pub dtype: Dtype,
    /// Name of the model on its card. Default: the name of the run.
    pub name: Option<String>,
    /// Licence on the card, an SPDX identifier in lower case such as `"apache-2.0"`. Default: the base's, if it states one.
    pub license: Option<String>,
    /// Why the result may be published, where the licence of the base or of a data set does not say so itself. The card
    /// repeats it.
    pub licence_override: Option<String>,
    /// Language on the card, an ISO 639 code such as `"en"`. Default: none is stated.
    pub language: Option<String>,
    /// The base's name on the hub, `organisation/name`, for an adapter that is pushed though its base is a directory.
    pub base_model: Option<String>,
    /// Repository of the hub that the result is pushed to, `you/name`; it is made if it is not there. Default: nothing is
    /// pushed; `temper push` does it later.
    pub push_to: Option<String>,
    /// What is pushed. Default `export`.
    pub push: PushWhat,
    /// When it is pushed. Default `end`.
    pub push_when: PushWhen,
    /// Also push the last checkpoint, with the optimizer's state, as `last-checkpoint/`. Default false.
    pub push_checkpoint: bool,
    /// Make the repository private. Default true; pushing to a repository that is public needs `private = false`.
    pub private: bool,
    /// Branch to push to. Default `main`.
    pub branch: Option<String>,
    /// Tag of the last commit. Default: none.
    pub tag: Option<String>,
    /// Open a pull request, for a repository of somebody else. Default false.
    pub pull_request: bool,
    /// The commit's first line. Default `End of training`.
    pub commit_message: Option<String>,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            merge: false,
            dtype: Dtype::F32,
            name: None,
            license: None,
            licence_override: None,
            language: None,
            base_model: None,
            push_to: None,
            push: PushWhat::Export,
            push_when: PushWhen::End,
            push_checkpoint: false,
            private: true,
            branch: None,
            tag: None,
            pull_request: false,
            commit_message: None,
        }
    }
}

impl ExportConfig {
    /// The branch to push to.
    pub fn branch(&self) -> &str {
        self.branch.as_deref().unwrap_or("main")
    }
}

/// What is pushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PushWhat {
    /// What the run exports: the adapter, or full weights where all parameters train.
    #[default]
    Export,
    /// The weights with the adapter merged; needs `merge = true`.
    Merged,
}

/// When something is pushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PushWhen {
    /// Once, at the end.
    #[default]
    End,
    /// At each checkpoint too, beside training: adapters, and models of which every parameter trains.
    EverySave,
    /// At each checkpoint that is the best so far too, beside training: what `every-save` can push.
    Best,
}

/// How full weights are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

impl From<Dtype> for SaveDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// `[run]`: where the run keeps its files and what it reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Directory of the run. Default: `runs/` and the name of the run.
    pub dir: Option<String>,
    /// Name of the run. Default: the name of the recipe file without `.toml`.
    pub name: Option<String>,
    /// Write event files for TensorBoard. Default true.
    pub tensorboard: bool,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { dir: None, name: None, tensorboard: true }
    }
}
