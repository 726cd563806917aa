//! How does training happen? The loop, optimizers, schedules, clipping, checkpoints.

mod config;

pub use config::{Decay, EvalConfig, Every, EveryName, OptimConfig, OptimKind, ScheduleConfig, ScheduleKind, TrainConfig};
