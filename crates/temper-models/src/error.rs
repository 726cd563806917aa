//! What can go wrong with models and their files.

use std::path::PathBuf;

/// A model that cannot be described, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("failed to {action} `{}`: {source}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's complaint.
        source: std::io::Error,
    },
    /// A directory is not a model's.
    #[error("`{}` holds no config.json: it is not a model in Hugging Face's layout", path.display())]
    NoConfig {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("`{}` is not valid: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The architecture is not known.
    #[error(
        "`{}` has model_type `{found}`, which temper does not know{}; known are: {known}",
        path.display(),
        nearest.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default()
    )]
    UnknownModel {
        /// `config.json`.
        path: PathBuf,
        /// Its model_type.
        found: String,
        /// The nearest known one.
        nearest: Option<String>,
        /// All known ones.
        known: String,
    },
    /// A field of `config.json` has a value that temper does not support.
    #[error("`{}`: `{field}` is {found}, but {rule}", path.display())]
    Field {
        /// `config.json`.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        rule: String,
    },
    /// No weights in a format that temper reads.
    #[error("`{}` holds no model.safetensors{advice}", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// What to do, if there is something else.
        advice: String,
    },
    /// A tensor is asked for that the file does not hold.
    #[error("`{}` holds no tensor `{name}`", path.display())]
    NoSuchTensor {
        /// The directory.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor has a dtype that temper does not read.
    #[error("tensor `{name}` in `{}` has dtype {dtype}; temper reads F32, F16 and BF16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: String,
    },
    /// A tensor holds a NaN or an infinity: training could only diverge.
    #[error("tensor `{name}` in `{}` is damaged: its value {at} is {value}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Which value, in row-major order, from 0.
        at: usize,
        /// The value.
        value: f32,
    },
    /// What a network says of the next token is no number.
    #[error(
        "the network's output is not finite: its weights are damaged, or too large for the precision that it computes in"
    )]
    Output,
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(#[from] temper_device::Failed),
    /// Tensors do not fit the model.
    #[error("the weights in `{}` do not fit the model: {}", path.display(), list(.tensors))]
    Shapes {
        /// The directory.
        path: PathBuf,
        /// The tensors that do not fit.
        tensors: Vec<crate::WrongShape>,
    },
    /// Names given for adapters are not linear layers of the model.
    #[error("the model has no linear layer `{0}` to put an adapter on")]
    NoSuchLayer(String),
    /// An input cannot be run.
    #[error("{0}")]
    Input(String),
    /// A file could not be replaced.
    #[error(transparent)]
    Peft(#[from] temper_peft::Error),
}

fn list(tensors: &[crate::WrongShape]) -> String {
    let texts: Vec<_> = tensors.iter().take(5).map(ToString::to_string).collect();
    let more = tensors.len().saturating_sub(5);
    texts.join("; ") + &if more > 0 { format!("; and {more} more") } else { String::new() }
}
