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
use temper_data::{Examples, Random, TokenBatch};
use temper_engine::{Loss, Mode, Objective};
use temper_models::{Backbone, Config};
use temper_nn::Pass;

use crate::heads::MaskedLmHead;
use crate::metrics::{Metric, Scores};
use crate::{Error, Evaluation, Ranks, Sum, Task, all_by_length, input, training};

/// `[task]` with `kind = "masked-lm"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MaskedLmConfig {
    /// Share of the tokens that are hidden, in (0, 1). Default 0.15. Raising it gives more targets and less context.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
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
    /// Hides tokens of `tokens`, each row's by its number and the seed alone: maybe none.
    fn apply(&self, mut tokens: TokenBatch, seed: u64) -> MaskedBatch {
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (row, length) in tokens.lengths().into_iter().enumerate() {
            let mut random = Random::new(seed, u64::from(tokens.rows[row]));
            for column in 0..length as usize {
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
            let id = random.below(self.vocab_size as usize) as u32;
            if !self.special_ids.contains(&id) {
                return id;
            }
        }
    }
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
            return Loss::new(Tensor::zeros([1], &self.head.device()), 0.0);
        }
        let logits = self.logits(batch, pass);
        let targets = TensorData::new(batch.targets.clone(), [count, 1]);
        let targets = Tensor::<2, Int>::from_data(targets, &logits.device());
        Loss::new(log_softmax(logits, 1).gather(1, targets).sum().neg(), count as f64)
    }
}

impl Objective for MaskedLm {
    type Batch = MaskedBatch;

    fn loss(&self, batch: &Self::Batch, mode: Mode) -> Loss {
        training(mode, |pass| self.loss_in(batch, pass))
    }

    fn rows(batch: &Self::Batch) -> Vec<u32> {
        batch.tokens.rows.clone()
    }

    fn tokens(batch: &Self::Batch) -> u64 {
        batch.tokens.tokens()
    }
}

impl Task for MaskedLm {
    const CLASS: &'static str = "ForMaskedLM";

    type Collator = Masking;

    fn is_idle(batch: &MaskedBatch) -> bool {
        batch.targets.is_empty()
    }

    fn collate(masking: &Masking, examples: &Examples, rows: &[u32], seed: u64) -> Self::Batch {
        masking.apply(examples.batch(rows, masking.pad_id), seed)
    }

    /// Loss and perplexity on tokens that are the same ones at every evaluation.
    fn evaluate(
        &self,
        ranks: &Ranks,
        masking: &Masking,
        examples: &Examples,
        rows: usize,
    ) -> Result<Evaluation, Error> {
        let loss = |rows: &[u32], pass: &Pass| self.loss_in(&Self::collate(masking, examples, rows, 0), pass);
        let loss = Sum::of(ranks, &all_by_length(examples, rows), loss)?.mean();
        let scores = [(Metric::Loss, loss), (Metric::Perplexity, loss.exp())];
        let scores: Scores = scores.into_iter().map(|(metric, value)| (metric.name().to_owned(), value)).collect();
        Ok(Evaluation { scores, ..Evaluation::default() })
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

    const PAD: i32 = 0;
    const CLS: i32 = 1;
    const SEP: i32 = 2;
    const MASK: i32 = 3;
    const VOCABULARY: i32 = 1000;

    fn masking(probability: f64) -> Masking {
        let special_ids = [PAD, CLS, SEP, MASK].map(|id| id as u32).into();
        Masking { pad_id: PAD as u32, mask_id: MASK as u32, special_ids, vocab_size: VOCABULARY as u32, probability }
    }

    /// What row `row` of a data set says: as many tokens as it likes, between two special ones.
    fn text(row: u32) -> Vec<i32> {
        let words = (0..20 + row as i32 * 7 % 30).map(|i| 4 + (row as i32 * 31 + i * 17) % (VOCABULARY - 4));
        [CLS].into_iter().chain(words).chain([SEP]).collect()
    }

    fn batch(rows: &[u32]) -> TokenBatch {
        let texts: Vec<Vec<i32>> = rows.iter().map(|&row| text(row)).collect();
        let seq = texts.iter().map(Vec::len).max().unwrap_or(0);
        let pad = |text: &Vec<i32>| text.iter().copied().chain(std::iter::repeat(PAD)).take(seq).collect::<Vec<_>>();
        TokenBatch {
            rows: rows.to_vec(),
            batch: rows.len(),
            seq,
            ids: texts.iter().flat_map(pad).collect(),
            type_ids: vec![0; rows.len() * seq],
            segments: texts.iter().map(|text| vec![text.len() as u32]).collect(),
            ..TokenBatch::default()
        }
    }

    /// What a row says now, and which of its columns were chosen with which targets.
    type Hidden = (Vec<i32>, Vec<(usize, i32)>);

    /// What masking makes of each row.
    fn hidden(rows: &[u32], seed: u64) -> Vec<Hidden> {
        let MaskedBatch { tokens, positions, targets } = masking(0.3).apply(batch(rows), seed);
        let of_row = |row: usize| {
            let start = row * tokens.seq;
            let ids = tokens.ids[start..start + tokens.lengths()[row] as usize].to_vec();
            let chosen = positions.iter().map(|&position| position as usize).zip(targets.iter().copied());
            let chosen = chosen.filter(|(position, _)| position / tokens.seq == row);
            (ids, chosen.map(|(position, target)| (position - start, target)).collect())
        };
        (0..rows.len()).map(of_row).collect()
    }

    #[test]
    fn what_is_hidden_depends_on_seed_and_row_alone() {
        let rows: Vec<u32> = (0..40).collect();
        let together = hidden(&rows, 5);
        for (row, expected) in rows.iter().zip(&together) {
            assert_eq!(hidden(&[*row], 5)[0], *expected, "row {row} alone");
        }
        // A row alone of which chance hides nothing has nothing to be learned, as among others.
        let rarely = |rows: &[u32]| masking(0.02).apply(batch(rows), 5);
        let alone = rows.iter().map(|row| rarely(&[*row]).targets.len()).collect::<Vec<_>>();
        assert!(alone.contains(&0) && alone.iter().sum::<usize>() == rarely(&rows).targets.len(), "{alone:?}");
        let among_others = hidden(&[33, 2, 17], 5);
        assert_eq!(among_others, [33, 2, 17].map(|row| together[row].clone()));
        assert_ne!(hidden(&rows, 6), together, "another step hides others");
        // Rows that say the same do not hide the same.
        let mut twins = batch(&[1, 1]);
        twins.rows = vec![1, 2];
        let masked = masking(0.3).apply(twins, 5).tokens;
        assert_ne!(masked.ids[..masked.seq], masked.ids[masked.seq..]);
    }

    #[test]
    fn shares_are_as_asked_and_special_tokens_stay() {
        let rows: Vec<u32> = (0..3000).collect();
        let before = batch(&rows);
        let words: u32 = before.lengths().iter().map(|length| length - 2).sum();
        for probability in [0.15, 0.4] {
            let MaskedBatch { tokens, positions, targets } = masking(probability).apply(before.clone(), 11);
            let share = positions.len() as f64 / f64::from(words);
            assert!((share - probability).abs() < 0.01, "{share} of the tokens are hidden, not {probability}");

            let (mut masked, mut kept, mut other) = (0.0, 0.0, 0.0);
            for (&position, &target) in positions.iter().zip(&targets) {
                assert_eq!(before.ids[position as usize], target);
                assert!(target > MASK, "a special token is hidden");
                match tokens.ids[position as usize] {
                    MASK => masked += 1.0,
                    id if id == target => kept += 1.0,
                    id => {
                        assert!(id > MASK && id < VOCABULARY, "{id} was put in");
                        other += 1.0;
                    }
                }
            }
            let count = positions.len() as f64;
            for (name, found, expected) in [("masked", masked, 0.8), ("other", other, 0.1), ("kept", kept, 0.1)] {
                assert!((found / count - expected).abs() < 0.015, "{name}: {} of the hidden", found / count);
            }

            let chosen: HashSet<usize> = positions.iter().map(|&position| position as usize).collect();
            let changed = (0..before.ids.len()).filter(|&at| tokens.ids[at] != before.ids[at]);
            assert!(changed.into_iter().all(|at| chosen.contains(&at)), "a token changed that is no target");
            assert_eq!((tokens.rows, tokens.segments), (before.rows.clone(), before.segments.clone()));
        }
    }

    #[test]
    fn rows_without_words_hide_nothing() {
        let empty = TokenBatch {
            rows: vec![0],
            batch: 1,
            seq: 2,
            ids: vec![CLS, SEP],
            segments: vec![vec![2]],
            ..TokenBatch::default()
        };
        let masked = masking(0.99).apply(empty.clone(), 1);
        assert_eq!((masked.tokens, masked.positions.len(), masked.targets.len()), (empty, 0, 0));
    }
}
