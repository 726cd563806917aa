//! Masked language modelling: 15 % of the tokens are hidden and predicted (Devlin et al. 2018, arXiv:1810.04805).
//!
//! Of the chosen tokens 80 % become `[MASK]`, 10 % a random token, 10 % stay, as in Transformers'
//! `DataCollatorForLanguageModeling`. Which ones is a pure function of (seed, step, row): a resumed run hides the same.
//! Logits exist for the chosen positions alone.
//!
//! Shapes: B batch, S sequence, D model, T chosen positions, V vocabulary.

use std::collections::HashSet;

use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temper_data::{Examples, TokenBatch};
use temper_engine::{Loss, Objective};
use temper_models::{Backbone, Config};
use temper_nn::Pass;

use crate::heads::MaskedLmHead;
use crate::metrics::{Metric, Scores};
use crate::{Evaluation, Task, by_length, input};

/// `[task]` with `kind = "masked-lm"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MaskedLmConfig {
    /// Share of the tokens that are hidden, in (0, 1). Default 0.15. Raising it gives more targets and less context.
    pub mask_probability: f64,
}

impl Default for MaskedLmConfig {
    fn default() -> Self {
        Self { mask_probability: 0.15 }
    }
}

/// A backbone with Transformers' masked-language-model head of its architecture.
#[derive(Module, Debug)]
pub struct MaskedLm {
    /// The network under the head.
    pub backbone: Backbone,
    /// Hidden states to logits of tokens.
    pub head: MaskedLmHead,
}

/// Chooses and hides tokens.
#[derive(Debug, Clone)]
pub struct Masking {
    /// The id of the padding token.
    pub pad_id: u32,
    /// The id of `[MASK]`.
    pub mask_id: u32,
    /// Ids that are never hidden nor put in.
    pub special_ids: HashSet<u32>,
    /// Ids to draw random tokens from are below this.
    pub vocab_size: u32,
    /// Share of tokens hidden.
    pub probability: f64,
}

/// Rows with hidden tokens, and what was there.
#[derive(Debug, Clone)]
pub struct MaskedBatch {
    /// The tokens, some of them hidden.
    pub tokens: TokenBatch,
    /// Positions in the flattened [B·S] batch.
    pub positions: Vec<i32>,
    /// The token that was there.
    pub targets: Vec<i32>,
}

impl Masking {
    /// Hides tokens of `tokens`. At least one token of each batch is hidden where there is one to hide.
    fn apply(&self, mut tokens: TokenBatch, seed: u64) -> MaskedBatch {
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for row in 0..tokens.batch {
            let mut random = Random(mix(seed ^ mix(u64::from(tokens.rows[row]))));
            for column in 0..tokens.lengths[row] as usize {
                let position = row * tokens.seq + column;
                let id = tokens.ids[position] as u32;
                if self.special_ids.contains(&id) || random.unit() >= self.probability {
                    continue;
                }
                positions.push(position as i32);
                targets.push(id as i32);
                let draw = random.unit();
                if draw < 0.8 {
                    tokens.ids[position] = self.mask_id as i32;
                } else if draw < 0.9 {
                    tokens.ids[position] = self.random_token(&mut random) as i32;
                }
            }
        }
        MaskedBatch { tokens, positions, targets }
    }

    fn random_token(&self, random: &mut Random) -> u32 {
        loop {
            let id = (random.unit() * f64::from(self.vocab_size)) as u32;
            if !self.special_ids.contains(&id) {
                return id;
            }
        }
    }
}

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl MaskedLm {
    /// A model of that architecture. Parameters are lazy until loaded or initialised.
    pub fn new(config: &Config, device: &Device) -> Self {
        Self { backbone: Backbone::new(config, device).without_pooler(), head: MaskedLmHead::new(config, device) }
    }

    /// Logits [T, V] of the chosen positions.
    pub fn logits(&self, batch: &MaskedBatch, pass: &Pass) -> Tensor<2> {
        let device = self.head.device();
        let hidden = self.backbone.forward(&input(&batch.tokens, &device), pass);
        let positions = Tensor::<1, Int>::from_data(TensorData::from(batch.positions.as_slice()), &device);
        let chosen = hidden.flatten::<2>(0, 1).select(0, positions);
        self.head.forward(chosen, self.backbone.word_embeddings(), pass)
    }

    fn loss_in(&self, batch: &MaskedBatch, pass: &Pass) -> Loss {
        let count = batch.targets.len();
        if count == 0 {
            return Loss { sum: Tensor::zeros([1], &self.head.device()), targets: 0.0 };
        }
        let logits = self.logits(batch, pass);
        let targets = TensorData::new(batch.targets.clone(), [count, 1]);
        let targets = Tensor::<2, Int>::from_data(targets, &logits.device());
        Loss { sum: log_softmax(logits, 1).gather(1, targets).sum().neg(), targets: count as f64 }
    }
}

impl Objective for MaskedLm {
    type Batch = MaskedBatch;

    fn loss(&self, batch: &Self::Batch, seed: u64) -> Loss {
        self.loss_in(batch, &Pass::train(seed))
    }

    fn rows(batch: &Self::Batch) -> Vec<u32> {
        batch.tokens.rows.clone()
    }

    fn tokens(batch: &Self::Batch) -> u64 {
        batch.tokens.lengths.iter().map(|&length| u64::from(length)).sum()
    }
}

impl Task for MaskedLm {
    const CLASS: &'static str = "ForMaskedLM";

    type Collator = Masking;

    fn collate(masking: &Masking, examples: &Examples, rows: &[u32], seed: u64) -> Self::Batch {
        masking.apply(examples.batch(rows, masking.pad_id), seed)
    }

    /// Loss and perplexity on tokens that are the same ones at every evaluation.
    fn evaluate(&self, masking: &Masking, examples: &Examples, rows: usize) -> Evaluation {
        let (mut sum, mut targets) = (0.0, 0.0);
        for rows in by_length(examples, rows) {
            let loss = self.loss_in(&Self::collate(masking, examples, &rows, 0), &Pass::eval());
            sum += loss.sum.into_scalar::<f64>();
            targets += loss.targets;
        }
        let loss = sum / targets;
        let scores = [(Metric::Loss, loss), (Metric::Perplexity, loss.exp())];
        let scores: Scores = scores.into_iter().map(|(metric, value)| (metric.name().to_owned(), value)).collect();
        Evaluation { scores, logits: Vec::new() }
    }

    fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    fn backbone_mut(&mut self) -> &mut Backbone {
        &mut self.backbone
    }
}
