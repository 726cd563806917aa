//! Where do examples come from? Records to token batches; no tensors.
//!
//! ```text
//! files --source--> records --tokenizer, labels--> Examples --split, audit--> Dataset
//! Order: step -> rows (a pure function)      Examples::batch: rows -> TokenBatch      prefetch: ahead of training
//! ```
//!
//! [`load`] streams the files of a [`DataConfig`]; nothing is ever held whole but token ids, and those spill to disk
//! beyond 64 MiB. An [`Order`] says which rows each optimizer step sees, so a run resumes at step N by asking for step N.

mod audit;
mod batch;
mod config;
mod convert;
mod delimited;
mod error;
mod examples;
mod frame;
mod jsonl;
mod labels;
mod load;
mod order;
mod prefetch;
mod random;
mod report;
mod source;
mod split;
mod store;
mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tokenizer;
mod vocabulary;
mod words;

pub use batch::TokenBatch;
pub use config::{DataConfig, FileEntry, FileTable, Files, LabelColumns};
pub use convert::{Converted, to_parquet};
pub use error::{Error, Result};
pub use examples::{Examples, Source};
pub use labels::{Label, LabelKind};
pub use load::{Dataset, load};
pub use order::Order;
pub use prefetch::{Prefetch, prefetch};
pub use random::Random;
pub use report::{DataReport, Finding, LabelCount, LengthStats, Severity, SplitReport};
pub use tokenizer::{Encoded, Tokenizer};
