//! What goes wrong: on the test's side [`Error`], on the wire [`Refusal`].

use std::path::PathBuf;

use axum::http::StatusCode;
use serde_json::json;

use crate::http::Reply;

/// Why the hub could not do what a test asked of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or socket of the hub failed.
    #[error("failed to use {what}: {source}")]
    Io {
        /// The file, directory or socket.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// `git` said no.
    #[error("failed to run git {command} in {}: {stderr}", .repository.display())]
    Git {
        /// The subcommand.
        command: String,
        /// The bare repository.
        repository: PathBuf,
        /// What git printed.
        stderr: String,
    },
    /// The repository, user or revision that a test named does not exist.
    #[error("failed to find {0}")]
    Missing(String),
    /// The storage server of the Xet authors failed.
    #[error("failed to run the Xet storage server: {0}")]
    Xet(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// An answer that is not the one that was asked for: an error, or the way to a repository that moved.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
    headers: Vec<(&'static str, String)>,
}

impl Refusal {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, message: message.into(), headers: Vec::new() }
    }

    /// With the machine-readable name that clients look at first.
    pub(crate) fn code(self, code: &'static str) -> Self {
        self.header("x-error-code", code)
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, message)
    }

    /// A missing repository looks like a private one: to a stranger, a matter of who asks.
    pub(crate) fn no_repo(anonymous: bool) -> Self {
        let (status, message) = match anonymous {
            true => (401, "Invalid username or password."),
            false => (404, "Repository not found"),
        };
        Self::new(status, message).code("RepoNotFound")
    }

    pub(crate) fn no_revision(revision: &str) -> Self {
        Self::new(404, format!("Invalid rev id: {revision}")).code("RevisionNotFound")
    }

    pub(crate) fn no_entry(path: &str, revision: &str) -> Self {
        Self::new(404, format!("{path} does not exist on \"{revision}\"")).code("EntryNotFound")
    }

    pub(crate) fn bad_credentials() -> Self {
        Self::new(401, "Invalid credentials in Authorization header")
    }

    pub(crate) fn no_route() -> Self {
        Self::new(404, "Sorry, we can't find the page you are looking for.")
    }

    pub(crate) fn into_reply(self) -> Reply {
        let reply = Reply::json(&json!({ "error": self.message })).with_status(self.status.as_u16());
        let reply = reply.with("x-error-message", &self.message);
        self.headers.into_iter().fold(reply, |reply, (name, value)| reply.with(name, &value))
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new(500, error.to_string())
    }
}

/// What an endpoint answers.
pub(crate) type Answer = Result<Reply, Refusal>;
