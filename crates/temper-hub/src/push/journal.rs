//! What a push has done so far, on disk, so that a killed one is finished and not begun again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Commit, Error, Result, cache::write_whole};

/// Where a push stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// Files are being sent; no commit was.
    Uploading,
    /// A commit on top of `parent` was sent, or is about to be: whether it landed is to be looked up.
    Committing,
    /// It landed.
    Done,
}

/// The state of one push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) endpoint: String,
    pub(crate) repo: String,
    pub(crate) branch: String,
    pub(crate) run: String,
    pub(crate) step: u64,
    /// Hash over names and contents.
    pub(crate) digest: String,
    pub(crate) stage: Stage,
    pub(crate) parent: Option<Commit>,
    pub(crate) commit: Option<Commit>,
}

/// The file that keeps a [`State`], or none.
#[derive(Debug)]
pub(crate) struct Journal {
    path: Option<PathBuf>,
}

impl Journal {
    /// The journal below a run's directory: `.push/state.json`.
    pub(crate) fn below(dir: Option<&Path>) -> Self {
        Self { path: dir.map(|dir| dir.join(".push").join("state.json")) }
    }

    /// The state of an earlier try of the same push; of another push, or unreadable, it says nothing.
    pub(crate) fn read(&self, fresh: &State) -> Option<State> {
        let text = fs::read(self.path.as_ref()?).ok()?;
        let state: State = serde_json::from_slice(&text).ok()?;
        let same = |state: &State| State { stage: fresh.stage, parent: None, commit: None, ..state.clone() } == *fresh;
        Some(state).filter(same)
    }

    /// Writes the state and flushes it to the disk.
    pub(crate) fn write(&self, state: &State) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let text = serde_json::to_vec_pretty(state).map_err(|error| Error::io("write", path)(error.into()))?;
        write_whole(path, &text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_push_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::below(Some(dir.path()));
        let fresh = State {
            endpoint: "https://hub".into(),
            repo: "me/x".into(),
            branch: "main".into(),
            run: "r".into(),
            step: 5,
            digest: "d".into(),
            stage: Stage::Uploading,
            parent: None,
            commit: None,
        };
        assert_eq!(journal.read(&fresh), None);
        let parent = Commit::new(&"a".repeat(40));
        let later = State { stage: Stage::Committing, parent, ..fresh.clone() };
        journal.write(&later).unwrap();
        assert_eq!(journal.read(&fresh), Some(later));
        assert_eq!(journal.read(&State { step: 6, ..fresh.clone() }), None);
        fs::write(dir.path().join(".push/state.json"), "{").unwrap();
        assert_eq!(journal.read(&fresh), None);
    }
}
