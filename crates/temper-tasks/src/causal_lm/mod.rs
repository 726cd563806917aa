//! Causal language modelling: each token is predicted from those before it, and the loss is taken where the data say so.
//!
//! Reference: Transformers' `*ForCausalLM` and its `ForCausalLMLoss`, as a sum and the count of its targets. Logits exist for
//! targets alone, and not for all of them at once ([`linear_cross_entropy`]).
//!
//! Shapes: B batch, S sequence, D model, T targets, V vocabulary.

mod choice;
mod generate;
mod judge;
mod loss;
mod sampling;

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::{Examples, TokenBatch, Tokenizer};
use temper_engine::{Loss, Mode, Objective};
use temper_models::{Backbone, Config};
use temper_nn::{Linear, Pass};

use crate::metrics::Metric;
use crate::{Error, Evaluation, Ranks, Task, input, training};

pub use generate::{Generated, Generation};
pub use judge::Judge;
pub use loss::{Terms, linear_cross_entropy};
pub use sampling::Sampling;

/// `[task]` with `kind = "causal-lm"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CausalLmConfig {
    /// Label smoothing in [0, 1): this share of the target is spread evenly over the vocabulary. Evaluations measure the
    /// loss without it. Default 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing: f64,
    /// Weight of the z-loss, the squared logarithm of the softmax's denominator (Chowdhery et al. 2022, arXiv:2204.02311);
    /// 1e-4 keeps logits from drifting in long runs. Evaluations measure the loss without it. Default 0.
    #[schemars(range(min = 0))]
    pub z_loss: f64,
    /// Give the output layer weights of its own, where the base shares them with the token embeddings; they begin as a copy.
    /// Needs `method = "full"`, or `"lm_head"` in `modules_to_save`. Default false.
    pub untie: bool,
    /// What to measure beside loss and perplexity: `exact_match` and `regex_match` let the model answer the last trained part of
    /// each evaluation row; `choice_accuracy` asks which of the `choices` of a row it finds likeliest. Default: nothing.
    pub metrics: Vec<Metric>,
    /// `regex_match`: what of an answer counts, a regular expression whose first group (or whole match) is compared; of several
    /// matches the last. GSM8K: `"#### (-?[0-9.,]+)"`. Default: none.
    pub answer: Option<String>,
    /// Evaluation rows whose answers are shown in the report, generated at each evaluation. Default 3.
    pub samples: usize,
    /// The most tokens of a generated answer. Default 64. Raising it makes evaluations that generate slower.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_new_tokens: usize,
}

impl Default for CausalLmConfig {
    fn default() -> Self {
        Self {
            label_smoothing: 0.0,
            z_loss: 0.0,
            untie: false,
            metrics: Vec::new(),
            answer: None,
            samples: 3,
            max_new_tokens: 64,
        }
    }
}

/// A decoder with its output layer.
#[derive(Module, Debug)]
pub struct CausalLm {
    /// The network under the head.
    pub backbone: Backbone,
    /// States to logits.
    pub head: CausalHead,
    #[module(skip)]
    terms: Terms,
}

/// The output layer; its weight is that of the token embeddings where the architecture ties them.
#[derive(Module, Debug)]
pub struct CausalHead {
    /// `[D] → [V]`, without a bias. Absent: tied.
    pub lm_head: Option<Linear>,
}

/// Rows, and which of their tokens are predicted from the token before.
#[derive(Debug, Clone)]
pub struct CausalBatch {
    /// The tokens.
    pub tokens: TokenBatch,
    /// Positions in the flattened [B·S] batch whose states predict the next token.
    pub positions: Vec<i32>,
    /// The token after each of them.
    pub targets: Vec<i32>,
}

/// What batches are made with, and answers judged by.
#[derive(Clone)]
pub struct Causal {
    /// The id that fills rows up.
    pub pad_id: u32,
    /// Reads what is generated.
    pub tokenizer: Arc<Tokenizer>,
    /// What is measured by generating.
    pub judge: Judge,
}

impl CausalBatch {
    /// The targets of `tokens`: trained tokens that have a token of their own segment before them.
    pub fn new(tokens: TokenBatch) -> Self {
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (row, segments) in tokens.segments.iter().enumerate() {
            let mut start = row * tokens.seq;
            for &length in segments {
                let end = start + length as usize;
                for at in (start + 1..end).filter(|&at| tokens.trained[at]) {
                    positions.push(at as i32 - 1);
                    targets.push(tokens.ids[at]);
                }
                start = end;
            }
        }
        Self { tokens, positions, targets }
    }
}

impl CausalLm {
    /// A model of that architecture; `tied` shares the token embeddings. The soft cap of `terms` is the
    /// architecture's. Parameters are lazy until loaded or initialised.
    pub fn new(config: &Config, tied: bool, terms: Terms, device: &Device) -> Self {
        let lm_head = (!tied).then(|| Linear::without_bias(config.hidden_size(), config.vocab_size(), device));
        let terms = Terms { softcap: config.final_logit_softcap(), ..terms };
        Self { backbone: Backbone::new(config, device), head: CausalHead { lm_head }, terms }
    }

    /// The weight of the output layer `[V, D]`.
    fn output(&self) -> Tensor<2> {
        self.head.lm_head.as_ref().map_or_else(|| self.backbone.word_embeddings(), |head| head.matrix().dense())
    }

    /// c·tanh(z/c), where the architecture caps its logits.
    fn capped(&self, logits: Tensor<2>) -> Tensor<2> {
        match self.terms.softcap {
            None => logits,
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        }
    }

    /// The cross-entropy of what is learned, without the terms that only training has: what perplexity is made of.
    fn cross_entropy(&self, batch: &CausalBatch, pass: &Pass) -> Loss {
        self.loss_in(batch, pass, &Terms { softcap: self.terms.softcap, ..Terms::default() })
    }

    fn loss_in(&self, batch: &CausalBatch, pass: &Pass, terms: &Terms) -> Loss {
        let output = self.output();
        let device = output.device();
        let targets = batch.targets.len() as f64;
        if batch.targets.is_empty() {
            return Loss::new(Tensor::zeros([1], &device), targets);
        }
        let states = self.backbone.forward(&input(&batch.tokens, &device), pass).flatten::<2>(0, 1);
        let positions = Tensor::<1, Int>::from_data(TensorData::from(batch.positions.as_slice()), &device);
        let sum = linear_cross_entropy(states.select(0, positions), output, &batch.targets, terms);
        Loss::new(sum, targets)
    }
}

impl Objective for CausalLm {
    type Batch = CausalBatch;

    fn loss(&self, batch: &Self::Batch, mode: Mode) -> Loss {
        training(mode, |pass| self.loss_in(batch, pass, &self.terms))
    }

    fn rows(batch: &Self::Batch) -> Vec<u32> {
        batch.tokens.rows.clone()
    }

    fn tokens(batch: &Self::Batch) -> u64 {
        batch.tokens.tokens()
    }
}

impl Task for CausalLm {
    const CLASS: &'static str = "ForCausalLM";

    type Collator = Causal;

    fn collate(causal: &Causal, examples: &Examples, rows: &[u32], _seed: u64) -> Self::Batch {
        CausalBatch::new(examples.batch(rows, causal.pad_id))
    }

    fn evaluate(&self, ranks: &Ranks, causal: &Causal, examples: &Examples, rows: usize) -> Result<Evaluation, Error> {
        judge::evaluate(self, ranks, causal, examples, rows)
    }

    /// The loss alone: nothing is generated.
    fn outputs(&self, causal: &Causal, examples: &Examples, rows: usize) -> Result<Vec<f32>, Error> {
        let scores = judge::losses(self, &Ranks::alone(), causal, examples, rows)?;
        Ok(scores.get(Metric::Loss.name()).map(|&loss| loss as f32).into_iter().collect())
    }

    fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    fn backbone_mut(&mut self) -> &mut Backbone {
        &mut self.backbone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_of_a_segment_and_padding_are_no_targets() {
        let tokens = TokenBatch {
            rows: vec![0, 1],
            batch: 2,
            seq: 5,
            ids: vec![1, 2, 3, 4, 5, 6, 7, 8, 0, 0],
            type_ids: vec![0; 10],
            segments: vec![vec![2, 3], vec![3]],
            trained: [1, 1, 1, 1, 0, 0, 0, 1, 1, 1].map(|trained| trained == 1).to_vec(),
        };
        let batch = CausalBatch::new(tokens);
        assert_eq!(batch.positions, [0, 2, 6]);
        assert_eq!(batch.targets, [2, 4, 8]);
        assert_eq!(CausalLm::tokens(&batch), 8);
    }
}
