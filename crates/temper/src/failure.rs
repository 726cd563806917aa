//! Why a command ended: every error of the floors below, with the exit code that the README documents.

use std::fmt;
use std::process::ExitCode;

use temper_device::Failed;

/// A failure with its exit code. `Display` is what the user reads.
#[derive(Debug)]
pub struct Failure {
    /// What kind it is.
    pub kind: Kind,
    message: String,
}

/// Exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Anything else: a file that cannot be written, a checkpoint that cannot be read.
    Other = 1,
    /// The recipe or the command line is wrong.
    Recipe = 2,
    /// Data or weights are wrong.
    Data = 3,
    /// It does not fit in memory.
    Memory = 4,
    /// Stopped on request; the same command goes on.
    Interrupted = 5,
    /// Loss or gradient is not finite.
    Diverged = 6,
    /// The hub refused, could not be reached, or sent what is not whole.
    Hub = 7,
    /// A rank died, hung, or disagreed; the same command goes on from the last checkpoint.
    World = temper_world::WORLD_FAILED,
}

impl Kind {
    /// Whether what is wrong with data is what was asked of them: a column that a table, or the first of its rows, does not have.
    pub fn of_data(error: &temper_data::Error) -> Self {
        match error {
            temper_data::Error::Config { .. } | temper_data::Error::Column { place: None | Some((_, 1)), .. } => {
                Self::Recipe
            }
            _ => Self::Data,
        }
    }

    /// Whether it was for want of memory that a device failed.
    pub fn of_device(failed: &Failed) -> Self {
        if failed.lacks_memory() { Self::Memory } else { Self::Other }
    }

    /// Why a model was not trained.
    pub fn of_training(error: &temper_engine::Error) -> Self {
        use temper_engine::Error;
        match error {
            Error::Unlike { .. } => Self::Recipe,
            Error::Diverged { .. } | Error::Ruined { .. } => Self::Diverged,
            Error::NoTargets { .. } | Error::Data { .. } => Self::Data,
            Error::World(_) | Error::Disagrees { .. } => Self::World,
            Error::Device { failed, .. } => Self::of_device(failed),
            Error::Evaluation { source, .. } => source.downcast_ref().map_or(Self::Other, Self::of_measuring),
            _ => Self::Other,
        }
    }

    /// Why a model was not measured.
    pub fn of_measuring(error: &temper_tasks::Error) -> Self {
        match error {
            temper_tasks::Error::World(_) => Self::World,
            temper_tasks::Error::Device(failed) => Self::of_device(failed),
        }
    }

    /// The kind that an exit code says.
    pub fn of(code: Option<i32>) -> Option<Self> {
        use Kind::{Data, Diverged, Hub, Interrupted, Memory, Other, Recipe, World};
        let all = [Other, Recipe, Data, Memory, Interrupted, Diverged, Hub, World];
        all.into_iter().find(|kind| Some(*kind as i32) == code)
    }
}

impl Failure {
    /// A failure of that kind.
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// The same, with where it was found.
    pub fn at(self, place: impl fmt::Display) -> Self {
        let message = self.message.strip_prefix("error: ").map(|rest| format!("error: {place}: {rest}"));
        Self { message: message.unwrap_or(self.message), ..self }
    }

    /// The same with some help, if there is any.
    pub fn help(self, text: &str) -> Self {
        let help = if text.is_empty() { String::new() } else { format!("\n  = help: {text}") };
        Self { message: self.message + &help, ..self }
    }

    /// The same, which another rank says.
    pub fn unsaid(self) -> Self {
        Self { message: String::new(), ..self }
    }

    /// Whether nobody need read it.
    pub fn is_unsaid(&self) -> bool {
        self.message.is_empty()
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Of a model that was not measured.
impl From<temper_tasks::Error> for Failure {
    fn from(error: temper_tasks::Error) -> Self {
        Self::new(Kind::of_measuring(&error), format!("error: {error}"))
    }
}

/// Turns an error into a failure of a kind, with what was being done.
pub trait Context<T> {
    /// `error: {what}: {error}`, with every cause.
    fn context(self, kind: Kind, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: std::error::Error> Context<T> for Result<T, E> {
    fn context(self, kind: Kind, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| {
            let mut message = format!("error: {what}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !message.contains(&cause_text) {
                    message.push_str(&format!(": {cause_text}"));
                }
                source = cause.source();
            }
            Failure::new(kind, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_has_a_code_of_its_own_wherever_it_shows() {
        let out = || Failed::new("Caused by:\n  out of device memory allocating 8 bytes");
        let training = temper_engine::Error::Device { step: 3, failed: out() };
        let expected = "failed on the device at step 3: out of device memory allocating 8 bytes; a smaller \
                        train.micro_batch needs less memory";
        assert_eq!((Kind::of_training(&training), training.to_string().as_str()), (Kind::Memory, expected));
        let measuring = temper_tasks::Error::Device(out());
        let evaluation = temper_engine::Error::Evaluation { step: 3, source: Box::new(measuring) };
        let expected = "failed to evaluate after step 3: the device failed: out of device memory allocating 8 bytes; \
                        fewer rows at once need less memory";
        assert_eq!((Kind::of_training(&evaluation), evaluation.to_string().as_str()), (Kind::Memory, expected));
        let lost = temper_tasks::Error::Device(Failed::new("CUDA_ERROR_ILLEGAL_ADDRESS"));
        let lost = Failure::from(lost);
        assert_eq!(
            (lost.kind, lost.to_string().as_str()),
            (Kind::Other, "error: the device failed: CUDA_ERROR_ILLEGAL_ADDRESS")
        );
    }
}
