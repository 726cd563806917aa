//! Pulls files of a commit into the cache: chosen by name, counted before the first byte, several at a time.

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    thread,
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::{
    Error, Hub, Listing, Pinned, Result, TreeFile, Verify,
    cache::Folder,
    download::{Download, Found},
    names::{collision, wrong_with_path},
    tree::hostile,
};

/// Room that a pull leaves on the disk, in bytes.
const SPARE: u64 = 64 << 20;

/// How to pull.
#[derive(Debug, Clone, Copy)]
pub struct PullOptions {
    /// What is refused before the first byte.
    pub limits: Limits,
    /// When files that are there already are hashed again.
    pub verify: Verify,
    /// Files that are fetched at the same time, at least 1. Raised: small files come faster, the hub's patience goes.
    pub parallel: usize,
}

/// The most that one pull may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file: u64,
    /// Bytes of all files together.
    pub total: u64,
    /// Number of files.
    pub files: u64,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { limits: Limits::default(), verify: Verify::default(), parallel: 4 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { file: 100 << 30, total: 1 << 40, files: 10_000 }
    }
}

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes done, those that were there already included.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
    /// Files done; a push, which is one commit, does not count them.
    pub files: usize,
    /// Files in all; 0 of a push.
    pub of_files: usize,
}

/// Hears of progress, from several threads, about once for every 256 KiB.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

/// Files of a commit, verified, on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Repository and commit.
    pub pinned: Pinned,
    /// The directory in which the files have their names.
    pub dir: PathBuf,
    /// The files, in the order in which they were asked for.
    pub files: Vec<Pulled>,
    /// Bytes of the files that came over the network.
    pub fetched: u64,
    /// Bytes of the files that were in the cache.
    pub cached: u64,
}

/// A file of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its name in the repository.
    pub path: String,
    /// Where it lies.
    pub local: PathBuf,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of an LFS or Xet file, git's blob hash of another: what it was verified by.
    pub hash: String,
}

impl Listing {
    /// The files whose names match one of `allow` (all, when there is none) and none of `ignore`.
    ///
    /// Patterns are globs: `*` and `?` stay within a component, `**` does not, `{a,b}` is either; one that ends in `/`
    /// means all below it.
    ///
    /// # Errors
    /// When a pattern is no glob, or one of `allow` matches nothing.
    pub fn select(&self, allow: &[&str], ignore: &[&str]) -> Result<Vec<TreeFile>> {
        let ignored = globs(ignore)?;
        let chosen = |file: &&TreeFile| !ignored.is_match(&file.path);
        if allow.is_empty() {
            return Ok(self.files.iter().filter(chosen).cloned().collect());
        }
        for pattern in allow {
            let one = globs(&[pattern])?;
            if !self.files.iter().any(|file| file.path == *pattern || one.is_match(&file.path)) {
                return Err(self.nothing_matches(pattern));
            }
        }
        let globs = globs(allow)?;
        // A name may look like a glob of others.
        let allowed = |file: &&TreeFile| allow.contains(&file.path.as_str()) || globs.is_match(&file.path);
        Ok(self.files.iter().filter(chosen).filter(allowed).cloned().collect())
    }

    pub(crate) fn nothing_matches(&self, pattern: &str) -> Error {
        let names: Vec<_> = self.files.iter().take(6).map(|file| file.path.as_str()).collect();
        let more = if self.files.len() > names.len() { ", …" } else { "" };
        Error::FileMissing {
            repo: self.pinned.repo.clone(),
            revision: self.pinned.commit.to_string(),
            path: pattern.into(),
            hint: format!("it has {}{more}", if names.is_empty() { "no files".into() } else { names.join(", ") }),
        }
    }
}

pub(crate) fn globs(patterns: &[&str]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    let wrong = |error: globset::Error| Error::Reference {
        text: error.glob().unwrap_or_default().into(),
        reason: format!("it is no glob: {}", error.kind()),
    };
    for pattern in patterns {
        let all_below = if pattern.ends_with('/') { format!("{pattern}**") } else { (*pattern).into() };
        set.add(GlobBuilder::new(&all_below).literal_separator(true).build().map_err(wrong)?);
    }
    set.build().map_err(wrong)
}

impl Hub {
    /// Brings files of a commit into the cache, each verified against the hash and size that the commit names.
    ///
    /// What was fetched before an error stays, and a later call goes on from there. Offline, everything has to be there.
    ///
    /// # Errors
    /// Before the first byte: more than the limits, no room on the disk, names that not every system keeps apart. Then:
    /// what the hub refuses, a broken connection, wrong bytes twice.
    pub fn pull(
        &self,
        listing: &Listing,
        files: &[TreeFile],
        options: &PullOptions,
        on_progress: OnProgress,
    ) -> Result<Snapshot> {
        let pinned = &listing.pinned;
        let folder = self.folder(&pinned.repo);
        let total: u64 = files.iter().map(|file| file.size).sum();
        self.check_names(files)?;
        check_limits(pinned, files, total, options.limits)?;
        folder.create()?;
        if self.offline() {
            check_cached(&folder, pinned, files)?;
        } else {
            check_room(&folder, files)?;
        }
        let bytes = AtomicI64::new(0);
        let done = AtomicUsize::new(0);
        let report = || {
            let bytes = u64::try_from(bytes.load(Ordering::Relaxed)).unwrap_or(0);
            on_progress(Progress { bytes, total, files: done.load(Ordering::Relaxed), of_files: files.len() });
        };
        let advance = |more: i64| {
            bytes.fetch_add(more, Ordering::Relaxed);
            report();
        };
        let download =
            Download { http: &self.http, folder: &folder, pinned, verify: options.verify, advance: &advance };
        let one = |file: &TreeFile| {
            if self.offline() && !download.is_cached(file)? {
                let what = format!("{} at {}", pinned.repo, pinned.revision);
                return Err(Error::OfflineIncomplete { what, missing: vec![file.path.clone()] });
            }
            let found = download.file(file)?;
            done.fetch_add(1, Ordering::Relaxed);
            report();
            Ok(found)
        };
        let found = each(files, options.parallel, one)?;
        folder.write_ref(&pinned.revision, &pinned.commit)?;
        Ok(snapshot(&folder, pinned, files, found))
    }

    fn check_names(&self, files: &[TreeFile]) -> Result<()> {
        let bad = files.iter().find_map(|file| Some((&file.path, wrong_with_path(&file.path)?)));
        if let Some((name, reason)) = bad {
            return Err(hostile("file name", name, &self.http, reason));
        }
        match collision(files.iter().map(|file| file.path.as_str())) {
            Some((name, reason)) => Err(hostile("file name", name, &self.http, reason)),
            None => Ok(()),
        }
    }
}

fn snapshot(folder: &Folder, pinned: &Pinned, files: &[TreeFile], found: Vec<(PathBuf, Found)>) -> Snapshot {
    let of = |wanted: Found| {
        let pairs = files.iter().zip(&found).filter(move |(_, (_, found))| *found == wanted);
        pairs.map(|(file, _)| file.size).sum()
    };
    let (fetched, cached) = (of(Found::Fetched), of(Found::Cached));
    let pulled = |(file, (local, _)): (&TreeFile, (PathBuf, Found))| Pulled {
        path: file.path.clone(),
        local,
        size: file.size,
        hash: file.checksum().hex().into(),
    };
    let files = files.iter().zip(found).map(pulled).collect();
    Snapshot { pinned: pinned.clone(), dir: folder.snapshot(&pinned.commit), files, fetched, cached }
}

fn check_limits(pinned: &Pinned, files: &[TreeFile], total: u64, limits: Limits) -> Result<()> {
    let too_large = |what: String, found, limit, unit| Err(Error::TooLarge { what, found, limit, unit });
    if files.len() as u64 > limits.files {
        return too_large(pinned.repo.to_string(), files.len() as u64, limits.files, "files");
    }
    if let Some(file) = files.iter().find(|file| file.size > limits.file) {
        return too_large(format!("{} of {}", file.path, pinned.repo), file.size, limits.file, "bytes");
    }
    if total > limits.total { too_large(pinned.repo.to_string(), total, limits.total, "bytes") } else { Ok(()) }
}

/// Bytes that are still to come must fit on the disk.
fn check_room(folder: &Folder, files: &[TreeFile]) -> Result<()> {
    let mut seen = HashSet::new();
    let mut needed = 0;
    for file in files {
        let checksum = file.checksum();
        let there = fs::metadata(folder.blob(checksum.hex())).is_ok_and(|data| data.len() == file.size);
        if there || folder.shared(file).is_some() || !seen.insert(checksum.hex().to_string()) {
            continue;
        }
        let so_far = fs::metadata(folder.incomplete(checksum.hex())).map(|data| data.len()).unwrap_or(0);
        needed += file.size.saturating_sub(so_far);
    }
    match folder.free() {
        Some(free) if needed > 0 && free < needed.saturating_add(SPARE) => {
            // With the room that is to stay free.
            Err(Error::DiskFull { path: folder.root().into(), needed: Some(needed + SPARE), free: Some(free) })
        }
        _ => Ok(()),
    }
}

fn check_cached(folder: &Folder, pinned: &Pinned, files: &[TreeFile]) -> Result<()> {
    let there = |file: &TreeFile| {
        let blob = fs::metadata(folder.blob(file.checksum().hex()));
        blob.is_ok_and(|data| data.len() == file.size) || folder.shared(file).is_some()
    };
    let missing: Vec<_> = files.iter().filter(|file| !there(file)).map(|file| file.path.clone()).collect();
    let what = format!("{} at {}", pinned.repo, pinned.revision);
    if missing.is_empty() { Ok(()) } else { Err(Error::OfflineIncomplete { what, missing }) }
}

/// Does `one` for each of `items`, `parallel` at a time, in their order; the first error stops the taking of more.
pub(crate) fn each<T: Sync, U: Send>(
    items: &[T],
    parallel: usize,
    one: impl Fn(&T) -> Result<U> + Sync,
) -> Result<Vec<U>> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let results: Mutex<Vec<(usize, Result<U>)>> = Mutex::new(Vec::with_capacity(items.len()));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return };
            let result = one(item);
            stop.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..parallel.clamp(1, items.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Commit, RepoId};

    fn listing(paths: &[&str]) -> Listing {
        let file =
            |path: &&str| TreeFile { path: (*path).into(), size: 10, blob: "a".repeat(40), sha256: None, xet: None };
        let commit = Commit::new(&"c".repeat(40)).unwrap();
        let pinned = Pinned { repo: RepoId::model("org/name").unwrap(), revision: "main".into(), commit };
        Listing { pinned, files: paths.iter().map(file).collect() }
    }

    fn names(files: &[TreeFile]) -> Vec<&str> {
        files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn patterns() {
        let listing = listing(&["README.md", "data/a.parquet", "data/b.csv", "data/x/c.parquet"]);
        let select = |allow: &[&str], ignore: &[&str]| listing.select(allow, ignore).unwrap();
        assert_eq!(select(&[], &[]).len(), 4);
        assert_eq!(names(&select(&["data/*.parquet"], &[])), ["data/a.parquet"]);
        assert_eq!(names(&select(&["**/*.parquet"], &["data/x/"])), ["data/a.parquet"]);
        assert_eq!(select(&["data/"], &[]).len(), 3);
        assert_eq!(names(&select(&["data/{a,b}.*", "README.md"], &[])), ["README.md", "data/a.parquet", "data/b.csv"]);
        let message = listing.select(&["data/*.arrow"], &[]).unwrap_err().to_string();
        assert!(message.contains("data/*.arrow") && message.contains("README.md, data/a.parquet"), "{message}");
        assert!(listing.select(&["a[b"], &[]).is_err());
    }

    #[test]
    fn limits() {
        let listing = listing(&["a", "b", "c"]);
        let check =
            |file, total, files| check_limits(&listing.pinned, &listing.files, 30, Limits { file, total, files });
        assert!(check(10, 30, 3).is_ok());
        assert!(check(9, 30, 3).is_err() && check(10, 29, 3).is_err() && check(10, 30, 2).is_err());
    }

    #[test]
    fn each_keeps_the_order_and_stops_at_an_error() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(each(&items, 4, |item| Ok(item * 2)).unwrap()[7], 14);
        let done = AtomicUsize::new(0);
        let result = each(&items, 1, |item| {
            done.fetch_add(1, Ordering::Relaxed);
            if *item == 3 { Err(Error::Abandoned) } else { Ok(()) }
        });
        assert!(result.is_err() && done.into_inner() == 4);
    }
}
