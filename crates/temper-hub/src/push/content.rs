//! One reading of each file that is pushed: its hashes, its beginning, and whether it holds a secret.

use std::{
    fs::{self, File},
    io::Read as _,
    path::PathBuf,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    names::{collision, wrong_with_path},
    push::PushFile,
    verify::{git_header, hex},
};

/// Bytes of a file's beginning that the hub wants to see.
const SAMPLE: usize = 512;

/// A file to push, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// Its name in the repository.
    pub(crate) path: String,
    pub(crate) local: PathBuf,
    pub(crate) size: u64,
    pub(crate) sha256: String,
    /// git's hash of it as a blob.
    pub(crate) git: String,
    /// Its beginning, in base64.
    pub(crate) sample: String,
}

/// Reads all files, and refuses what must not be pushed before anything is sent.
pub(crate) fn read_all(files: &[PushFile], repo: &crate::RepoId) -> Result<Vec<Content>> {
    let wrong = |path: &str, reason: &str| Error::Push { repo: repo.clone(), reason: format!("{path:?}: {reason}") };
    for file in files {
        if let Some(reason) = wrong_with_path(&file.path) {
            return Err(wrong(&file.path, reason));
        }
    }
    if let Some((path, reason)) = collision(files.iter().map(|file| file.path.as_str())) {
        return Err(wrong(path, reason));
    }
    files.iter().map(read).collect()
}

fn read(file: &PushFile) -> Result<Content> {
    let failed = || Error::io("read", &file.local);
    let size = fs::metadata(&file.local).map_err(failed())?.len();
    let mut source = File::open(&file.local).map_err(failed())?;
    let (mut sha256, mut git) = (Sha256::new(), Sha1::new_with_prefix(git_header(size)));
    let mut secrets = Secrets::default();
    let mut sample = Vec::new();
    let mut buffer = vec![0; 1 << 18];
    let mut length = 0;
    loop {
        let read = source.read(&mut buffer).map_err(failed())?;
        if read == 0 {
            break;
        }
        let bytes = &buffer[..read];
        if let Some(at) = secrets.find(bytes) {
            return Err(Error::Secret { path: file.path.clone(), what: "a hub access token", at });
        }
        sample.extend(bytes.iter().take(SAMPLE - sample.len().min(SAMPLE)));
        sha256.update(bytes);
        git.update(bytes);
        length += read as u64;
    }
    if length != size {
        return Err(failed()(std::io::Error::other("it changes while it is read")));
    }
    Ok(Content {
        path: file.path.clone(),
        local: file.local.clone(),
        size,
        sha256: hex(&sha256.finalize()),
        git: hex(&git.finalize()),
        sample: STANDARD.encode(sample),
    })
}

impl Content {
    /// The bytes again, for a file that goes into the commit itself.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let bytes = fs::read(&self.local).map_err(Error::io("read", &self.local))?;
        if hex(&Sha256::digest(&bytes)) == self.sha256 {
            return Ok(bytes);
        }
        Err(Error::io("read", &self.local)(std::io::Error::other("it changed while it was pushed")))
    }
}

/// What a push is: a hash over names and contents.
pub(crate) fn digest(contents: &[Content]) -> String {
    let mut lines: Vec<_> = contents.iter().map(|content| format!("{} {}\n", content.sha256, content.path)).collect();
    lines.sort();
    hex(&Sha256::digest(lines.concat()))
}

/// Looks for hub tokens, `hf_` and at least 20 letters or digits, in a stream.
#[derive(Debug, Default)]
struct Secrets {
    /// Letters and digits that the stream ends in after `hf_`; none without it.
    after: Option<usize>,
    /// The last two bytes.
    last: [u8; 2],
    position: u64,
}

impl Secrets {
    /// Where a token ends within the next bytes of the stream.
    fn find(&mut self, bytes: &[u8]) -> Option<u64> {
        for byte in bytes {
            self.after = match self.after {
                _ if *byte == b'_' => (self.last == *b"hf").then_some(0),
                Some(count) if byte.is_ascii_alphanumeric() => Some(count + 1),
                _ => None,
            };
            self.last = [self.last[1], *byte];
            self.position += 1;
            if self.after == Some(20) {
                return Some(self.position - 23);
            }
        }
        None
    }
}

/// Whether a text has a hub token in it.
pub fn has_token(text: &str) -> bool {
    Secrets::default().find(text.as_bytes()).is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_wherever_the_stream_is_cut() {
        for text in
            [&b"a hf_hf_short x = hf_abcdefghijABCDEFGHIJ0 more"[..], b"hf_hf, short: hf_hf_abcdefghijABCDEFGHIJ"]
        {
            for cut in 0..text.len() {
                let mut secrets = Secrets::default();
                let found = secrets.find(&text[..cut]).or_else(|| secrets.find(&text[cut..]));
                let at = text.windows(6).position(|part| part == b"hf_abc").map(|at| at as u64);
                assert_eq!(found, at, "{cut}");
            }
        }
        assert_eq!(Secrets::default().find(b"hf_hub_download_of_the_file hf_abc"), None);
    }

    #[test]
    fn a_file_is_read_once_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("x");
        fs::write(&local, "abc").unwrap();
        let content = read(&PushFile { path: "x".into(), local: local.clone() }).unwrap();
        assert_eq!(content.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(content.git, "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f");
        assert_eq!((content.size, content.sample.as_str()), (3, "YWJj"));
        assert_eq!(content.bytes().unwrap(), b"abc");
        fs::write(&local, "abd").unwrap();
        assert!(content.bytes().unwrap_err().to_string().contains("changed"));
    }
}
