//! Token ids, back to back: in memory below a limit, beyond it in an unlinked temporary file that is memory-mapped.

use std::{fs::File, io::Write};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Tokens held in memory before they spill (64 MiB).
const LIMIT: usize = (64 << 20) / size_of::<u32>();

/// Collects tokens.
pub(crate) struct TokenWriter {
    buffer: Vec<u32>,
    file: Option<File>,
    written: u64,
    limit: usize,
}

/// The tokens, done.
pub(crate) enum Tokens {
    Memory(Vec<u32>),
    Mapped(Mmap),
}

impl TokenWriter {
    pub(crate) fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    fn with_limit(limit: usize) -> Self {
        Self { buffer: Vec::new(), file: None, written: 0, limit }
    }

    /// Appends; returns how many tokens there are now.
    pub(crate) fn push(&mut self, ids: &[u32]) -> Result<u64> {
        self.buffer.extend_from_slice(ids);
        if self.buffer.len() > self.limit {
            self.spill()?;
        }
        Ok(self.written + self.buffer.len() as u64)
    }

    fn spill(&mut self) -> Result<()> {
        let bytes = (self.written + self.buffer.len() as u64) * 4;
        let error = |source| Error::Spill { directory: std::env::temp_dir(), bytes, source };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().map_err(error)?),
        };
        let raw: Vec<u8> = self.buffer.iter().flat_map(|id| id.to_ne_bytes()).collect();
        file.write_all(&raw).map_err(error)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Tokens> {
        if self.file.is_some() {
            self.spill()?;
        }
        let Some(file) = self.file else {
            self.buffer.shrink_to_fit();
            return Ok(Tokens::Memory(self.buffer));
        };
        let error = |source| Error::Spill { directory: std::env::temp_dir(), bytes: self.written * 4, source };
        // SAFETY: the file has no name and its only handle is ours, so nobody truncates or changes it while it is mapped.
        Ok(Tokens::Mapped(unsafe { Mmap::map(&file) }.map_err(error)?))
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

impl Tokens {
    /// All of them.
    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::Memory(ids) => ids,
            // SAFETY: every bit pattern is a u32; a map begins at a page, so nothing is left over before or after.
            Self::Mapped(map) => unsafe { map.align_to::<u32>() }.1,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spilled_tokens_are_the_tokens() {
        for limit in [0, 1, 7, 1000] {
            let mut writer = TokenWriter::with_limit(limit);
            assert_eq!(writer.push(&[]).unwrap(), 0);
            for i in 0..100u32 {
                assert_eq!(writer.push(&[i, u32::MAX - i]).unwrap(), u64::from(i) * 2 + 2);
            }
            let tokens = writer.finish().unwrap();
            assert_eq!(matches!(tokens, Tokens::Mapped(_)), limit < 200);
            let expected: Vec<u32> = (0..100).flat_map(|i| [i, u32::MAX - i]).collect();
            assert_eq!(tokens.as_slice(), expected);
        }
        assert!(TokenWriter::new().finish().unwrap().as_slice().is_empty());
    }
}
