//! From a name to a device of this machine.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, DeviceKind, FloatDType};
use serde::Serialize;

use crate::{Api, DeviceName, Error, cpu};

/// A device of this machine, not opened yet.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name, never `auto`.
    pub name: DeviceName,
    /// Its memory in bytes, where its driver says so.
    pub memory: Option<u64>,
    /// What `auto` passed over before it.
    pub passed: Vec<Passed>,
    /// Its kind, where wgpu tells kinds apart.
    pub(crate) kind: Option<DeviceKind>,
}

/// An interface of this build in which `auto` found no GPU, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// Its name.
    pub backend: &'static str,
    /// What is missing, and which package has it.
    pub why: String,
}

/// What an open device says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The hardware's name.
    pub hardware: String,
    /// The types that it computes with: it says so itself.
    pub precisions: Vec<&'static str>,
}

/// The device called `name`.
///
/// # Errors
/// When the build or the machine lacks it. `auto` always finds the processor.
pub fn find(name: DeviceName) -> Result<Found, Error> {
    match name {
        DeviceName::Auto => Ok(automatic()),
        DeviceName::Cpu => Ok(Found::processor()),
        DeviceName::Gpu(api, index) => {
            let mut all = list(api)?;
            if index >= all.len() {
                return Err(Error::NoSuchDevice { api, index, found: all.len() });
            }
            let found = all.swap_remove(index);
            found.refusal().map_or(Ok(found), Err)
        }
    }
}

/// The GPUs that `api` reaches on this machine, at least one, hardware before software.
///
/// # Errors
/// When the build lacks the interface or the machine what it needs.
pub fn list(api: Api) -> Result<Vec<Found>, Error> {
    match api {
        #[cfg(feature = "cuda")]
        Api::Cuda => crate::cuda::list(),
        #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
        Api::Metal | Api::Vulkan | Api::Wgpu if api.built() => crate::graphics::list(api),
        _ => Err(Error::NotBuilt { api }),
    }
}

/// The first GPU that is hardware, else the processor.
fn automatic() -> Found {
    let mut passed = Vec::new();
    for api in Api::ALL.into_iter().filter(|api| api.built()) {
        let why = match list(api).map(|all| all.into_iter().find(|found| !found.is_software())) {
            Ok(Some(found)) => return Found { passed, ..found },
            Ok(None) => "there is a software rasterizer alone".to_owned(),
            Err(error) => error.to_string(),
        };
        passed.push(Passed { backend: api.name(), why });
    }
    Found { passed, ..Found::processor() }
}

impl Found {
    fn processor() -> Self {
        Self { name: DeviceName::Cpu, memory: None, passed: Vec::new(), kind: None }
    }

    /// Whether it is the processor behind a GPU's interface.
    pub fn is_software(&self) -> bool {
        self.kind == Some(DeviceKind::Cpu)
    }

    /// Why it must not be used, if so.
    pub fn refusal(&self) -> Option<Error> {
        let why =
            "SPIR-V crashes Mesa's software rasterizer; a build with `--features wgpu` alone writes WGSL, which runs";
        let refused = self.is_software() && Api::Vulkan.built();
        refused.then(|| Error::Refused { name: self.name.to_string(), why })
    }

    /// Makes it ready for tensors, without autodiff. A device that this process has opened is given again: drivers open it
    /// once.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(&self) -> Result<Device, Error> {
        static OPENED: Mutex<Vec<(DeviceName, Device)>> = Mutex::new(Vec::new());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, device)) = opened.iter().find(|(name, _)| *name == self.name) {
            return Ok(device.clone());
        }
        let device = self.open_first()?;
        opened.push((self.name, device.clone()));
        Ok(device)
    }

    fn open_first(&self) -> Result<Device, Error> {
        match self.name {
            DeviceName::Auto | DeviceName::Cpu => Ok(cpu()),
            #[cfg(feature = "cuda")]
            DeviceName::Gpu(Api::Cuda, index) => Ok(Device::cuda(index)),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
            DeviceName::Gpu(api, _) if api != Api::Cuda => crate::graphics::open(self, api),
            DeviceName::Gpu(api, _) => Err(Error::NotBuilt { api }),
        }
    }

    /// What it says of itself; `device` is it, open.
    pub fn facts(&self, device: &Device) -> Facts {
        let types =
            [("f64", FloatDType::F64), ("f32", FloatDType::F32), ("f16", FloatDType::F16), ("bf16", FloatDType::BF16)];
        let precisions = types.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype)).map(|(name, _)| name);
        Facts { hardware: hardware(device).unwrap_or_else(processor), precisions: precisions.collect() }
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn hardware(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

#[cfg(not(any(feature = "cuda", feature = "wgpu", feature = "vulkan", feature = "metal")))]
fn hardware(_: &Device) -> Option<String> {
    None
}

/// The processor's name where Linux says it, else its architecture.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there_and_computes() {
        let found = find(DeviceName::Cpu).unwrap();
        let device = found.open().unwrap();
        assert_eq!(found.open().unwrap(), device);
        let facts = found.facts(&device);
        assert!(facts.precisions.contains(&"f32") && !facts.hardware.is_empty(), "{facts:?}");
        assert_eq!(device, cpu());
    }

    #[test]
    fn auto_finds_a_device_that_can_be_named() {
        let found = find(DeviceName::Auto).unwrap();
        assert!(!found.is_software() && found.name != DeviceName::Auto);
        let again = find(found.name).unwrap();
        assert_eq!(again.name, found.name);
        let built = Api::ALL.into_iter().filter(|api| api.built()).count();
        assert_eq!(found.name == DeviceName::Cpu, found.passed.len() == built);
    }

    #[test]
    fn a_number_too_high_is_refused_with_those_that_are_there() {
        for api in Api::ALL {
            match find(DeviceName::Gpu(api, 99)).unwrap_err() {
                Error::NotBuilt { .. } => assert!(!api.built()),
                Error::Missing { what, .. } => assert!(api.built() && !what.is_empty()),
                error => assert!(error.to_string().contains(&format!("`{}:0`", api.name())), "{error}"),
            }
        }
    }
}
