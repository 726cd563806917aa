//! What can go wrong between a file and a batch.

use std::path::{Path, PathBuf};

/// What can go wrong between a file and a batch. Each message says where, what, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of the `[data]` table makes no sense.
    #[error("failed to use data.{field}: {message}")]
    Config {
        /// Key within `[data]`.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A file as a whole cannot be read: missing, a directory, unknown kind, damaged.
    #[error("failed to read {}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A column that the recipe names is not in the file, or cannot be read.
    #[error("failed to read column `{column}` of {}{}: {message}", path.display(), at(*place))]
    Column {
        /// The file.
        path: PathBuf,
        /// The line or row, from 1, where each record has columns of its own (JSON lines).
        place: Option<(&'static str, u64)>,
        /// The column asked for.
        column: String,
        /// The columns there are, and the nearest.
        message: String,
    },
    /// One record is wrong.
    #[error("failed to read {}, {unit} {line}: {message}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// `line` for text files, `row` for columnar ones.
        unit: &'static str,
        /// Line of the file or number of the row, from 1.
        line: u64,
        /// What is wrong with it.
        message: String,
    },
    /// A tokenizer cannot be read or used.
    #[error("failed to use the tokenizer {}: {message}", path.display())]
    Tokenizer {
        /// File or directory of the tokenizer.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A chat template cannot be read or does not render.
    #[error("failed to use the chat template {}: {message}", path.display())]
    Template {
        /// The file, or the name of one of temper's own.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The temporary file for tokens could not be written or mapped.
    #[error(
        "failed to keep {bytes} bytes of tokens in the temporary directory {}: {source} (free some space there, or point TMPDIR elsewhere)",
        directory.display()
    )]
    Spill {
        /// The system's temporary directory.
        directory: PathBuf,
        /// Bytes of tokens so far.
        bytes: u64,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// That a file as a whole cannot be read.
    pub(crate) fn file(path: &Path, message: impl ToString) -> Self {
        Self::File { path: path.to_owned(), message: message.to_string() }
    }
}

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn at(place: Option<(&str, u64)>) -> String {
    place.map(|(unit, number)| format!(", {unit} {number}")).unwrap_or_default()
}

/// `, did you mean "x"?` when one of `names` is close to `wanted`, else nothing.
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let lower = wanted.to_lowercase();
    let best = names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .min_by_key(|(distance, _)| *distance);
    match best {
        Some((distance, name)) if distance <= (wanted.chars().count() / 2).max(1) => {
            format!(", did you mean \"{name}\"?")
        }
        _ => String::new(),
    }
}

/// At most twelve names, quoted, for a message.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.len() {
        0 => "none".into(),
        1..=12 => quoted.join(", "),
        n => format!("{}, … ({n} in all)", quoted[..12].join(", ")),
    }
}
