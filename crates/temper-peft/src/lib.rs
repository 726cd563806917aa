//! What is trainable? Named parameters, adapters on them, and PEFT's file format.

mod config;
pub mod parameters;

pub use config::{AdapterConfig, Bias, Method, Targets};
