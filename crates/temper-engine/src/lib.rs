//! How does training happen? The loop, optimizers, schedules, clipping, checkpoints.
//!
//! Read [`fit`](fit()) first: it is the only training loop. It knows no task and no architecture: a model that can say
//! what its loss on a batch is ([`Objective`]) and an iterator of batches are all that it needs.

mod checkpoint;
mod config;
mod error;
mod event;
mod fit;
mod gradients;
#[cfg(test)]
mod laws;
mod lending;
mod optim;
mod plan;
mod scale;
mod schedule;
mod shared;
mod weights;

pub use checkpoint::read_trained;
pub use config::{
    Checkpointing, Decay, EvalConfig, Every, EveryName, OptimConfig, OptimKind, ScheduleConfig, ScheduleKind,
    TrainConfig,
};
pub use error::{BoxError, Error};
pub use event::{Event, StopReason};
pub use fit::{Evaluate, Outcome, fit, seed};
pub use optim::state_bytes;
pub use plan::{FitPlan, Loss, Metric, Mode, Objective, Scores, Sharing, Site, Stop};
pub use schedule::Schedule;
pub use shared::elsewhere;
