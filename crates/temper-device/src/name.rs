//! How devices are called: `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu`, …

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Which device to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The first GPU of this build and this machine, in the order of [`Api::ALL`]; the processor where there is none.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU with that number, from 0, among those that the interface reaches.
    Gpu(Api, usize),
}

/// An interface to GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// NVIDIA's, by CUDA.
    Cuda,
    /// Apple's, by Metal's own shading language.
    Metal,
    /// Any, by Vulkan and SPIR-V.
    Vulkan,
    /// Any, by what wgpu finds and WGSL. In a build that also has `vulkan` or `metal`, wgpu prefers their languages.
    Wgpu,
}

impl Api {
    /// All, fastest first: the order in which `auto` looks.
    pub const ALL: [Self; 4] = [Self::Cuda, Self::Metal, Self::Vulkan, Self::Wgpu];

    /// Its name, which is that of the cargo feature too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
        }
    }

    /// Whether this build has it.
    pub const fn built(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Wgpu => cfg!(feature = "wgpu"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    /// # Errors
    /// [`Error::Unknown`], and [`Error::NotBuilt`] for a GPU of an interface that this build lacks.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            _ => {}
        }
        let (name, index) = text.split_once(':').unwrap_or((text, "0"));
        let api = Api::ALL.into_iter().find(|api| api.name() == name);
        match (api, index.parse()) {
            (Some(api), Ok(_)) if !api.built() => Err(Error::NotBuilt { api }),
            (Some(api), Ok(index)) => Ok(Self::Gpu(api, index)),
            _ => Err(Error::Unknown { name: text.into() }),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(api, index) => write!(f, "{}:{index}", api.name()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown() {
        for name in ["auto", "cpu"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        for api in Api::ALL {
            for (text, index) in [(api.name().to_owned(), 0), (format!("{}:3", api.name()), 3)] {
                match text.parse() {
                    Ok(name) => assert_eq!((api.built(), name), (true, DeviceName::Gpu(api, index))),
                    Err(error) => {
                        let said = format!("this build has no `{0}`: build with `--features {0}`", api.name());
                        assert_eq!((api.built(), error.to_string()), (false, said));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["", "gpu", "rocm", "cpu:0", "auto:0", "wgpu:", "wgpu:x", "cuda:-1", "CPU"] {
            assert!(matches!(name.parse::<DeviceName>(), Err(Error::Unknown { .. })), "{name}");
        }
    }
}
