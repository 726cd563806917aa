//! What can go wrong when files travel.
//!
//! Each message completes "failed to …" and ends with what to do. None of them carries a token, a header or the query
//! of a URL; what a server said is cut to one printable line.

use std::{io, path::PathBuf, time::Duration};

use crate::RepoId;

/// The result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of this crate; the messages complete "failed to …".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that the card describes cannot be read.
    #[error("read {path} for its sha256: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file or directory of this machine could not be used.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, say `write`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// No room for a file.
    #[error(
        "store {} {path}: {}; free some space, or point HF_HUB_CACHE at a larger disk",
        bytes(*.needed), room(*.free), path = path.display()
    )]
    DiskFull {
        /// The directory.
        path: PathBuf,
        /// Bytes still to be written, when that is known.
        needed: Option<u64>,
        /// Bytes free, when that is known.
        free: Option<u64>,
    },
    /// A setting that cannot be used.
    #[error("use {name} = {value:?}: {reason}")]
    Setting {
        /// The variable or the setting's name.
        name: &'static str,
        /// Its value; never a token's.
        value: String,
        /// What is wrong and what to write.
        reason: String,
    },
    /// A reference that is not one.
    #[error("read {text:?} as a hub reference: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong and what to write.
        reason: String,
    },
    /// The repository asks for its terms to be accepted.
    #[error(
        "read {repo}: its owners ask for their terms to be accepted; do that on its page ({endpoint}/{}), {}",
        repo.page(), if *.logged_in { "wait for approval if they grant it by hand, and check that the token may read \
        gated repositories" } else { "then run `temper hub login` or set HF_TOKEN" }
    )]
    Gated {
        /// The repository.
        repo: RepoId,
        /// Where it lives.
        endpoint: String,
        /// Whether a token was sent.
        logged_in: bool,
    },
    /// The repository is not there, or not for this user.
    #[error(
        "find {repo} on {endpoint}: there is none by that name that {}; check the spelling{}",
        if *.logged_in { "this token may see" } else { "is public" },
        if *.logged_in { " and whether the token's account has access" } else { ", and if it is private run `temper \
        hub login` or set HF_TOKEN" }
    )]
    RepoMissing {
        /// The repository.
        repo: RepoId,
        /// Where it was looked for.
        endpoint: String,
        /// Whether a token was sent.
        logged_in: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("find revision {revision:?} of {repo}: it has no such branch, tag or commit; leave it out for `main`")]
    RevisionMissing {
        /// The repository.
        repo: RepoId,
        /// The revision.
        revision: String,
    },
    /// The repository has no such file.
    #[error("find {path} in {repo} at {revision}: {hint}")]
    FileMissing {
        /// The repository.
        repo: RepoId,
        /// The commit or revision.
        revision: String,
        /// The file or the pattern.
        path: String,
        /// What is there instead, or what to do.
        hint: String,
    },
    /// The token is not accepted.
    #[error(
        "log in to {endpoint}: the token ({from}) is invalid or has expired; make a new one on the hub's page of access \
         tokens and run `temper hub login` or set HF_TOKEN"
    )]
    BadToken {
        /// Where it was sent.
        endpoint: String,
        /// Where the token came from.
        from: String,
    },
    /// A token is needed and there is none.
    #[error("{doing} without a token: {advice}")]
    NoToken {
        /// What needs it.
        doing: String,
        /// What to do.
        advice: &'static str,
    },
    /// The token may not do this.
    #[error("{doing}: the hub refuses ({message}); {advice}")]
    Forbidden {
        /// What was being done.
        doing: String,
        /// What the server said.
        message: String,
        /// What to do.
        advice: String,
    },
    /// Too many requests.
    #[error(
        "{doing}: the hub allows no more requests for now ({}); try again later, or log in for a larger allowance",
        wait(*.retry_after)
    )]
    RateLimited {
        /// What was being done.
        doing: String,
        /// How long the hub asks to wait, when it said.
        retry_after: Option<Duration>,
    },
    /// The server failed, and went on failing.
    #[error("{doing}: the hub answers with an error of its own ({status}: {message}); try again later")]
    Server {
        /// What was being done.
        doing: String,
        /// HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// The storage that the hub sent us to refused.
    #[error("{doing}: {host}, where the hub keeps the file, refuses ({status}: {message})")]
    Storage {
        /// What was being done.
        doing: String,
        /// The storage's host.
        host: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The server refused the request for a reason without a variant of its own.
    #[error("{doing}: the hub refuses ({status}: {message})")]
    Refused {
        /// What was being done.
        doing: String,
        /// HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// The server's answer does not follow the protocol.
    #[error("{doing}: {what}; is {endpoint} a Hugging Face hub?")]
    BadAnswer {
        /// What was being done.
        doing: String,
        /// What is wrong with the answer.
        what: String,
        /// The endpoint.
        endpoint: String,
    },
    /// The server cannot be reached.
    #[error(
        "{doing}: no connection to {host} ({reason}); check the network, or set HF_HUB_OFFLINE=1 to use only what is \
         already in the cache"
    )]
    NoNetwork {
        /// What was being done.
        doing: String,
        /// Host and port.
        host: String,
        /// What went wrong, in a few words.
        reason: String,
    },
    /// A token would travel in the clear.
    #[error(
        "send a token to {endpoint}: it would travel in the clear; use https://, or unset the token (plain http is only \
         for this machine's own addresses)"
    )]
    Plaintext {
        /// The endpoint.
        endpoint: String,
    },
    /// Offline, and not everything is in the cache.
    #[error("read {what} offline: the cache lacks {}; unset HF_HUB_OFFLINE once to fetch it", listed(.missing))]
    OfflineIncomplete {
        /// Repository and revision.
        what: String,
        /// What is missing.
        missing: Vec<String>,
    },
    /// Offline, and the hub itself is needed.
    #[error("{doing} offline: unset HF_HUB_OFFLINE")]
    Offline {
        /// What needs the hub.
        doing: String,
    },
    /// The bytes are not the ones that the commit names, twice.
    #[error(
        "verify {path} of {repo}: {found} instead of {expected}, twice; nothing of it was kept. The hub, a mirror or a \
         proxy on the way serves other bytes than the commit names"
    )]
    WrongHash {
        /// The repository.
        repo: RepoId,
        /// The file.
        path: String,
        /// Hash or size that the commit names.
        expected: String,
        /// Hash or size of what came.
        found: String,
    },
    /// The server named something that must not become a path here.
    #[error("accept {what} {name:?} from {endpoint}: {reason}; nothing was written")]
    Hostile {
        /// `file name`, `commit`, `ETag` or the like.
        what: &'static str,
        /// What the server sent, cut.
        name: String,
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More than the limits allow.
    #[error("pull {what}: {found} is more than the limit of {limit} {unit}; raise the limit if that is meant")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How much it is.
        found: u64,
        /// The limit.
        limit: u64,
        /// `bytes` or `files`.
        unit: &'static str,
    },
    /// Weights only as pickles.
    #[error(
        "load weights of {repo}: it has only {file}, a pickle, which can run code when it is opened; temper reads \
         safetensors. Hugging Face's converter (the Space safetensors/convert) opens a pull request with them: then use \
         the revision `refs/pr/N`"
    )]
    PickleOnly {
        /// The repository.
        repo: RepoId,
        /// One of the pickles.
        file: String,
    },
    /// No weights at all.
    #[error("load weights of {repo} at {revision}: it has no model.safetensors and no model.safetensors.index.json")]
    NoWeights {
        /// The repository.
        repo: RepoId,
        /// The commit.
        revision: String,
    },
    /// The repository wants its own code to be run.
    #[error("use {repo}: {file} asks for code of the repository to be run ({what}), which temper never does; {advice}")]
    RemoteCode {
        /// The repository.
        repo: RepoId,
        /// The file that asks.
        file: String,
        /// What it asks for.
        what: String,
        /// What to use instead.
        advice: String,
    },
    /// A dataset whose files cannot be told.
    #[error("choose data files of {repo}: {reason}")]
    DataFiles {
        /// The repository.
        repo: RepoId,
        /// What of the request is wrong: `config`, `split`, or empty.
        part: &'static str,
        /// What is wrong and what to write.
        reason: String,
    },
    /// Something that must not be pushed.
    #[error("push {path}: it holds {what} (at byte {at}); take it out, a pushed secret has to be revoked")]
    Secret {
        /// Path in the repository.
        path: String,
        /// What was found.
        what: &'static str,
        /// Where in the file, in bytes.
        at: u64,
    },
    /// A name that git or the hub does not allow.
    #[error("use {name:?} as a {what}: {reason}")]
    Name {
        /// `branch`, `tag` or `repository to push to`.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong and what to write.
        reason: String,
    },
    /// A push that cannot be meant.
    #[error("push to {repo}: {reason}")]
    Push {
        /// The repository.
        repo: RepoId,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Someone else pushed between our reading of the head and our commit, again and again.
    #[error(
        "commit to {branch} of {repo}: the branch moved {tries} times meanwhile; nothing was lost, run `temper push` \
         again, or push to a branch of your own"
    )]
    Contended {
        /// The repository.
        repo: RepoId,
        /// The branch.
        branch: String,
        /// How often the commit was offered.
        tries: u32,
    },
    /// A commit was sent and it is not known whether it landed.
    #[error(
        "learn whether the commit to {branch} of {repo} landed: {reason}; run `temper push` again, it looks before it \
         sends and doubles nothing"
    )]
    Unsettled {
        /// The repository.
        repo: RepoId,
        /// The branch.
        branch: String,
        /// What went wrong.
        reason: String,
    },
    /// The Xet storage failed.
    #[error("transfer {what} through Xet storage: {message}; HF_HUB_DISABLE_XET=1 goes around it")]
    Xet {
        /// What was being transferred.
        what: String,
        /// What the Xet client said.
        message: String,
    },
    /// The transfer was given up on request.
    #[error("finish the transfer: it was given up; what was sent is kept, run `temper push` to go on")]
    Abandoned,
    /// The licence needs the user's word.
    #[error("decide the licence: {reason}; {advice}")]
    Licence {
        /// What stands against inheriting it.
        reason: String,
        /// What to write in the recipe.
        advice: String,
    },
}

impl Error {
    /// An [`Error::Io`], or [`Error::DiskFull`] when that is what it was.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path, needed: None, free: None }
            }
            _ => Self::Io { doing, path, source },
        }
    }
}

fn bytes(needed: Option<u64>) -> String {
    needed.map_or_else(|| "a file at".into(), |needed| format!("{needed} bytes under"))
}

fn room(free: Option<u64>) -> String {
    free.map_or_else(|| "no space is left there".into(), |free| format!("only {free} bytes are free there"))
}

fn wait(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(|| "it did not say for how long".into(), |wait| format!("for {} s", wait.as_secs()))
}

/// Up to eight names, and how many more.
fn listed(names: &[String]) -> String {
    let shown = names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 8 { format!("{shown} and {} more", names.len() - 8) } else { shown }
}
