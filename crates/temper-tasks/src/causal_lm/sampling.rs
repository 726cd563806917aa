//! From logits to the next token.
//!
//! In the order of Transformers' logits processors: repetition penalty (Keskar et al. 2019, arXiv:1909.05858), temperature, top-k,
//! top-p (Holtzman et al. 2020, arXiv:1904.09751), min-p (Nguyen et al. 2024, arXiv:2407.01082), then a draw. What is drawn is a pure
//! function of (seed, row, position).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use temper_data::Random;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token, and top-k, top-p, min-p and seed say nothing then. Default 0.
    pub temperature: f64,
    /// Only the k likeliest tokens; 0: all. Default 0.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities sum to p, in (0, 1]. Default 1: all.
    pub top_p: f64,
    /// Only tokens at least this share as likely as the likeliest, in [0, 1). Default 0: all.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens that were there before, above 0. Default 1: none.
    pub repetition_penalty: f64,
    /// Of the draws. Default 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// What cannot be sampled with, if anything: the setting and what it must be.
    pub fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        let rules = [
            ("temperature", "at least 0", temperature >= 0.0 && temperature.is_finite()),
            ("top-p", "in (0, 1]", top_p > 0.0 && top_p <= 1.0),
            ("min-p", "in [0, 1)", (0.0..1.0).contains(&min_p)),
            ("repetition-penalty", "above 0", repetition_penalty > 0.0 && repetition_penalty.is_finite()),
        ];
        rules.into_iter().find(|(_, _, holds)| !holds).map(|(name, rule, _)| (name, rule))
    }

    /// The next token of row `row`, after `seen` (the prompt and what was generated so far), from its logits (V values).
    pub fn next(&self, logits: &[f32], seen: &[u32], row: usize) -> u32 {
        let mut scores: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&logit| f64::from(logit))).collect();
        if self.repetition_penalty != 1.0 {
            for id in seen.iter().collect::<BTreeSet<_>>() {
                if let Some((_, score)) = scores.get_mut(*id as usize) {
                    *score *= if *score < 0.0 { self.repetition_penalty } else { self.repetition_penalty.recip() };
                }
            }
        }
        // Of equal scores the first, as argmax does.
        let best =
            scores.iter().copied().fold((0, f64::NEG_INFINITY), |best, new| if new.1 > best.1 { new } else { best });
        if self.temperature == 0.0 {
            return best.0;
        }
        let weight = |score: f64| ((score - best.1) / self.temperature).exp();
        let mut weights: Vec<(u32, f64)> = scores.into_iter().map(|(id, score)| (id, weight(score))).collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            weights.truncate(self.top_k);
        }
        self.cut(&mut weights);
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut left = Random::new(self.seed, row as u64).of(seen.len() as u64).unit() * total;
        for (id, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return *id;
            }
        }
        weights.last().map_or(best.0, |(id, _)| *id)
    }

    /// top-p, then min-p, of weights in falling order. One token always stays.
    fn cut(&self, weights: &mut Vec<(u32, f64)>) {
        let mut before = 0.0;
        if self.top_p < 1.0 {
            let most = self.top_p * weights.iter().map(|(_, weight)| weight).sum::<f64>();
            let kept = weights.iter().take_while(|(_, weight)| {
                let stays = before < most;
                before += weight;
                stays
            });
            let kept = kept.count().max(1);
            weights.truncate(kept);
        }
        let least = self.min_p * weights.first().map_or(0.0, |(_, weight)| *weight);
        weights.retain(|(_, weight)| *weight >= least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities ½, ¼, ⅛, ⅛ as logits, in another order.
    fn logits() -> Vec<f32> {
        [0.125f32, 0.5, 0.125, 0.25].map(f32::ln).to_vec()
    }

    /// The share of each token in many draws.
    fn shares(sampling: &Sampling) -> Vec<f64> {
        let mut counts = [0.0; 4];
        for row in 0..8000 {
            counts[sampling.next(&logits(), &[9], row) as usize] += 1.0 / 8000.0;
        }
        counts.to_vec()
    }

    fn close(sampling: Sampling, expected: [f64; 4]) {
        let found = shares(&sampling);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02 && (b > 0.0 || *a == 0.0)), "{found:?}");
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(Sampling::default().next(&[1.0, 3.0, 3.0], &[], 0), 1);
        assert_eq!(Sampling::default().next(&[f32::NEG_INFINITY, -3.0], &[], 0), 1);
    }

    #[test]
    fn shares_are_the_probabilities_that_are_left() {
        let one = Sampling { temperature: 1.0, ..Sampling::default() };
        close(one.clone(), [0.125, 0.5, 0.125, 0.25]);
        close(Sampling { temperature: 0.5, ..one.clone() }, [1.0 / 22.0, 16.0 / 22.0, 1.0 / 22.0, 4.0 / 22.0]);
        close(Sampling { top_k: 2, ..one.clone() }, [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        close(Sampling { top_p: 0.6, ..one.clone() }, [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        close(Sampling { top_p: 0.5, ..one.clone() }, [0.0, 1.0, 0.0, 0.0]);
        close(Sampling { min_p: 0.4, ..one.clone() }, [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        close(Sampling { top_p: 1e-9, ..one }, [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn repetition_is_punished_on_both_sides_of_zero() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(sampling.next(&[3.0, 2.0], &[0, 0], 0), 1);
        assert_eq!(sampling.next(&[-1.0, -1.5], &[0], 0), 1);
        assert_eq!(sampling.next(&[3.0, 2.0], &[77], 0), 0);
    }

    #[test]
    fn draws_repeat_with_their_seed_and_differ_by_position() {
        let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
        let draws = |sampling: &Sampling| (0..50).map(|n| sampling.next(&logits(), &vec![0; n], 0)).collect::<Vec<_>>();
        assert_eq!(draws(&sampling), draws(&sampling));
        let other = Sampling { seed: 4, ..sampling.clone() };
        assert_ne!(draws(&sampling), draws(&other));
        // The next row is not the same row under the next seed.
        let of =
            |sampling: &Sampling, row| (0..50).map(|n| sampling.next(&logits(), &vec![0; n], row)).collect::<Vec<_>>();
        assert_ne!(of(&sampling, 1), of(&sampling, 0));
        assert_ne!(of(&sampling, 1), of(&other, 0));
        assert!(draws(&sampling).windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(Sampling::default().wrong(), None);
        let wrong = |sampling: Sampling| sampling.wrong().map(|(name, _)| name);
        assert_eq!(wrong(Sampling { temperature: f64::NAN, ..Sampling::default() }), Some("temperature"));
        assert_eq!(wrong(Sampling { top_p: 0.0, ..Sampling::default() }), Some("top-p"));
        assert_eq!(wrong(Sampling { min_p: 1.0, ..Sampling::default() }), Some("min-p"));
        assert_eq!(wrong(Sampling { repetition_penalty: 0.0, ..Sampling::default() }), Some("repetition-penalty"));
    }
}
