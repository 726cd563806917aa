//! A hub, as the rest of temper sees it.

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use crate::{
    Commit, Error, Listing, Pinned, Reference, RepoId, RepoKind, Result, Settings,
    answer::About,
    cache::{Cache, Folder},
    hf::Hf,
    http::Http,
    tree,
};

/// A connection to one hub and its cache here. Cloning is cheap; all calls block.
#[derive(Clone)]
pub struct Hub {
    settings: Arc<Settings>,
    pub(crate) http: Http,
    hf: Arc<OnceLock<Hf>>,
}

impl Hub {
    /// A hub by its settings. Nothing is sent yet.
    ///
    /// # Errors
    /// When a token would travel over plain http to another machine.
    pub fn new(settings: Settings) -> Result<Self> {
        let http = Http::new(&settings)?;
        Ok(Self { settings: Arc::new(settings), http, hf: Arc::default() })
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The same hub, whose transfers end with [`Error::Abandoned`] once `flag` is set.
    pub fn abandonable(&self, flag: Arc<AtomicBool>) -> Self {
        Self { http: self.http.abandonable(flag), ..self.clone() }
    }

    pub(crate) fn offline(&self) -> bool {
        self.settings.offline.value
    }

    /// # Errors
    /// [`Error::Offline`] when nothing may be sent.
    pub(crate) fn online(&self, doing: impl Into<String>) -> Result<()> {
        if self.offline() { Err(Error::Offline { doing: doing.into() }) } else { Ok(()) }
    }

    pub(crate) fn hf(&self) -> Result<&Hf> {
        if let Some(hf) = self.hf.get() {
            return Ok(hf);
        }
        let hf = Hf::new(&self.settings)?;
        Ok(self.hf.get_or_init(|| hf))
    }

    pub(crate) fn folder(&self, repo: &RepoId) -> Folder {
        Cache::new(&self.settings.cache.value).folder(repo)
    }

    /// Resolves a revision, once, to the commit that everything else is read at; a commit hash is checked too. Offline,
    /// it is the commit that the revision was when it was last resolved on this machine.
    ///
    /// # Errors
    /// When the repository or the revision is missing or not readable; offline, when it was never resolved here.
    pub fn pin(&self, reference: &Reference) -> Result<Pinned> {
        let (repo, revision) = (&reference.repo, &reference.revision);
        let pinned = |commit| Pinned { repo: repo.clone(), revision: revision.clone(), commit };
        if self.offline() {
            let known = Commit::new(revision).or_else(|| self.folder(repo).read_ref(revision));
            let what = format!("{repo} at {revision}");
            let missing = || Error::OfflineIncomplete { what, missing: vec![format!("the commit that {revision} is")] };
            return known.map(pinned).ok_or_else(missing);
        }
        // A commit whose files are known needs nobody's word.
        if let Some(commit) = Commit::new(revision).filter(|commit| self.folder(repo).read_tree(commit).is_some()) {
            return Ok(pinned(commit));
        }
        let info = self.hf()?.info(&self.http, repo, revision)?;
        let about = About::doing(format!("resolve {reference}"));
        if info.sha.is_empty() {
            return Err(self.http.bad_answer(&about, "it does not say which commit that is"));
        }
        let reason = "it is not 40 hexadecimal digits";
        let commit = Commit::new(&info.sha).ok_or_else(|| tree::hostile("commit", &info.sha, &self.http, reason))?;
        if reference.is_pinned() && commit.as_str() != revision {
            return Err(tree::hostile("commit", &info.sha, &self.http, "it is not the commit that was asked for"));
        }
        Ok(pinned(commit))
    }

    /// The files at a commit. A commit does not change: the list is asked for once and kept in the cache.
    ///
    /// # Errors
    /// When the hub cannot be read or names what no repository has; offline, when the list is not in the cache.
    pub fn list(&self, pinned: &Pinned) -> Result<Listing> {
        let folder = self.folder(&pinned.repo);
        let kept = folder.read_tree(&pinned.commit).and_then(|text| tree::from_json(&text, pinned));
        match kept {
            Some(listing) => Ok(listing),
            // Python keeps no list. Of a model it has what it read; a data set of which files are missing would be another one.
            None if self.offline()
                && pinned.repo.kind() == RepoKind::Model
                && folder.snapshot(&pinned.commit).is_dir() =>
            {
                Ok(tree::of_snapshot(&folder.snapshot(&pinned.commit), pinned))
            }
            None if self.offline() => {
                let what = format!("{} at {}", pinned.repo, pinned.commit);
                Err(Error::OfflineIncomplete { what, missing: vec!["the list of its files".into()] })
            }
            None => {
                let listing = tree::list(&self.http, pinned)?;
                folder.create()?;
                folder.write_tree(&pinned.commit, &tree::to_json(&listing))?;
                Ok(listing)
            }
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}
