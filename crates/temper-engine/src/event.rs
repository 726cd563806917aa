//! What the loop tells its observers. Observers cannot steer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::Scores;

/// Something that happened in training. Steps are counted from 1: `step` is the number of steps done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A checkpoint was refused because it is damaged. One to resume from is set aside and an older one tried; in place of
    /// a best one the last weights are used.
    Refused {
        /// Where it is now.
        path: PathBuf,
        /// What ails it.
        reason: String,
    },
    /// Training goes on from a checkpoint.
    Resumed {
        /// Steps already done.
        step: u64,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A report on the steps since the last report.
    Step {
        /// Steps done.
        step: u64,
        /// Steps planned.
        steps: u64,
        /// Passes over the training rows done.
        epoch: f64,
        /// Mean loss per target over the steps of this report.
        loss: f64,
        /// Learning rate of the last step.
        lr: f64,
        /// Global norm of the last step's mean gradient, before clipping; absent if it overflowed, and the step was skipped.
        grad_norm: Option<f64>,
        /// What the loss is multiplied with before it goes backward, where it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        loss_scale: Option<f64>,
        /// Steps since the start of the run that were skipped because gradients overflowed, where that can be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        skipped: Option<u64>,
        /// Tokens since the start of the run, padding not counted.
        tokens: u64,
        /// Tokens per second over the steps of this report, evaluations and checkpoints not counted.
        tokens_per_second: f64,
        /// Milliseconds per step over the steps of this report, evaluations and checkpoints not counted.
        step_ms: f64,
        /// Milliseconds per step in which this rank exchanged numbers with others or waited for them, where there are any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        communication_ms: Option<f64>,
        /// Bytes per step that a ring sends from a rank, as [`temper_world::Traffic`] counts them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        communication_bytes: Option<f64>,
    },
    /// An evaluation.
    Evaluated {
        /// Steps done.
        step: u64,
        /// What was measured.
        scores: Scores,
        /// Whether it is the best so far.
        best: bool,
        /// How long it took, in milliseconds.
        ms: f64,
    },
    /// A checkpoint was written.
    Saved {
        /// Steps done.
        step: u64,
        /// The checkpoint.
        path: PathBuf,
        /// How long it took, in milliseconds.
        ms: f64,
    },
    /// Training ended.
    Stopped {
        /// Steps done.
        step: u64,
        /// Why.
        reason: StopReason,
        /// Seconds of training, those before a resume included.
        seconds: f64,
    },
}

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// All steps are done.
    Finished,
    /// The metric stopped improving.
    EarlyStopped,
    /// The time is up.
    WallClock,
    /// Somebody asked.
    Interrupted,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn events_are_tagged_json() {
        let event = Event::Stopped { step: 3, reason: StopReason::EarlyStopped, seconds: 1.5 };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"event":"stopped","step":3,"reason":"early_stopped","seconds":1.5}"#);
    }
}
