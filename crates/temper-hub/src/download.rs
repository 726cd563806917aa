//! Fetches one file: resumes what is there, verifies what came, and shows it only then.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use reqwest::blocking::Response;

use crate::{
    Commit, Error, Pinned, Result, TreeFile,
    answer::About,
    cache::Folder,
    http::{Answer, Http, Request},
    names::{is_hex, printable},
    tree::hostile,
    verify::Checksum,
};

/// How much is read at a time, in bytes.
const CHUNK: usize = 1 << 18;

/// When a file that is already in the cache is hashed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// The first time that this client uses it, and whenever its size or time of change differ from then.
    #[default]
    FirstUse,
    /// Every time.
    Always,
}

/// Fetches files of one commit.
pub(crate) struct Download<'a> {
    pub(crate) http: &'a Http,
    pub(crate) folder: &'a Folder,
    pub(crate) pinned: &'a Pinned,
    pub(crate) verify: Verify,
    /// Hears how many more bytes are there; fewer when some had to be thrown away.
    pub(crate) advance: &'a (dyn Fn(i64) + Sync),
}

/// Where a file's bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Cached,
    Fetched,
}

impl Download<'_> {
    /// Fetches the file unless a right one is there, and links it into the snapshot.
    pub(crate) fn file(&self, file: &TreeFile) -> Result<(PathBuf, Found)> {
        let checksum = file.checksum();
        let lock = self.folder.lock(checksum.hex())?;
        let found = if self.is_cached(file)? || self.take_shared(file)? {
            (self.advance)(i64::try_from(file.size).unwrap_or(i64::MAX));
            Found::Cached
        } else {
            self.fetch(file)?;
            Found::Fetched
        };
        drop(lock);
        let path = self.folder.link(&self.pinned.commit, &file.path, checksum.hex())?;
        Ok((path, found))
    }

    /// Whether the cache has the right bytes; wrong ones are thrown away.
    pub(crate) fn is_cached(&self, file: &TreeFile) -> Result<bool> {
        let checksum = file.checksum();
        let etag = checksum.hex();
        let blob = self.folder.blob(etag);
        if self.verify == Verify::FirstUse && self.folder.is_verified(etag, file.size) {
            return Ok(true);
        }
        if fs::symlink_metadata(&blob).is_err() {
            return Ok(false);
        }
        if wrong(&blob, file).map_err(Error::io("read", &blob))?.is_none() {
            self.folder.note_verified(etag)?;
            return Ok(true);
        }
        tracing::warn!(file = file.path, "the cached copy is not what the commit names: it is thrown away");
        self.folder.remove(etag)?;
        Ok(false)
    }

    /// Takes the file from the store that Python shares between repositories: another name for the same bytes, so that
    /// neither client's cleaning takes it from the other.
    fn take_shared(&self, file: &TreeFile) -> Result<bool> {
        let checksum = file.checksum();
        let Some(shared) = self.folder.shared(file) else { return Ok(false) };
        if !matches!(wrong(&shared, file), Ok(None)) {
            return Ok(false);
        }
        let linked = fs::hard_link(&shared, self.folder.blob(checksum.hex())).is_ok();
        if linked {
            self.folder.note_verified(checksum.hex())?;
        }
        Ok(linked)
    }

    /// Fetches and verifies; wrong bytes are thrown away and fetched once more.
    fn fetch(&self, file: &TreeFile) -> Result<()> {
        let checksum = file.checksum();
        let incomplete = self.folder.incomplete(checksum.hex());
        let mut found = String::new();
        for _ in 0..2 {
            let came = self.transfer(file, &incomplete)?;
            match wrong(&incomplete, file).map_err(Error::io("read", &incomplete))? {
                None => return self.keep(&checksum, &incomplete),
                Some(wrong) => found = wrong,
            }
            (self.advance)(-i64::try_from(came).unwrap_or(i64::MAX));
            fs::remove_file(&incomplete).map_err(Error::io("delete", &incomplete))?;
        }
        Err(Error::WrongHash {
            repo: self.pinned.repo.clone(),
            path: file.path.clone(),
            expected: format!("{} bytes with hash {}", file.size, checksum.hex()),
            found,
        })
    }

    fn keep(&self, checksum: &Checksum, incomplete: &Path) -> Result<()> {
        let blob = self.folder.blob(checksum.hex());
        File::open(incomplete).and_then(|file| file.sync_all()).map_err(Error::io("write", incomplete))?;
        fs::rename(incomplete, &blob).map_err(Error::io("write", &blob))?;
        self.folder.note_verified(checksum.hex())
    }

    /// Brings `incomplete` to the file's full length, from wherever it is; returns that length. A connection that breaks
    /// is made again where it broke, as long as more comes than ever before.
    fn transfer(&self, file: &TreeFile, incomplete: &Path) -> Result<u64> {
        let length = fs::metadata(incomplete).map(|data| data.len()).unwrap_or(0);
        let mut there = if length > file.size { 0 } else { length };
        let dir = incomplete.parent().unwrap_or(incomplete);
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let mut out =
            File::options().create(true).append(true).open(incomplete).map_err(Error::io("write", incomplete))?;
        out.set_len(there).map_err(Error::io("write", incomplete))?;
        (self.advance)(i64::try_from(there).unwrap_or(i64::MAX));
        let (mut fruitless, mut furthest) = (0, there);
        while there < file.size {
            let broken = self.stretch(file, &mut out, &mut there).map_err(|error| match error {
                Error::DiskFull { path, .. } => {
                    Error::DiskFull { path, needed: Some(file.size - there), free: self.folder.free() }
                }
                error => error,
            })?;
            fruitless = if there > furthest { 0 } else { fruitless + 1 };
            furthest = furthest.max(there);
            if let Some(error) = broken {
                if fruitless >= self.http.patience().tries {
                    return Err(error);
                }
                self.http.pause(self.http.backoff(fruitless.max(1)))?;
            }
        }
        Ok(there)
    }

    /// Reads one answer into the file, and says why it ended early if it did.
    fn stretch(&self, file: &TreeFile, out: &mut File, there: &mut u64) -> Result<Option<Error>> {
        let path = PathBuf::from(&file.path);
        let asked = self.ask(file, *there, None);
        let mut response = match asked {
            // It cannot go on from there, whatever the reason.
            Err(Error::Refused { status: 416, .. } | Error::BadAnswer { .. }) if *there > 0 => {
                self.ask(file, 0, None)?
            }
            asked => asked?,
        };
        let whole = response.content_length();
        if response.status() != 206 && *there > 0 {
            // The server starts anew, so do we.
            out.set_len(0).map_err(Error::io("write", &path))?;
            (self.advance)(-i64::try_from(*there).unwrap_or(i64::MAX));
            *there = 0;
        }
        let (begun, mut buffer) = (*there, vec![0; CHUNK]);
        while *there < file.size {
            self.http.check_abandoned()?;
            let room = usize::try_from(file.size - *there).unwrap_or(CHUNK).min(CHUNK);
            match response.read(&mut buffer[..room]) {
                Ok(0) if whole == Some(*there - begun) => {
                    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
                    let (came, kind) = (*there - begun, kind.map_or_else(|| "something".into(), printable));
                    let said = format!("it serves {came} bytes of {kind}, and the commit names {}", file.size - begun);
                    return Ok(Some(self.http.bad_answer(&self.about(file), said)));
                }
                Ok(0) => return Ok(Some(self.http.no_network(&self.about(file), "the connection ends early"))),
                Ok(length) => {
                    let incomplete = self.folder.incomplete(file.checksum().hex());
                    out.write_all(&buffer[..length]).map_err(Error::io("write", incomplete))?;
                    *there += length as u64;
                    (self.advance)(length as i64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let reason = format!("the connection broke: {error}");
                    return Ok(Some(self.http.no_network(&self.about(file), reason)));
                }
            }
        }
        Ok(None)
    }

    /// The first bytes of the file, at most `length`, as the server gives them: nothing verifies them.
    pub(crate) fn beginning(&self, file: &TreeFile, length: u64) -> Result<Vec<u8>> {
        let length = length.min(file.size);
        let mut attempt = 1;
        loop {
            let mut bytes = Vec::new();
            let read = self.ask(file, 0, Some(length))?.take(length).read_to_end(&mut bytes);
            if bytes.len() as u64 == length {
                return Ok(bytes);
            }
            if attempt >= self.http.patience().tries {
                let reason = read.err().map_or("the connection ends early".into(), |error| error.to_string());
                return Err(self.http.no_network(&self.about(file), reason));
            }
            self.http.pause(self.http.backoff(attempt))?;
            attempt += 1;
        }
    }

    /// Asks for the bytes from `from` on, up to `to`, which a server may not heed.
    fn ask(&self, file: &TreeFile, from: u64, to: Option<u64>) -> Result<Response> {
        let (repo, commit) = (&self.pinned.repo, &self.pinned.commit);
        let about = self.about(file);
        let page = repo.page();
        let mut segments: Vec<&str> = page.split('/').collect();
        segments.extend(["resolve", commit.as_str()]);
        segments.extend(file.path.split('/'));
        let mut request = Request::get(self.http.url(&segments));
        let ranged = from > 0 || to.is_some_and(|to| to < file.size);
        if ranged {
            let last = to.map(|to| to.saturating_sub(1).to_string()).unwrap_or_default();
            request = request.header("range", format!("bytes={from}-{last}"));
        }
        let answer = self.http.send(&request, &about)?;
        self.check_headers(&answer, commit)?;
        let status = answer.response.status().as_u16();
        let range = answer.response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let expected = format!("bytes {from}-");
        if status == 206 && !(ranged && range.is_some_and(|range| range.starts_with(&expected)))
            || ![200, 206].contains(&status)
        {
            return Err(self
                .http
                .bad_answer(&about, format!("it answers {status} with a range that was not asked for")));
        }
        Ok(answer.response)
    }

    /// The commit that the server says it reads must be ours, and its ETag a hash: whoever sends others is not to be
    /// trusted with the rest. Neither becomes part of a path here.
    fn check_headers(&self, answer: &Answer, commit: &Commit) -> Result<()> {
        let header =
            |name: &str| answer.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        if let Some(said) = header("x-repo-commit").filter(|said| said != commit.as_str()) {
            return Err(hostile("commit", &said, self.http, "it is not the commit that was asked for"));
        }
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let bare = etag.trim_start_matches("W/").trim_matches('"');
        // A server of objects may have ETags of its own kind; none has a path in it.
        let plain = bare.chars().all(|c| c.is_ascii_alphanumeric() || "-_+=:".contains(c));
        if header("x-linked-etag").is_some() && !is_hex(bare, 64) && !is_hex(bare, 40) || !plain {
            return Err(hostile("ETag", &etag, self.http, "it is no hash"));
        }
        Ok(())
    }

    fn about<'b>(&'b self, file: &'b TreeFile) -> About<'b> {
        let (repo, commit) = (&self.pinned.repo, self.pinned.commit.as_str());
        About::doing(format!("download {} of {repo}", file.path)).repo(repo).revision(commit).path(&file.path)
    }
}

/// What is wrong with the content at `path`, if anything: its size or its hash.
fn wrong(path: &Path, file: &TreeFile) -> io::Result<Option<String>> {
    let length = match fs::metadata(path) {
        Ok(data) => data.len(),
        // A link that leads nowhere.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("nothing".into())),
        Err(error) => return Err(error),
    };
    if length != file.size {
        return Ok(Some(format!("{length} bytes")));
    }
    let checksum = file.checksum();
    let found = checksum.of(path)?;
    Ok((found != checksum).then(|| format!("hash {}", found.hex())))
}
