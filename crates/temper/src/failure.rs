//! Why a command ended: every error of the floors below, with the exit code that the README documents.

use std::fmt;
use std::process::ExitCode;

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
