//! Which networks do we know? Architectures, one file each; Hugging Face load and save.
//!
//! Legend of all shapes: B batch, S sequence, T = B·S tokens, D model, N heads, K key/value heads, H head dim, F
//! feed-forward, V vocabulary.

mod backbone;
pub mod bert;
mod config;
mod decoder;
pub mod distilbert;
mod error;
pub mod gemma3;
pub mod gpt2;
pub mod llama;
mod load;
pub mod phi3;
pub mod roberta;
mod rope;
mod save;
mod weights;

pub use backbone::{Backbone, Input};
pub use config::{Config, MODEL_TYPES, Model};
pub use decoder::Cache;
pub use error::Error;
pub use load::{Init, LoadReport, WrongShape, candidates, check, initialise, load, load_part, quantize};
pub use save::{SaveDtype, save};
pub use weights::Weights;
