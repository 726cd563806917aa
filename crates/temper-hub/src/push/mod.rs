//! Pushes files as one commit: nothing is visible before it, nothing is sent twice, nothing is committed twice.
//!
//! The order is: read every file once (hashes, secrets); make sure of the repository and the branch; ask which files the
//! hub lacks; send the large ones; commit on top of the head that was seen. The commit carries `run-id`, `step` and
//! `content` trailers. When it is not known whether a commit landed (a time-out, an error of the server, a broken
//! connection), the history is read before anything is sent again.

mod account;
mod commit;
mod content;
mod journal;
mod lfs;
mod pusher;
mod xet;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

pub use account::{Account, Ready};
pub use content::has_token;
pub use pusher::{Outcome, Pusher};

use crate::pull::globs;
use crate::{Commit, Error, Hub, OnProgress, Pinned, Progress, RepoId, Result};
use commit::{Change, Settled};
use content::Content;
use journal::{Journal, Stage, State};

/// How often a push is based anew on a head that others have moved.
const REBASES: u32 = 4;

/// Where a push goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The repository, made if it is ours and not there.
    pub repo: RepoId,
    /// The branch, made from `main` if it is not there. Of a pull request: the branch that it asks to change.
    pub branch: String,
    /// Whether a repository that is made is private. Pushing to one that is public needs `false`.
    pub private: bool,
    /// Open a pull request in place of committing: for repositories of others.
    pub pull_request: bool,
}

/// One push: files that become one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Where to.
    pub target: Target,
    /// The commit's first line.
    pub message: String,
    /// The run's id: with the step, it tells this commit from others.
    pub run: String,
    /// The run's step.
    pub step: u64,
    /// The files, all of them named: no directory is walked.
    pub files: Vec<PushFile>,
    /// Directories (`last-checkpoint/`) whose other files are deleted by the same commit, and files that are; names as globs.
    pub replace: Vec<String>,
    /// Tags to put on the commit.
    pub tags: Vec<String>,
    /// The run's directory, for the journal `.push/state.json`.
    pub journal: Option<PathBuf>,
}

/// A file to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushFile {
    /// Its name in the repository, `/` between components.
    pub path: String,
    /// Where it lies here. It must not change while it is pushed; if it does, the push fails.
    pub local: PathBuf,
}

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The commit that has the files. Of a pull request: the head of its branch.
    pub commit: Commit,
    /// The repository's page, at the branch.
    pub url: String,
    /// The pull request's page.
    pub pull_request: Option<String>,
    /// Bytes of files that were sent; files that the hub had do not count.
    pub sent: u64,
    /// Files that the branch had already.
    pub unchanged: usize,
    /// Files that the repository's own `.gitignore` keeps out.
    pub ignored: Vec<String>,
    /// Files of [`Push::replace`] that the commit deletes.
    pub deleted: Vec<String>,
    /// Whether there was nothing to commit, or the commit had landed in an earlier try.
    pub was_there: bool,
}

/// Counts and reports what a push has done.
pub(crate) struct Sending<'a> {
    total: u64,
    bytes: AtomicU64,
    on_progress: OnProgress<'a>,
}

impl Sending<'_> {
    fn advance(&self, more: u64) {
        let bytes = self.bytes.fetch_add(more, Ordering::Relaxed) + more;
        (self.on_progress)(Progress { bytes: bytes.min(self.total), total: self.total, files: 0, of_files: 0 });
    }
}

/// What the hub lacks.
struct Missing<'a> {
    large: Vec<&'a Content>,
    small: Vec<&'a Content>,
    ignored: Vec<String>,
    unchanged: usize,
    /// Bytes that need not be sent.
    there: u64,
}

impl Hub {
    /// Pushes files as one commit. Called again after a failure, it sends only what is missing, and if the commit has
    /// landed meanwhile it finds it.
    ///
    /// # Errors
    /// What stands against the push; after [`Error::Contended`] and [`Error::Unsettled`] too, calling again is safe.
    pub fn push(&self, push: &Push, on_progress: OnProgress) -> Result<Pushed> {
        push.check()?;
        let contents = content::read_all(&push.files, &push.target.repo)?;
        self.prepare(&push.target)?;
        let journal = Journal::below(push.journal.as_deref());
        let mut state = push.state(self, &contents);
        if let Some(earlier) = journal.read(&state) {
            let landed = match earlier.stage {
                // What is done is found by its content; only a pull request would be opened again.
                Stage::Done if !push.target.pull_request => None,
                Stage::Uploading => None,
                Stage::Committing | Stage::Done => self.landed(push, &earlier)?,
            };
            if let Some(settled) = landed {
                return self.done(push, &journal, earlier, settled, Pushed::there(contents.len()));
            }
        }
        if !push.target.pull_request {
            self.make_branch(push)?;
        }
        let total = contents.iter().map(|content| content.size).sum();
        let sending = Sending { total, bytes: AtomicU64::new(0), on_progress };
        let mut sent = 0;
        for _ in 0..REBASES {
            let head = self.head(&push.target.repo, &push.target.branch)?;
            state = State { stage: Stage::Uploading, parent: head.clone(), ..state };
            journal.write(&state)?;
            let missing = self.missing(push, &contents, head.as_ref())?;
            sending.advance(missing.there);
            sent += self.send_large(&push.target, &missing.large, &sending)?;
            let stale = self.stale(push, head.as_ref())?;
            let mut pushed = Pushed { sent, unchanged: missing.unchanged, ..Pushed::there(0) };
            pushed.ignored.clone_from(&missing.ignored);
            if missing.large.is_empty() && missing.small.is_empty() && stale.is_empty() {
                let commit = head.ok_or_else(|| push.wrong("there is no file to push and no branch"))?;
                return self.done(push, &journal, state, Settled { commit, pull_request: None }, pushed);
            }
            let change = Change { push, large: &missing.large, small: &missing.small, stale: &stale };
            state.stage = Stage::Committing;
            journal.write(&state)?;
            if let Some(settled) = self.commit(&change, &state)? {
                let small = missing.small.iter().map(|content| content.size).sum();
                sending.advance(small);
                pushed.sent += small;
                pushed.was_there = false;
                pushed.deleted = stale;
                return self.done(push, &journal, state, settled, pushed);
            }
        }
        let (repo, branch) = (push.target.repo.clone(), push.target.branch.clone());
        Err(Error::Contended { repo, branch, tries: REBASES })
    }

    fn done(&self, push: &Push, journal: &Journal, state: State, settled: Settled, pushed: Pushed) -> Result<Pushed> {
        let commit = settled.commit;
        journal.write(&State { stage: Stage::Done, commit: Some(commit.clone()), ..state })?;
        if !push.target.pull_request {
            push.tags.iter().try_for_each(|tag| self.tag(&push.target.repo, tag, &commit))?;
        }
        let branch = crate::http::encode(&push.target.branch);
        let url = format!("{}/{}/tree/{branch}", self.http.endpoint(), push.target.repo.page());
        Ok(Pushed { commit, url, pull_request: settled.pull_request, ..pushed })
    }

    /// Sorts the files into large ones, small ones and those that are there or kept out.
    fn missing<'a>(&self, push: &Push, contents: &'a [Content], head: Option<&Commit>) -> Result<Missing<'a>> {
        let asked: Vec<_> = contents.iter().map(|file| (file.path.as_str(), file.size, file.sample.as_str())).collect();
        let modes = self.ask_modes(&push.target, &push.target.branch, &asked)?;
        let listed = match head {
            Some(head) => Some(self.list(&push.at(head))?),
            None => None,
        };
        let mut missing = Missing { large: Vec::new(), small: Vec::new(), ignored: Vec::new(), unchanged: 0, there: 0 };
        for (content, mode) in contents.iter().zip(modes) {
            // What the commit lists counts; the answer's `oid` says the same where there is no list.
            let there = listed.as_ref().and_then(|listed| listed.file(&content.path));
            let kept = there.map(|file| file.checksum().hex().to_string()).or(mode.oid);
            let large = mode.mode == "lfs";
            let same = kept.as_deref() == Some(if large { &content.sha256 } else { &content.git });
            missing.there += if mode.ignore || same { content.size } else { 0 };
            if mode.ignore {
                missing.ignored.push(content.path.clone());
            } else if same {
                missing.unchanged += 1;
            } else if large {
                missing.large.push(content);
            } else {
                missing.small.push(content);
            }
        }
        Ok(missing)
    }

    /// What a push would delete at the branch that it goes to.
    ///
    /// # Errors
    /// When the repository cannot be asked.
    pub fn deletes(&self, push: &Push) -> Result<Vec<String>> {
        self.online(format!("ask what {} has", push.target.repo))?;
        self.stale(push, self.head(&push.target.repo, &push.target.branch)?.as_ref())
    }

    /// Replaced files and files below replaced directories that the push does not have.
    fn stale(&self, push: &Push, head: Option<&Commit>) -> Result<Vec<String>> {
        let (Some(head), false) = (head, push.replace.is_empty()) else { return Ok(Vec::new()) };
        let listed = self.list(&push.at(head))?;
        let replaced = globs(&push.replace.iter().map(String::as_str).collect::<Vec<_>>())?;
        let new = |path: &str| push.files.iter().any(|file| file.path == path);
        let paths = listed.files.into_iter().map(|file| file.path);
        Ok(paths.filter(|path| replaced.is_match(path) && !new(path)).collect())
    }
}

impl Push {
    fn wrong(&self, reason: &str) -> Error {
        Error::Push { repo: self.target.repo.clone(), reason: reason.into() }
    }

    fn check(&self) -> Result<()> {
        let line = |text: &str| !text.is_empty() && !text.contains(['\n', '\r']);
        if !line(&self.message) || !line(&self.run) {
            return Err(self.wrong("the commit message and the run's id are one line each"));
        }
        if self.replace.iter().any(|dir| crate::names::hostile_path(dir.trim_end_matches('/')).is_some()) {
            return Err(self.wrong("what is to be replaced is not of the repository"));
        }
        self.tags.iter().try_for_each(|tag| crate::names::check_revision("tag", tag))
    }

    fn state(&self, hub: &Hub, contents: &[Content]) -> State {
        State {
            endpoint: hub.http.endpoint().into(),
            repo: self.target.repo.to_string(),
            branch: self.target.branch.clone(),
            run: self.run.clone(),
            step: self.step,
            digest: content::digest(contents),
            stage: Stage::Uploading,
            parent: None,
            commit: None,
        }
    }

    fn at(&self, head: &Commit) -> Pinned {
        Pinned { repo: self.target.repo.clone(), revision: self.target.branch.clone(), commit: head.clone() }
    }
}

impl Pushed {
    /// A push that had nothing left to do; commit and URL come when they are known.
    fn there(unchanged: usize) -> Self {
        Self {
            commit: Commit::zero(),
            url: String::new(),
            pull_request: None,
            sent: 0,
            unchanged,
            ignored: Vec::new(),
            deleted: Vec::new(),
            was_there: true,
        }
    }
}
