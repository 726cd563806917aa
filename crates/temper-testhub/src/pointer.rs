//! Git LFS pointers ([specification](https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)): the small file that
//! stands in git for a large one.

/// What a pointer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// Of the content, in hex.
    pub(crate) sha256: String,
    /// Bytes of the content.
    pub(crate) size: u64,
}

const VERSION: &str = "version https://git-lfs.github.com/spec/v1";

impl Pointer {
    /// No pointer has more bytes.
    pub(crate) const LONGEST: u64 = 200;

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = text.lines();
        let version = lines.next()?;
        let sha256 = lines.next()?.strip_prefix("oid sha256:")?.to_owned();
        let size = lines.next()?.strip_prefix("size ")?.parse().ok()?;
        (version == VERSION && is_sha256(&sha256)).then_some(Self { sha256, size })
    }

    pub(crate) fn text(&self) -> String {
        format!("{VERSION}\noid sha256:{}\nsize {}\n", self.sha256, self.size)
    }
}

/// 64 lower-case hexadecimal digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::Pointer;

    #[test]
    fn a_pointer_reads_back() {
        let pointer = Pointer { sha256: "ab".repeat(32), size: 12 };
        assert_eq!(Pointer::parse(pointer.text().as_bytes()), Some(pointer));
        assert_eq!(Pointer::parse(b"version 2\n"), None);
    }
}
