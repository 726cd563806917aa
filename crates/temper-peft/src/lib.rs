//! What is trainable? Named parameters, adapters on them, and PEFT's file format.

mod adapter;
mod config;
mod error;
pub mod file;
pub mod init;
mod lend;
pub mod parameters;
pub mod targets;
mod weight;

pub use adapter::{Adapter, Spec};
pub use config::{AdapterConfig, Bias, Method, Targets};
pub use error::Error;
pub use lend::{Lend, Lender, OnTape};
pub use weight::Held;
