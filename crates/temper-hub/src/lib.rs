//! How do files travel? Today: the model card that goes beside exported weights.
//!
//! [`Card`] holds what a run knows, [`render`] turns it into a `README.md` that the Hugging Face Hub reads: YAML front
//! matter and a Markdown body. Nothing in a card is guessed: a licence comes from the user or from the base
//! ([`license_of`]), a metric is one that was measured, and no path of the machine and no Hub token reaches the text.
//!
//! ```
//! use temper_hub::{Card, Pipeline, Relation, render};
//!
//! let mut card = Card::new("reviews-minilm", Relation::Adapter, Pipeline::TextClassification);
//! card.base_model = "sentence-transformers/all-MiniLM-L6-v2".into();
//! card.license = Some("apache-2.0".into());
//! assert!(render(&card).starts_with("---\nlicense: apache-2.0\n"));
//! ```

mod answer;
mod body;
mod browse;
mod cache;
mod card;
mod data_card;
mod dataset;
mod download;
mod error;
mod front;
mod hf;
mod http;
mod hub;
mod id;
mod licence;
mod login;
mod model;
mod names;
mod private;
mod pull;
mod push;
mod settings;
mod token;
mod tree;
mod verify;
mod yaml;

pub use browse::{Facts, Found, Search};
pub use card::{
    Card, Confusion, DataFile, DataSource, Dataset, Evaluation, History, Metric, Pipeline, Relation, hub_id,
    license_of, render, sha256_of,
};
pub use data_card::{DataCard, DataSplit, render_data};
pub use dataset::{DataFiles, DataRequest};
pub use download::Verify;
pub use error::{Error, Result};
pub use hub::Hub;
pub use id::{Reference, RepoId, RepoKind};
pub use licence::{Decision, Terms, decide};
pub use login::{login, logout};
pub use model::ModelFiles;
pub use names::Commit;
pub use pull::{Limits, OnProgress, Progress, PullOptions, Pulled, Snapshot};
pub use push::{Account, Outcome, Push, PushFile, Pushed, Pusher, Ready, Target};
pub use settings::{Origin, PUBLIC_HUB, Patience, Setting, Settings};
pub use token::Token;
pub use tree::{Listing, Pinned, TreeFile};
