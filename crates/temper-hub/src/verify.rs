//! Whether bytes are the ones that a commit names.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What a hub knows a file's content by. It is also the file's ETag and the name of its blob in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Checksum {
    /// SHA-256 of the content: a file in LFS or Xet storage.
    Sha256(String),
    /// SHA-1 of `blob LENGTH\0` and the content: a file in git itself.
    Git(String),
}

impl Checksum {
    /// The hexadecimal digits.
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }

    /// The same kind of checksum of the file at `path`.
    pub(crate) fn of(&self, path: &Path) -> io::Result<Self> {
        match self {
            Self::Sha256(_) => digest(path, Sha256::new()).map(Self::Sha256),
            Self::Git(_) => {
                let length = path.metadata()?.len();
                digest(path, Sha1::new_with_prefix(git_header(length))).map(Self::Git)
            }
        }
    }
}

/// What git hashes before the content of a blob.
pub(crate) fn git_header(length: u64) -> String {
    format!("blob {length}\0")
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest<D: sha2::Digest>(path: &Path, mut digest: D) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            length => digest.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_are_those_of_sha256sum_and_git_hash_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "abc").unwrap();
        let sha = Checksum::Sha256(String::new()).of(&path).unwrap();
        assert_eq!(sha.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let git = Checksum::Git(String::new()).of(&path).unwrap();
        assert_eq!(git.hex(), "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f");
    }
}
