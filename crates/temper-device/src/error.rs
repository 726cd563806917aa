//! Why a device cannot be used.

use crate::Api;

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No device is called that.
    #[error(
        "there is no device `{name}`; write `auto`, `cpu`, `cuda`, `metal`, `vulkan` or `wgpu`, with `:1` for the second"
    )]
    Unknown {
        /// What was written.
        name: String,
    },
    /// The build lacks the interface.
    #[error("this build has no `{0}`: build with `--features {0}`", api.name())]
    NotBuilt {
        /// The interface.
        api: Api,
    },
    /// The machine lacks what the interface needs.
    #[error("`{}` cannot be used: {what}", api.name())]
    Missing {
        /// The interface.
        api: Api,
        /// What is missing, and which package has it.
        what: String,
    },
    /// There are fewer devices.
    #[error("there is no `{}:{index}`: {}", api.name(), counted(api.name(), *found))]
    NoSuchDevice {
        /// The interface.
        api: Api,
        /// The number that was asked for, from 0.
        index: usize,
        /// How many there are.
        found: usize,
    },
    /// The device is known to compute nothing, or garbage.
    #[error("`{name}` is refused: {why}")]
    Refused {
        /// The device.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The driver refused.
    #[error("failed to open `{name}`: {reason}")]
    Open {
        /// The device.
        name: String,
        /// What the driver says.
        reason: String,
    },
}

fn counted(name: &str, found: usize) -> String {
    match found {
        1 => format!("`{name}:0` is the only one"),
        _ => format!("`{name}:0` to `{name}:{}` are there", found - 1),
    }
}
