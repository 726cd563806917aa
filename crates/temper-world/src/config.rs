//! The `[distributed]` table.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[distributed]`: how several ranks, one process for each device, train one model. Without a launcher it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedConfig {
    /// What each rank keeps only its part of. Default `auto`.
    pub shard: Shard,
    /// What carries gradients and parameters between ranks. Default `auto`.
    pub backend: Backend,
    /// The most that one message holds, in MiB. Default 32. Raising it makes fewer messages and takes more memory.
    #[schemars(range(min = 1, max = 1024))]
    pub bucket_mib: usize,
    /// Steps between two comparisons of the parameters of all ranks; each checkpoint compares them too. Default 100.
    #[schemars(range(min = 1))]
    pub check_every: u64,
    /// How long a rank may say nothing before it counts as dead, such as `"10s"` (default).
    pub silence: String,
    /// How long the others wait for a rank that works before it counts as hung, such as `"5m"` (default). Raise it where one
    /// step takes longer.
    pub patience: String,
}

impl Default for DistributedConfig {
    fn default() -> Self {
        Self {
            shard: Shard::Auto,
            backend: Backend::Auto,
            bucket_mib: 32,
            check_every: 100,
            silence: "10s".into(),
            patience: "5m".into(),
        }
    }
}

/// What each rank keeps only its part of (Rajbhandari et al. 2020, arXiv:1910.02054).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Shard {
    /// `none` under an adapter, whose state is small; `optimizer` where all parameters train.
    #[default]
    Auto,
    /// Nothing: plain data parallelism. A step sums gradients over all ranks.
    None,
    /// The optimizer's state (ZeRO-1): a step sums gradients to the rank that owns the parameter, which sends it back updated.
    /// As many bytes on the wire as `none`.
    Optimizer,
    /// Gradients too (ZeRO-2): each micro-batch sums its gradients to the owner, so that no rank accumulates those of others.
    /// With accumulation, more bytes on the wire.
    Gradients,
    /// The parameters of layers too (ZeRO-3): they come to all ranks while a layer computes, forward and again for its gradients.
    /// At most half as many bytes again on the wire as `none`. No rank ever has all of them; where an evaluation generates answers, every
    /// layer comes for every token, so that few and large batches (`[eval] batch`) are faster.
    Parameters,
}

/// What carries gradients and parameters between ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// What the ranks met by, which carries the rest in any case.
    #[default]
    Auto,
    /// MPI, through the host's memory, from any device: of ranks that mpirun or `srun --mpi=pmix` started.
    Mpi,
    /// TCP, through the host's memory, from any device: of ranks that meet at `MASTER_ADDR`, as those of `temper launch` do.
    Tcp,
    /// NCCL, from GPU to GPU, each rank on one of its own. Has not run on a GPU yet.
    Nccl,
}

impl Backend {
    /// Its name in a recipe.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Mpi => "mpi",
            Self::Tcp => "tcp",
            Self::Nccl => "nccl",
        }
    }
}

impl Shard {
    /// Its name in a recipe.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Optimizer => "optimizer",
            Self::Gradients => "gradients",
            Self::Parameters => "parameters",
        }
    }

    /// Whether parameters have an owner, who alone has their optimizer state.
    pub const fn has_owners(self) -> bool {
        matches!(self, Self::Optimizer | Self::Gradients | Self::Parameters)
    }
}
