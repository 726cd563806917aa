//! The learning rate over the steps, as `transformers.optimization` has it.

use crate::config::{Decay, ScheduleConfig, ScheduleKind};

/// The warmup of a recipe that names none, as a fraction of all steps.
const WARMUP_RATIO: f64 = 0.06;

/// A pure function from the step to the factor of the peak learning rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Shape after warmup.
    pub kind: ScheduleKind,
    /// Steps of linear warmup.
    pub warmup_steps: u64,
    /// All steps, warmup included.
    pub steps: u64,
    /// The factor at the end.
    pub min_ratio: f64,
    /// WSD: fraction of all steps spent decaying.
    pub decay_ratio: f64,
    /// WSD: shape of the decay.
    pub decay: Decay,
}

impl Schedule {
    /// The schedule of a recipe over `steps` steps. A warmup given as a ratio is rounded up to whole steps, as in
    /// Transformers.
    pub fn new(config: &ScheduleConfig, steps: u64) -> Self {
        // Every run comes to its learning rate, if in its last step.
        let of = |ratio: f64| ((ratio * steps as f64).ceil() as u64).min(steps.saturating_sub(1));
        Self {
            kind: config.kind,
            warmup_steps: config.warmup_steps.unwrap_or_else(|| of(config.warmup_ratio.unwrap_or(WARMUP_RATIO))),
            steps,
            min_ratio: config.min_ratio,
            decay_ratio: config.decay_ratio,
            decay: config.decay,
        }
    }

    /// Of WSD: the steps at the end in which it falls.
    pub fn decay_steps(&self) -> u64 {
        (self.decay_ratio * self.steps as f64).round() as u64
    }

    /// The factor at a step counted from 0, so that the first step of a warmup has the factor 0.
    ///
    /// With `w` warmup steps, `n` steps, `m` the ratio at the end and `x = (step - w) / (n - w)`: warmup is `step / w`;
    /// linear is `m + (1 - m)(1 - x)`; cosine is `m + (1 - m)(1 + cos πx) / 2`; WSD stays at 1 until its last
    /// `decay_ratio · n` steps, and its warmup starts at `m`.
    pub fn factor(&self, step: u64) -> f64 {
        let above_min = |factor: f64| factor * (1.0 - self.min_ratio) + self.min_ratio;
        if step < self.warmup_steps {
            let rise = step as f64 / self.warmup_steps as f64;
            return if self.kind == ScheduleKind::Wsd { above_min(rise) } else { rise };
        }
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => above_min(1.0 - progress(step, self.warmup_steps, self.steps)),
            ScheduleKind::Cosine => above_min(half_cosine(progress(step, self.warmup_steps, self.steps))),
            ScheduleKind::Wsd => {
                let stays = self.steps.saturating_sub(self.decay_steps());
                let x = progress(step, stays.max(self.warmup_steps), self.steps);
                above_min(match self.decay {
                    Decay::Linear => 1.0 - x,
                    Decay::Cosine => half_cosine(x),
                    Decay::Sqrt => 1.0 - x.sqrt(),
                })
            }
        }
    }
}

/// How far `step` is from `start` to `end`, in [0, 1].
fn progress(step: u64, start: u64, end: u64) -> f64 {
    (step.saturating_sub(start) as f64 / end.saturating_sub(start).max(1) as f64).min(1.0)
}

fn half_cosine(x: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * x).cos())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        config: ScheduleConfig,
        steps: u64,
        factors: Vec<f64>,
    }

    #[test]
    fn factors_equal_transformers() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/schedule.json")).unwrap();
        assert!(cases.len() >= 8);
        for case in cases {
            let schedule = Schedule::new(&case.config, case.steps);
            for (step, want) in case.factors.iter().enumerate() {
                let got = schedule.factor(step as u64);
                assert!((got - want).abs() < 1e-12, "{:?} at step {step}: {got} is not {want}", case.config);
            }
        }
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            for (steps, warmup) in [(0, 0), (1, 0), (1, 1), (3, 9)] {
                let config = ScheduleConfig { kind, warmup_steps: Some(warmup), ..Default::default() };
                let schedule = Schedule::new(&config, steps);
                assert!((0..12).all(|step| (0.0..=1.0).contains(&schedule.factor(step))), "{kind:?} {steps} {warmup}");
            }
        }
    }

    #[test]
    fn a_warmup_ratio_rounds_up() {
        let config = ScheduleConfig { warmup_ratio: Some(0.1), ..Default::default() };
        assert_eq!(Schedule::new(&config, 11).warmup_steps, 2);
        // But ends.
        let most = ScheduleConfig { warmup_ratio: Some(0.99), ..Default::default() };
        assert_eq!([1, 2, 12].map(|steps| Schedule::new(&most, steps).warmup_steps), [0, 1, 11]);
    }
}
