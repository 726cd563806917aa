//! Why a model was not measured.

use temper_device::Failed;

/// Why a model was not measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ranks lost each other.
    #[error(transparent)]
    World(#[from] temper_world::Error),
    /// The device failed, for example for want of memory.
    #[error("the device failed: {0}{help}", help = .0.help("; fewer rows at once need less memory"))]
    Device(#[from] Failed),
}
