//! What the loop is given: an objective, a plan, a way to be stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Deserializer, Serialize};
use temper_kernels::{Activations, Checkpoints};
use temper_peft::Lender;
use temper_world::{Shard, World};

use crate::config::OptimConfig;
use crate::error::Error;
use crate::schedule::Schedule;

/// A model that knows what it is to learn.
pub trait Objective: Module {
    /// One micro-batch.
    type Batch: Send;

    /// The loss on a micro-batch.
    fn loss(&self, batch: &Self::Batch, mode: Mode) -> Loss;

    /// The rows of the data in a micro-batch, to name them in error messages.
    fn rows(batch: &Self::Batch) -> Vec<u32>;

    /// The tokens in a micro-batch, padding not counted.
    fn tokens(batch: &Self::Batch) -> u64;
}

/// How a micro-batch is computed.
#[derive(Debug, Clone)]
pub struct Mode {
    /// Where all randomness (dropout) comes from; it differs from one micro-batch to the next.
    pub seed: u64,
    /// What layers keep for their gradients.
    pub activations: Activations,
    /// Who brings layers their parameters, where these are elsewhere.
    pub lender: Option<Lender>,
}

/// A sum and a count, never a mean: only `fit` divides, once, by the count of the whole step.
pub struct Loss {
    /// Sum of the losses of all targets, shape `[1]`.
    pub sum: Tensor<1>,
    /// How many targets there are.
    pub targets: f64,
    /// The layers that are to be computed again, if they are.
    pub checkpoints: Option<Checkpoints>,
}

impl Loss {
    /// A loss whose graph is whole.
    pub fn new(sum: Tensor<1>, targets: f64) -> Self {
        Self { sum, targets, checkpoints: None }
    }
}

/// All decisions about a run, taken.
#[derive(Debug, Clone)]
pub struct FitPlan {
    /// Optimizer steps.
    pub steps: u64,
    /// Optimizer steps in one pass over the rows, to report epochs.
    pub steps_per_epoch: u64,
    /// The learning rate's factor over the steps.
    pub schedule: Schedule,
    /// Peak learning rate.
    pub lr: f64,
    /// The optimizer.
    pub optim: OptimConfig,
    /// Global gradient norm above which gradients are scaled down; 0 never does.
    pub max_grad_norm: f64,
    /// Seed of all randomness within a step.
    pub seed: u64,
    /// What layers keep for their gradients.
    pub activations: Activations,
    /// Whether losses are scaled before they go backward, as gradients in f16 need it.
    pub loss_scaling: bool,
    /// Steps between two reports.
    pub log_every: u64,
    /// Steps between two evaluations; `None` never evaluates. The last step is evaluated as well.
    pub eval_every: Option<u64>,
    /// Steps between two checkpoints; `None` writes one at each evaluation. The end always has one, a new best as well.
    pub save_every: Option<u64>,
    /// How many checkpoints to keep beside the best; at least one is kept.
    pub keep_last: usize,
    /// What decides which checkpoint is best.
    pub metric: Metric,
    /// Evaluations without improvement after which training stops; 0 never does.
    pub patience: u32,
    /// The smallest change of the metric that is an improvement.
    pub min_delta: f64,
    /// Time after which training saves, evaluates and ends; time before a resume counts.
    pub max_wall: Option<Duration>,
    /// What ranks share, and how.
    pub sharing: Sharing,
    /// Names the plan: a checkpoint written under another fingerprint is refused.
    pub fingerprint: String,
}

/// What ranks share, and how. One rank alone shares nothing.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// What each rank keeps only its part of.
    pub shard: Shard,
    /// Bytes in one message at most, where no parameter alone has more.
    pub bucket_bytes: usize,
    /// Steps between two comparisons of the parameters of all ranks.
    pub check_every: u64,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { shard: Shard::None, bucket_bytes: 32 << 20, check_every: 100 }
    }
}

/// Where a run happens.
pub struct Site<'a> {
    /// Its directory, which all ranks see.
    pub dir: &'a Path,
    /// The ranks that train together.
    pub world: &'a World,
    /// Who can stop it.
    pub stop: &'a Stop,
}

/// A number by which checkpoints are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name in [`Scores`].
    pub name: String,
    /// Whether more is better.
    pub higher_is_better: bool,
}

impl Metric {
    /// Whether `new` is better than `old` by more than `min_delta`. NaN is never better, and anything is better than
    /// nothing.
    pub(crate) fn improves(&self, new: f64, old: Option<f64>, min_delta: f64) -> bool {
        match old {
            _ if new.is_nan() => false,
            Some(old) if !old.is_nan() => (if self.higher_is_better { new - old } else { old - new }) > min_delta,
            _ => true,
        }
    }
}

/// What an evaluation measured, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Scores(pub BTreeMap<String, f64>);

impl Scores {
    /// The score called `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Whether both measured the `loss`, and this one less of it.
    pub(crate) fn has_less_loss_than(&self, other: &Self) -> bool {
        self.get("loss").zip(other.get("loss")).is_some_and(|(new, old)| new < old)
    }

    pub(crate) fn require(&self, name: &str) -> Result<f64, Error> {
        self.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let measured = if names.is_empty() { "nothing".into() } else { names.join(", ") };
            Error::NoMetric { wanted: name.into(), measured }
        })
    }
}

/// JSON has no NaN: it is written as `null` and read back from it.
impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let scores = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
        Ok(Self(scores.into_iter().map(|(name, score)| (name, score.unwrap_or(f64::NAN))).collect()))
    }
}

/// Asks a running [`fit`](crate::fit()) to save and end after the current step, from a signal handler or another
/// thread.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks. Safe to call in a signal handler, and more than once.
    pub fn request_stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn improvement_has_a_direction_and_a_threshold() {
        let metric = |higher_is_better| Metric { name: "m".into(), higher_is_better };
        assert!(metric(true).improves(0.6, Some(0.5), 0.05) && !metric(true).improves(0.6, Some(0.5), 0.2));
        assert!(metric(false).improves(0.4, Some(0.5), 0.0) && !metric(false).improves(0.5, Some(0.5), 0.0));
        assert!(metric(true).improves(0.1, None, 0.5) && metric(true).improves(0.1, Some(f64::NAN), 0.0));
        assert!(!metric(false).improves(f64::NAN, None, 0.0));
    }

    #[test]
    fn scores_survive_json() {
        let scores = Scores(BTreeMap::from([("a".into(), 0.1 + 0.2), ("b".into(), f64::NAN)]));
        let back: Scores = serde_json::from_str(&serde_json::to_string(&scores).unwrap()).unwrap();
        assert_eq!(back.get("a").unwrap().to_bits(), (0.1f64 + 0.2).to_bits());
        assert!(back.get("b").unwrap().is_nan());
        assert!(scores.require("acc").unwrap_err().to_string().contains("measured a, b"));
    }
}
