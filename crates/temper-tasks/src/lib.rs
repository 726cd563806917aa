//! What are we teaching? Head, objective and metrics, one file a task.

pub mod causal_lm;
pub mod distillation;
mod error;
mod heads;
pub mod masked_lm;
pub mod metrics;
pub mod sequence_classification;

use burn::tensor::{Device, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use temper_data::{Examples, TokenBatch};
use temper_device::Failed;
use temper_engine::{Loss, Mode, Objective};
use temper_models::{Backbone, Input, candidates};
use temper_nn::Pass;
use temper_peft::Lender;
use temper_world::World;

pub use causal_lm::{Causal, CausalLm, CausalLmConfig, Generated, Generation, Judge, Sampling};
pub use distillation::{Distillation, DistillationConfig};
pub use error::Error;
pub use heads::new_modules;
pub use masked_lm::{MaskedLm, MaskedLmConfig};
pub use metrics::{Metric, Scores};
pub use sequence_classification::{Problem, SequenceClassificationConfig, SequenceClassifier};

/// The `[task]` table; `kind` says which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TaskConfig {
    /// A label, several labels or a score for one text or a pair of texts.
    SequenceClassification(SequenceClassificationConfig),
    /// Predicting each token from those before it: instruction tuning and pretraining of decoders.
    CausalLm(CausalLmConfig),
    /// Predicting masked tokens: pretraining of encoders.
    MaskedLm(MaskedLmConfig),
    /// Learning to say of each token what a larger network says: pretraining of small encoders.
    Distillation(DistillationConfig),
}

/// A backbone with a head, taught by an objective and judged by metrics.
pub trait Task: Objective<Batch: 'static> {
    /// What turns rows into a batch; it runs on the data threads.
    type Collator: Send + Sync + 'static;

    /// Builds one micro-batch. `seed` is unique to the step; most tasks need no chance.
    fn collate(collator: &Self::Collator, examples: &Examples, rows: &[u32], seed: u64) -> Self::Batch;

    /// Whether chance has left nothing of a batch to be learned.
    fn is_idle(_: &Self::Batch) -> bool {
        false
    }

    /// Measures the model on `examples`, `rows` at a time, without dropout. `ranks` share the work, and each gets what one alone
    /// would have found, to the bit.
    ///
    /// # Errors
    /// When ranks cannot exchange what they found.
    fn evaluate(
        &self,
        ranks: &Ranks,
        collator: &Self::Collator,
        examples: &Examples,
        rows: usize,
    ) -> Result<Evaluation, Error>;

    /// What must stay as it is when an adapter is merged, as many numbers as `examples` give: logits and loss.
    ///
    /// # Errors
    /// As of [`evaluate`](Self::evaluate) on one rank.
    fn outputs(&self, collator: &Self::Collator, examples: &Examples, rows: usize) -> Result<Vec<f32>, Error> {
        let Evaluation { scores, logits, .. } = self.evaluate(&Ranks::alone(), collator, examples, rows)?;
        Ok(logits.concat().into_iter().chain(scores.get(Metric::Loss.name()).map(|&loss| loss as f32)).collect())
    }

    /// The network under the head.
    fn backbone(&self) -> &Backbone;

    /// The network under the head.
    fn backbone_mut(&mut self) -> &mut Backbone;

    /// The class in Transformers that loads what this task saves is called after the architecture and this.
    const CLASS: &'static str;
    /// Whether the head is a part of what ships.
    const SHIPS_HEAD: bool = true;
}

/// The ranks that measure a model together.
#[derive(Debug, Clone)]
pub struct Ranks {
    /// The ranks.
    pub world: World,
    /// Who brings layers their parameters, where these are elsewhere.
    pub lender: Option<Lender>,
}

impl Ranks {
    /// One rank with the whole model.
    pub fn alone() -> Self {
        Self { world: World::single(), lender: None }
    }

    /// `each` of `items`, in their order, on every rank: of N ranks each works out every N-th item, with passes of the kind
    /// that it is given. What comes out does not depend on how many ranks there are.
    ///
    /// # Errors
    /// Of `each`, and as of [`World::exchange`].
    fn map<T, R: Serialize + DeserializeOwned>(
        &self,
        items: &[T],
        each: impl Fn(&T, &Pass) -> Result<R, Failed>,
    ) -> Result<Vec<R>, Error> {
        let pass = Pass::eval().with_lender(self.lender.clone());
        let own = self.world.own(items).map(|item| each(item, &pass)).collect::<Result<_, _>>()?;
        let lost = |reason| temper_world::Error::Collective { what: "lend parameters", reason };
        self.lender.iter().try_for_each(|lender| lender.0.rest()).map_err(lost)?;
        Ok(self.world.interleave(own, items.len())?)
    }
}

/// What an evaluation measured.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    /// One value per metric.
    pub scores: Scores,
    /// What the head said of every row, in the order of the examples; empty where a task has no such thing.
    pub logits: Vec<Vec<f32>>,
    /// Answers that the model generated, to be read.
    pub samples: Vec<Sample>,
}

/// An answer that a model generated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What it was asked, special tokens left out.
    pub prompt: String,
    /// What the data say.
    pub expected: String,
    /// What it said.
    pub answer: String,
}

/// The name that Transformers gives to a parameter of a task: `backbone.` becomes the class prefix, `head.` goes.
pub fn hugging_face_name(prefix: &str, path: &str) -> String {
    match (path.strip_prefix("backbone."), path.strip_prefix("head.")) {
        (Some(rest), _) => format!("{prefix}.{rest}"),
        (_, Some(rest)) => rest.to_owned(),
        _ => path.to_owned(),
    }
}

/// Where a parameter of a task may be found in a checkpoint: with the class prefix, or saved from the bare backbone.
pub fn checkpoint_names(prefix: &str, path: &str) -> Vec<String> {
    match path.strip_prefix("backbone.") {
        Some(bare) => candidates(prefix, bare),
        None => {
            let name = hugging_face_name(prefix, path);
            // Transformers holds the bias of a masked-language-model head under two names, of which a file may have either.
            let other = ["cls.predictions", "lm_head"].into_iter().find(|head| name == format!("{head}.bias"));
            let other = other.map(|head| format!("{head}.decoder.bias"));
            std::iter::once(name).chain(other).collect()
        }
    }
}

/// Uploads a batch. Shapes: ids and type ids [B, S].
pub fn input(tokens: &TokenBatch, device: &Device) -> Input {
    let matrix = |values: &[i32]| {
        Tensor::<2, Int>::from_data(TensorData::new(values.to_vec(), [tokens.batch, tokens.seq]), device)
    };
    let type_ids = tokens.type_ids.iter().any(|&id| id != 0).then(|| matrix(&tokens.type_ids));
    Input {
        ids: matrix(&tokens.ids),
        type_ids,
        segments: tokens.segments.iter().map(|row| row.iter().map(|&length| length as usize).collect()).collect(),
    }
}

/// All rows of `examples`, see [`by_length`].
fn all_by_length(examples: &Examples, rows: usize) -> Vec<Vec<u32>> {
    by_length(examples, (0..examples.len() as u32).collect(), rows)
}

/// Some rows of `examples` in order of length, `rows` at a time: evaluation pads little.
fn by_length(examples: &Examples, mut order: Vec<u32>, rows: usize) -> Vec<Vec<u32>> {
    order.sort_by_key(|&row| examples.length(row as usize));
    order.chunks(rows.max(1)).map(<[u32]>::to_vec).collect()
}

/// A loss, and what to divide it by.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Sum {
    loss: f64,
    targets: f64,
}

impl Sum {
    /// The losses of `batches`, of which `loss` knows each, added up in their order.
    fn of(ranks: &Ranks, batches: &[Vec<u32>], loss: impl Fn(&[u32], &Pass) -> Loss) -> Result<Self, Error> {
        let sums = ranks.map(batches, |rows, pass| Self::read(loss(rows, pass)))?;
        Ok(sums.into_iter().fold(Self::default(), std::ops::Add::add))
    }

    fn read(loss: Loss) -> Result<Self, Failed> {
        let sum: Vec<f64> = temper_device::values(loss.sum)?;
        Ok(Self { loss: sum[0], targets: loss.targets })
    }

    fn mean(self) -> f64 {
        self.loss / self.targets
    }
}

impl std::ops::Add for Sum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { loss: self.loss + other.loss, targets: self.targets + other.targets }
    }
}

/// A loss in a pass that trains.
fn training(mode: Mode, loss: impl FnOnce(&Pass) -> Loss) -> Loss {
    let pass = Pass::train(mode.seed).with_activations(mode.activations).with_lender(mode.lender);
    let loss = loss(&pass);
    Loss { checkpoints: pass.into_checkpoints(), ..loss }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_fails_ends_the_measuring() {
        let failed = || Failed::new("out of memory");
        let found = Ranks::alone().map(&[1, 2, 3], |&item, _| if item == 2 { Err(failed()) } else { Ok(item) });
        assert!(matches!(found, Err(Error::Device(said)) if said == failed()));
    }
}
