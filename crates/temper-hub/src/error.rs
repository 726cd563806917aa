//! What can go wrong when files travel.

use std::path::PathBuf;

/// The result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of this crate; the messages complete "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that the card describes cannot be read.
    #[error("read {path} for its sha256: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}
