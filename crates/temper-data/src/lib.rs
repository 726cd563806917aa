//! Where do examples come from? Records to token batches; no tensors.
//!
//! ```text
//! files --source--> records --tokenizer, labels, chat template--> Examples --split, audit, pack--> Dataset
//! Order: step -> rows (a pure function)      Examples::batch: rows -> TokenBatch      prefetch: ahead of training
//! ```
//!
//! [`load`] streams the files of a [`DataConfig`]; nothing is ever held whole but token ids, and those spill to disk
//! beyond 64 MiB. For causal language models a row is a text or a conversation in one of several formats, rendered by a
//! [`ChatTemplate`] as Transformers would, and [`TokenBatch::trained`] says which tokens are learned. An [`Order`] says which rows each optimizer step sees, so a run resumes at step N by asking for step N.

mod audit;
mod batch;
mod causal;
mod causal_audit;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod causal_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod chat_tests;
mod classes;
mod config;
mod convert;
mod delimited;
mod error;
mod examples;
mod frame;
mod hash;
mod jinja;
mod jsonl;
mod labels;
mod layout;
mod load;
mod message;
mod order;
mod pack;
mod prefetch;
mod preview;
mod random;
mod reader;
mod report;
mod source;
mod split;
mod store;
mod table;
mod template;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod texts;
mod tokenizer;
mod turns;
mod vocabulary;
mod words;

pub use batch::TokenBatch;
pub use classes::Class;
pub use config::{ChatColumns, DataConfig, FileEntry, FileTable, Files, Format, LabelColumns, LongRows, TrainOn};
pub use convert::{Converted, columns_of, to_parquet};
pub use error::{Error, Result};
pub use examples::{Choice, Examples, Source};
pub use labels::{Label, LabelKind};
pub use load::{Dataset, Target, load};
pub use message::Message;
pub use order::{Micro, Order};

pub use prefetch::{Prefetch, prefetch};
pub use preview::{PreviewRow, PreviewToken, preview};
pub use random::Random;
pub use report::{DataReport, Finding, LabelCount, LengthStats, PackReport, Severity, SplitReport, TemplateReport};
pub use template::ChatTemplate;
pub use texts::{Prompt, Prompts, Text, Texts};
pub use tokenizer::{Encoded, Tokenizer};
