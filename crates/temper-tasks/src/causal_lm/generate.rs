//! Continuing prompts, several at once, with cached keys and values.

use burn::tensor::{Int, Tensor, TensorData};
use temper_models::{Cache, Error};
use temper_nn::{Pass, matmul};

use super::{CausalLm, Sampling};

/// How prompts are continued.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The most tokens of a continuation.
    pub max_new_tokens: usize,
    /// Tokens that end a continuation.
    pub end_ids: Vec<u32>,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// The most tokens of prompt and continuation together, which the network can hold.
    pub max_positions: usize,
    /// The number of the first prompt among all, of those that are continued by turns: each draws for itself.
    pub first: usize,
}

/// A continuation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Generated {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// Whether it came to an end of its own.
    pub ended: bool,
}

impl CausalLm {
    /// Continues each of `prompts`, none of them empty. `on_token` hears of each new token, with the number of its prompt, and
    /// ends that continuation by answering false.
    ///
    /// # Errors
    /// When the network is no decoder, its output is no number, or the device fails.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        how: &Generation,
        pass: &Pass,
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Generated>, Error> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let pads: Vec<usize> = prompts.iter().map(|prompt| longest - prompt.len()).collect();
        let mut seen = prompts.to_vec();
        let mut generated = vec![Generated::default(); prompts.len()];
        let mut live: Vec<usize> = (0..prompts.len()).filter(|&row| prompts[row].len() < how.max_positions).collect();
        if live.is_empty() || how.max_new_tokens == 0 {
            return Ok(generated);
        }
        let mut cache = Cache::new(live.iter().map(|&row| pads[row]).collect());
        // What the network reads next of each live row: its prompt filled up on the left, then one token at a time.
        let filled = |row: &usize| std::iter::repeat_n(0, pads[*row]).chain(prompts[*row].iter().map(|&id| id as i32));
        let mut next: Vec<i32> = live.iter().flat_map(filled).collect();
        for _ in 0..how.max_new_tokens {
            let logits = self.next_logits(next, &mut cache, live.len(), pass)?;
            let mut kept = Vec::new();
            next = Vec::new();
            for (at, &row) in live.iter().enumerate() {
                let id = how.sampling.next(&logits[at], &seen[row], how.first + row);
                if how.end_ids.contains(&id) {
                    generated[row].ended = true;
                    continue;
                }
                seen[row].push(id);
                generated[row].ids.push(id);
                if on_token(row, id) && seen[row].len() < how.max_positions {
                    kept.push(at);
                    next.push(id as i32);
                }
            }
            if kept.is_empty() {
                break;
            }
            if kept.len() < live.len() {
                live = kept.iter().map(|&at| live[at]).collect();
                cache.select(&kept);
            }
        }
        Ok(generated)
    }

    /// The logits after the last of `ids`, `rows` lists of V, of which each has a largest.
    fn next_logits(&self, ids: Vec<i32>, cache: &mut Cache, rows: usize, pass: &Pass) -> Result<Vec<Vec<f32>>, Error> {
        let output = self.output();
        let [vocabulary, model] = output.dims();
        let length = ids.len() / rows;
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, length]), &output.device());
        let states = self.backbone.extend(ids, cache, pass)?.narrow(1, length - 1, 1).reshape([rows, model]);
        let logits: Vec<f32> = temper_device::values(self.capped(matmul(states, output.transpose())))?;
        match logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            true => Err(Error::Output),
            false => Ok(logits.chunks(vocabulary).map(<[f32]>::to_vec).collect()),
        }
    }
}
