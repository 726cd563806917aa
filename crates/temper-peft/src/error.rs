//! What can go wrong with adapters and their files.

use std::path::PathBuf;

use temper_device::Failed;

/// An adapter that cannot be matched, read, written or applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A target names no module.
    #[error("adapter target `{target}` matches no linear layer of this model{}", hint(.nearest))]
    NoSuchTarget {
        /// What the recipe says.
        target: String,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
    /// A `rank_pattern`, `alpha_pattern` or `modules_to_save` entry names no module.
    #[error("`{key}` in `{field}` matches no {what}{}", hint(.nearest))]
    NoSuchKey {
        /// The field of `[adapter]`.
        field: &'static str,
        /// The entry.
        key: String,
        /// What it should have matched.
        what: &'static str,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
    /// A pattern is not a regular expression that Rust can run.
    #[error(
        "`{pattern}` in `{field}` is not a usable regular expression (look-around and back-references are not supported): {source}"
    )]
    Pattern {
        /// The field.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// The parser's complaint.
        source: Box<regex::Error>,
    },
    /// An entry of `modules_to_save` names a module and one within it.
    #[error(
        "`{name}` in `modules_to_save` names `{outer}` and, within it, `{inner}`: PEFT cannot load such an adapter; name only one"
    )]
    Nested {
        /// The entry.
        name: String,
        /// A module.
        outer: String,
        /// A module of that module.
        inner: String,
    },
    /// A number of the `[adapter]` table is out of range.
    #[error("`{field}` of the adapter for `{module}` is {value}: {rule}")]
    Range {
        /// The field.
        field: &'static str,
        /// The module.
        module: String,
        /// Its value.
        value: f64,
        /// What it must be.
        rule: &'static str,
    },
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
    /// A file is not what it should be.
    #[error("`{}` is not a valid adapter file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An adapter uses a feature of PEFT that temper does not implement.
    #[error("the adapter in `{}` uses `{feature}`, which is not supported: {advice}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field or tensor.
        feature: String,
        /// What to do instead.
        advice: String,
    },
    /// A value does not fit its parameter.
    #[error("parameter `{path}` has shape {expected:?}, but the given values have shape {found:?}")]
    Shape {
        /// The parameter.
        path: String,
        /// Its shape.
        expected: Vec<usize>,
        /// The shape of the values.
        found: Vec<usize>,
    },
    /// Values were given for parameters that do not exist.
    #[error("the model has no parameter `{path}`{}", hint(.nearest))]
    NoSuchParameter {
        /// The name.
        path: String,
        /// The nearest name that exists.
        nearest: Option<String>,
    },
    /// A value is larger than the dtype that it is written in holds.
    #[error("`{path}` has the value {value}, and the dtype that it is written in ends at {most}: write another one")]
    Beyond {
        /// The parameter.
        path: String,
        /// The value.
        value: f32,
        /// The largest that there is.
        most: f32,
    },
    /// A parameter could not be brought to the host.
    #[error("failed to read parameter `{path}` from its device: {failed}")]
    Device {
        /// The parameter.
        path: String,
        /// What the device says.
        failed: Failed,
    },
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// The candidate most like `name`, if one is like it at all.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}
