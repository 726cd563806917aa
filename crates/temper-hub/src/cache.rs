//! The cache on disk: the layout of Python's `huggingface_hub`, so that each reads what the other wrote.
//!
//! ```text
//! <cache>/models--org--name/
//!   blobs/<etag>                       content, named by its hash (or a link into the shared store, below)
//!   blobs/<etag>.incomplete            content so far
//!   snapshots/<commit>/<path>          relative symbolic link to the blob
//!   refs/<revision>                    the commit that a branch or tag was
//!   trees/<commit>.json                names, sizes and hashes of all files
//!   .no_exist/<commit>/<path>          asked for and not there
//!   .temper/<etag>                     ours: the blob was verified when it had this size and time
//! <cache>/.locks/models--org--name/<etag>.lock
//! <cache>/blobs/<xx>/<xethash>         Python's store of Xet files, shared between repositories
//! ```
//!
//! No file is ever opened for writing under the name that readers use: it is filled beside its place and renamed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    Commit, Error, RepoId, Result, TreeFile,
    names::{hostile_path, wrong_with_revision},
};

/// A cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// One repository's part of it.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
    dir: PathBuf,
    locks: PathBuf,
}

/// Holds a lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Option<File>,
}

impl Cache {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The part of a repository; nothing is created.
    pub(crate) fn folder(&self, repo: &RepoId) -> Folder {
        let name = repo.folder();
        Folder { root: self.root.clone(), dir: self.root.join(&name), locks: self.root.join(".locks").join(name) }
    }
}

impl Folder {
    /// The cache directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(crate) fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.dir.join("snapshots").join(commit.as_str())
    }

    /// Makes the directories that a pull writes to, and marks the cache as one that backups may leave out
    /// (<https://bford.info/cachedir/>).
    pub(crate) fn create(&self) -> Result<()> {
        for dir in [self.dir.join("blobs"), self.dir.join("snapshots"), self.locks.clone()] {
            if_writable(fs::create_dir_all(&dir).map_err(Error::io("create", &dir)))?;
        }
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            let text = "Signature: 8a477f597d28d172789f06886806bc55\n# Files that can be fetched again from a hub.\n";
            if_writable(write_whole(&tag, text.as_bytes()))?;
        }
        Ok(())
    }

    /// Bytes free where the cache lies, or where it would be created.
    pub(crate) fn free(&self) -> Option<u64> {
        self.root.ancestors().find(|dir| dir.is_dir()).and_then(|dir| fs4::available_space(dir).ok())
    }

    /// The commit that a revision was when it was last asked for.
    pub(crate) fn read_ref(&self, revision: &str) -> Option<Commit> {
        wrong_with_revision(revision).is_none().then_some(())?;
        Commit::new(fs::read_to_string(self.dir.join("refs").join(revision)).ok()?.trim())
    }

    pub(crate) fn write_ref(&self, revision: &str, commit: &Commit) -> Result<()> {
        if revision == commit.as_str() || wrong_with_revision(revision).is_some() {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        if self.read_ref(revision).as_ref() == Some(commit) {
            Ok(())
        } else {
            if_writable(write_whole(&path, commit.as_str().as_bytes()))
        }
    }

    pub(crate) fn read_tree(&self, commit: &Commit) -> Option<String> {
        fs::read_to_string(self.dir.join("trees").join(format!("{commit}.json"))).ok()
    }

    pub(crate) fn write_tree(&self, commit: &Commit, text: &str) -> Result<()> {
        if_writable(write_whole(&self.dir.join("trees").join(format!("{commit}.json")), text.as_bytes()))
    }

    /// Remembers that a commit has no such file, which spares Python's readers the question.
    pub(crate) fn note_absent(&self, commit: &Commit, path: &str) -> Result<()> {
        let path = self.dir.join(".no_exist").join(commit.as_str()).join(path);
        if path.exists() { Ok(()) } else { if_writable(write_whole(&path, b"")) }
    }

    /// Waits until no other process (Python's among them) fetches the same blob. On a file system without locks, or one that
    /// is not to be written to, there is none: then two may fetch it, and what they make is verified all the same.
    pub(crate) fn lock(&self, etag: &str) -> Result<Lock> {
        let path = self.locks.join(format!("{etag}.lock"));
        loop {
            let file = match File::options().create(true).truncate(false).write(true).open(&path) {
                // A directory that is missing could not be made.
                Err(error) if is_unwritable(&error) || !self.locks.is_dir() => return Ok(Lock { _file: None }),
                opened => opened.map_err(Error::io("create", &path))?,
            };
            if file.try_lock().is_err() {
                tracing::warn!(etag, "another process may be fetching this file: waiting for it");
            }
            if file.lock().is_err() {
                return Ok(Lock { _file: None });
            }
            // Python deletes the file when it lets go: then ours is no longer the one that others lock.
            if same_file(&file, &path) {
                return Ok(Lock { _file: Some(file) });
            }
        }
    }

    /// Whether the blob has this size and was verified when it was last changed.
    pub(crate) fn is_verified(&self, etag: &str, size: u64) -> bool {
        let mark =
            stamp(&self.blob(etag)).filter(|_| fs::metadata(self.blob(etag)).is_ok_and(|data| data.len() == size));
        mark.is_some_and(|mark| fs::read_to_string(self.mark(etag)).is_ok_and(|kept| kept == mark))
    }

    /// Remembers that the blob's content was hashed and found right.
    pub(crate) fn note_verified(&self, etag: &str) -> Result<()> {
        match stamp(&self.blob(etag)) {
            Some(mark) => if_writable(write_whole(&self.mark(etag), mark.as_bytes())),
            None => Ok(()),
        }
    }

    fn mark(&self, etag: &str) -> PathBuf {
        self.dir.join(".temper").join(etag)
    }

    /// Takes a blob away; a link goes, what it points at stays.
    pub(crate) fn remove(&self, etag: &str) -> Result<()> {
        for path in [self.blob(etag), self.mark(etag)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The file of Python's shared Xet store, if there is one of the right size.
    pub(crate) fn shared(&self, file: &TreeFile) -> Option<PathBuf> {
        let hash = file.xet.as_deref()?;
        let store = self.root.join("blobs");
        let marker = fs::read_to_string(store.join(".huggingface-shared-blobs")).ok()?;
        let path = store.join(hash.get(..2)?).join(hash);
        let data = fs::symlink_metadata(&path).ok()?;
        (marker == "1\n" && data.is_file() && data.len() == file.size).then_some(path)
    }

    /// Makes a verified file readable as `path` of a commit, and returns where.
    pub(crate) fn link(&self, commit: &Commit, path: &str, etag: &str) -> Result<PathBuf> {
        debug_assert!(hostile_path(path).is_none(), "names are checked when they are listed");
        let pointer = self.snapshot(commit).join(path);
        let up = "../".repeat(path.matches('/').count() + 2);
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&pointer).is_ok_and(|to| to == target) {
            return Ok(pointer);
        }
        let parent = pointer.parent().unwrap_or(&self.dir);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        self.check_inside(parent)?;
        let beside = temper_files::beside(&pointer, "link");
        place(&target, &self.blob(etag), &beside).map_err(Error::io("link", &pointer))?;
        fs::rename(&beside, &pointer).map_err(Error::io("link", &pointer))?;
        Ok(pointer)
    }

    /// A directory that a link within the cache leads elsewhere is not written to.
    fn check_inside(&self, dir: &Path) -> Result<()> {
        let real = |path: &Path| path.canonicalize().map_err(Error::io("resolve", path));
        if real(dir)?.starts_with(real(&self.dir)?) {
            return Ok(());
        }
        let outside =
            io::Error::other("a symbolic link in the cache leads out of the repository's directory; remove it");
        Err(Error::io("write to", dir)(outside))
    }
}

#[cfg(unix)]
fn place(target: &Path, _blob: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Without the right to make symbolic links, as on Windows, the snapshot holds a copy, as Python's does.
#[cfg(not(unix))]
fn place(_target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(drop))
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let ids = |data: &fs::Metadata| (data.dev(), data.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if ids(&a) == ids(&b))
}

#[cfg(not(unix))]
fn same_file(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// What is only noted in the cache is left out where nothing can be written, as in one that several users share.
fn if_writable(noted: Result<()>) -> Result<()> {
    match noted {
        Err(Error::Io { source, .. }) if is_unwritable(&source) => Ok(()),
        noted => noted,
    }
}

fn is_unwritable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

/// Size and time of change of a file, in words.
fn stamp(path: &Path) -> Option<String> {
    let data = fs::metadata(path).ok()?;
    let changed = data.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(format!("{} bytes, {} ns\n", data.len(), changed.as_nanos()))
}

/// Writes a file whole or not at all; makes the directories above it.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    temper_files::write(path, |file| fs::write(file, content)).map_err(Error::io("write", path))
}
