//! Which networks do we know? Architectures, one file each; Hugging Face load and save.
//!
//! Legend of all shapes: B batch, S sequence, T = B·S tokens, D model, F feed-forward, V vocabulary.

mod backbone;
pub mod bert;
mod config;
pub mod distilbert;
mod error;
mod load;
pub mod roberta;
mod save;
mod weights;

pub use backbone::{Backbone, Input};
pub use config::{Config, MODEL_TYPES, Model};
pub use error::Error;
pub use load::{Init, LoadReport, WrongShape, candidates, check, initialise, load};
pub use save::{SaveDtype, save};
pub use weights::Weights;
