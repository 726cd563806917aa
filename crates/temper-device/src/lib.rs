//! Where do we compute? The devices of this build and this machine, by name. The only crate that names a backend.
//!
//! [`DeviceName`] is what a user writes, [`find`] holds it against the machine, [`Found::open`] makes it ready. Nothing
//! here falls back: a device that was named is used, or the error says what is missing. Only `auto` chooses, and says
//! what it passed over.

#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod found;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
mod graphics;
mod host;
mod name;
pub mod testing;

pub use error::Error;
pub use found::{Facts, Found, Passed, find, list};
pub use host::{Failed, read, values};
pub use name::{Api, DeviceName};

use burn::tensor::Device;

/// The processor, which every build has. Opens nothing.
pub fn cpu() -> Device {
    Device::flex()
}
