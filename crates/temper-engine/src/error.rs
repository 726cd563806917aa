//! What can go wrong in training, said in full.

use std::path::{Path, PathBuf};

use temper_device::Failed;

/// An error of the caller's own code: of its data or of its evaluation.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why training ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No parameter requires a gradient.
    #[error("nothing trains: no parameter of the model is trainable; add an adapter or unfreeze some parameters")]
    NothingTrains,
    /// A parameter's values are of a type that cannot be trained.
    #[error("failed to train `{path}`: its values are {dtype}, and only f32, f16 and bf16 can be trained")]
    UntrainableDtype {
        /// The parameter.
        path: String,
        /// Its dtype.
        dtype: String,
    },
    /// The loss of a batch does not depend on any trainable parameter.
    #[error(
        "failed to differentiate the loss at step {step}: it depends on no trainable parameter (rows {})",
        rows_text(rows)
    )]
    Untracked {
        /// The step, counted from 1.
        step: u64,
        /// The rows of the micro-batch.
        rows: Vec<u32>,
    },
    /// All labels of a step are ignored.
    #[error(
        "nothing to learn from at step {step}: none of its rows has a target (rows {}); \
         were the answers cut off by data.max_length?",
        rows_text(rows)
    )]
    NoTargets {
        /// The step, counted from 1.
        step: u64,
        /// The rows of the step.
        rows: Vec<u32>,
    },
    /// The loss or the gradient is infinite or not a number; the weights were left as they were.
    #[error(
        "training diverged at step {step}: {what} is not finite{} (rows {}); \
         the weights of the step before are unharmed; lower train.lr, lengthen the warmup, or look at these rows",
        tensor.as_ref().map(|name| format!(", first in the gradient of `{name}`")).unwrap_or_default(), rows_text(rows)
    )]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// `the loss` or `the gradient`.
        what: &'static str,
        /// The rows of the first micro-batch whose loss is bad, or all rows of the step where every loss is finite.
        rows: Vec<u32>,
        /// The first parameter, by name, whose gradient is bad.
        tensor: Option<String>,
    },
    /// The weights after a step are infinite or not numbers, or an evaluation says so. They are not saved.
    #[error("training diverged at step {step}: after it {what} is not finite; lower train.lr or lengthen the warmup")]
    Ruined {
        /// The step, counted from 1.
        step: u64,
        /// A parameter, or the loss of an evaluation.
        what: String,
    },
    /// The data ended too soon.
    #[error("failed to go on after step {step} of {steps}: the data ended")]
    DataEnded {
        /// Steps done.
        step: u64,
        /// Steps planned.
        steps: u64,
    },
    /// The data could not be read.
    #[error("failed to read the batch of step {step}: {source}")]
    Data {
        /// The step, counted from 1.
        step: u64,
        /// Why.
        source: BoxError,
    },
    /// The evaluation failed.
    #[error("failed to evaluate after step {step}: {source}")]
    Evaluation {
        /// Steps done.
        step: u64,
        /// Why.
        source: BoxError,
    },
    /// The evaluation did not measure what decides which checkpoint is best.
    #[error(
        "failed to find the metric `{wanted}` that decides which checkpoint is best: the evaluation measured {measured}"
    )]
    NoMetric {
        /// The metric of the plan.
        wanted: String,
        /// What there is.
        measured: String,
    },
    /// The device failed, for example for want of memory.
    #[error(
        "failed on the device at step {step}: {failed}{}",
        failed.help("; a smaller train.micro_batch needs less memory")
    )]
    Device {
        /// The step, counted from 1.
        step: u64,
        /// What the device says.
        failed: Failed,
    },
    /// Something that all ranks must have alike is another on this one.
    #[error("{what} are not those of the other ranks at step {step}: they do not train one model")]
    Disagrees {
        /// What.
        what: &'static str,
        /// Steps done.
        step: u64,
    },
    /// This rank was given another plan.
    #[error("{what} are not those of the other ranks: they read another recipe or other data")]
    Unlike {
        /// What.
        what: &'static str,
    },
    /// Another rank failed, and says how.
    #[error("another rank failed at step {step}")]
    Elsewhere {
        /// The step, counted from 1.
        step: u64,
    },
    /// A checkpoint that rank 0 wrote cannot be seen by this rank.
    #[error(
        "rank {rank} does not see {}, which rank 0 wrote: the run directory must be on a filesystem that all ranks share",
        path.display()
    )]
    NotShared {
        /// The rank.
        rank: usize,
        /// The checkpoint.
        path: PathBuf,
    },
    /// Ranks could not do something together.
    #[error(transparent)]
    World(#[from] temper_world::Error),
    /// A file could not be written or read.
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A checkpoint that is not what was written.
    #[error("the checkpoint {} is damaged: {reason}", path.display())]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// In what.
        reason: String,
    },
    /// A sound checkpoint of another model or optimizer.
    #[error("the checkpoint {} is not of this model: {reason}", path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// In what.
        reason: String,
    },
    /// A sound checkpoint of another plan.
    #[error(
        "refused to resume from {}: it was written under the plan {found}, and this is the plan {wanted}; \
         train in a new run directory, or restore the recipe and the data", path.display()
    )]
    OtherPlan {
        /// The checkpoint.
        path: PathBuf,
        /// Its plan's fingerprint.
        found: String,
        /// This plan's fingerprint.
        wanted: String,
    },
    /// A checkpoint of another version of temper.
    #[error("refused to resume from {}: its format is {found}, and this version of temper reads format {wanted}", path.display())]
    Format {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format of this version.
        wanted: u64,
    },
    /// There are checkpoints, and none can be used.
    #[error(
        "failed to resume: all {count} checkpoints in {} are damaged, the last because {reason}; \
         remove the directory to start anew", path.display()
    )]
    NoneUsable {
        /// The directory.
        path: PathBuf,
        /// How many.
        count: usize,
        /// What ails the newest.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

impl Error {
    /// What differs between ranks where a plan does.
    pub(crate) fn of_plan(self) -> Self {
        match self {
            Self::Disagrees { what, .. } => Self::Unlike { what },
            other => other,
        }
    }
}

/// The first rows by number; a step can have thousands.
fn rows_text(rows: &[u32]) -> String {
    const SHOWN: usize = 16;
    let shown: Vec<String> = rows.iter().take(SHOWN).map(u32::to_string).collect();
    match rows.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_row_lists_are_cut() {
        let error = Error::NoTargets { step: 3, rows: (0..20).collect() };
        assert!(error.to_string().contains("13, 14, 15 and 4 more"), "{error}");
    }

    #[test]
    fn divergence_names_step_rows_and_tensor() {
        let error =
            Error::Diverged { step: 7, what: "the loss", rows: vec![41], tensor: Some("encoder.weight".into()) };
        let text = error.to_string();
        assert!(text.starts_with(
            "training diverged at step 7: the loss is not finite, first in the gradient of `encoder.weight` (rows 41)"
        ));
    }
}
