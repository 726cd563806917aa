//! A hub to test against: the HTTP protocol of the [Hugging Face Hub](https://huggingface.co/docs/hub/index), over real
//! bare git repositories, on this machine only.
//!
//! ```no_run
//! use temper_testhub::{Fault, Kind, Options, TestHub, Trouble};
//!
//! # fn main() -> Result<(), temper_testhub::Error> {
//! let hub = TestHub::start(Options::default())?;
//! hub.seed(Kind::Model, "lab/tiny", &[("config.json", "{}"), ("model.safetensors", "...")])?;
//! hub.fault(Fault::new("GET", "*model.safetensors", Trouble::CutDownload(1)));
//! // HF_ENDPOINT = hub.endpoint(), HF_TOKEN = hub.token()
//! # Ok(())
//! # }
//! ```
//!
//! It is trusted only while the official Python client passes against it: `tests/hub/judge.py`.
//!
//! Two servers run, because clients treat a second host differently from the first: the hub, and the storage, where large
//! files lie (Git LFS, and Xet through the server of its authors). The storage refuses tokens, as object stores do.

mod accounts;
mod clock;
mod commit;
mod discussions;
mod error;
mod fault;
mod files;
mod git;
mod history;
mod http;
mod hub;
mod info;
mod lfs;
mod log;
mod parquet;
mod pointer;
mod refs;
mod repo;
mod repositories;
mod resolve;
mod route;
mod search;
mod server;
mod testhub;
mod xet;

pub use accounts::{Grant, Role};
pub use error::Error;
pub use fault::{Fault, Trouble};
pub use http::Side;
pub use log::Logged;
pub use repo::{Gated, Kind};
pub use testhub::{Options, TestHub};
