//! How do files travel? Between this machine and a Hugging Face hub, or a private hub that speaks its protocol; and the
//! cards that go with them.
//!
//! Every call blocks; what is asynchronous below stays below. [`Settings`] say where the hub and the cache are, a
//! [`Hub`] does the rest:
//!
//! - **Pull.** [`Hub::pin`] resolves a revision once to a commit, [`Hub::list`] names its files with sizes and hashes,
//!   [`Hub::model_files`] and [`Hub::data_files`] choose those that are needed, [`Hub::sketch`] fetches as much of a model as
//!   a plan needs, [`Hub::pull`] brings files into the cache that Python's client uses too. Nothing is readable there before its hash was verified.
//! - **Push.** [`Hub::prepare`] finds out before a run whether a push will be allowed, [`Hub::push`] makes one commit of
//!   named files and never makes it twice, a [`Pusher`] does so beside training.
//! - **Cards.** [`Card`] and [`DataCard`] hold what a run knows, [`render`] and [`render_data`] turn them into a
//!   `README.md`; [`decide`] says under which licence. Nothing in a card is guessed, and no path of the machine and no
//!   token reaches the text.
//!
//! ```no_run
//! use temper_hub::{Hub, PullOptions, Settings};
//!
//! # fn main() -> temper_hub::Result<()> {
//! let hub = Hub::new(Settings::from_env()?)?;
//! let pinned = hub.pin(&"google-bert/bert-base-uncased".parse()?)?;
//! let snapshot = hub.pull_model(&pinned, &PullOptions::default(), &|progress| {
//!     eprint!("\r{} of {} bytes", progress.bytes, progress.total);
//! })?;
//! println!("{} at {}: {}", pinned.repo, pinned.commit, snapshot.dir.display());
//! # Ok(())
//! # }
//! ```
//!
//! ```
//! use temper_hub::{Card, Pipeline, Relation, render};
//!
//! let mut card = Card::new("reviews-minilm", Relation::Adapter, Pipeline::TextClassification);
//! card.base_model = "sentence-transformers/all-MiniLM-L6-v2".into();
//! card.license = Some("apache-2.0".into());
//! assert!(render(&card).starts_with("---\nlicense: apache-2.0\n"));
//! ```
//!
//! A server is not trusted: names, commits and hashes are checked before they touch the disk, sizes are bounded before
//! the first byte, the token goes to the configured origin only, safetensors are preferred and pickles refused, and no
//! code of a repository is ever run.

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
mod sketch;
mod token;
mod tree;
mod verify;
pub mod yaml;

pub use browse::{Facts, Found, Search};
pub use card::{
    Card, Confusion, DataFile, DataSource, Dataset, Evaluation, Head, History, Metric, Pipeline, Relation, hub_id,
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
pub use model::{CHAT_TEMPLATES, ModelFiles, TOKENIZER_FILES};
pub use names::{Commit, check_revision};
pub use pull::{Limits, OnProgress, Progress, PullOptions, Pulled, Snapshot};
pub use push::{Account, Outcome, Push, PushFile, Pushed, Pusher, Ready, Target, has_token};
pub use settings::{Origin, PUBLIC_HUB, Patience, Setting, Settings};
pub use token::Token;
pub use tree::{Listing, Pinned, TreeFile};
pub use verify::hex;
