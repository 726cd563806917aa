//! GPUs through wgpu: Vulkan, Metal, DirectX 12, OpenGL.

use burn::tensor::wgpu::WgpuBackend;
use burn::tensor::{Device, DeviceKind, DeviceType};

use crate::{Api, DeviceName, Error, Found};

/// More adapters of a kind than a machine has.
const MOST: usize = 32;

/// What wgpu finds, discrete GPUs first and software last.
pub(crate) fn list(api: Api) -> Result<Vec<Found>, Error> {
    let reachable = Device::enumerate(filter(api));
    let numbered: [fn(usize) -> DeviceKind; 3] =
        [DeviceKind::DiscreteGpu, DeviceKind::IntegratedGpu, DeviceKind::VirtualGpu];
    let kinds = numbered.into_iter().flat_map(|kind| (0..MOST).map(kind)).chain([DeviceKind::Cpu]);
    let kinds = kinds.filter(|kind| reachable.contains(&unopened(api, kind.clone())));
    let found = kinds.enumerate().map(|(index, kind)| Found {
        name: DeviceName::Gpu(api, index),
        memory: None,
        passed: Vec::new(),
        kind: Some(kind),
    });
    let found: Vec<Found> = found.collect();
    match found.is_empty() {
        true => Err(Error::Missing { api, what: no_adapter(api).into() }),
        false => Ok(found),
    }
}

/// Asks the driver for the device.
pub(crate) fn open(found: &Found, api: Api) -> Result<Device, Error> {
    let backend = match api {
        Api::Vulkan => WgpuBackend::Vulkan,
        Api::Metal => WgpuBackend::Metal,
        Api::Wgpu | Api::Cuda => WgpuBackend::Auto,
    };
    let options = Device::wgpu_options().device_kind(found.kind.clone().unwrap_or_default()).graphics_api(backend);
    options.init().map_err(|error| Error::Open { name: found.name.to_string(), reason: error.to_string() })
}

fn filter(api: Api) -> DeviceType {
    match api {
        #[cfg(feature = "vulkan")]
        Api::Vulkan => DeviceType::Vulkan,
        #[cfg(feature = "metal")]
        Api::Metal => DeviceType::Metal,
        _ => DeviceType::Wgpu,
    }
}

fn unopened(api: Api, kind: DeviceKind) -> Device {
    match api {
        #[cfg(feature = "vulkan")]
        Api::Vulkan => Device::vulkan(kind),
        #[cfg(feature = "metal")]
        Api::Metal => Device::metal(kind),
        _ => Device::wgpu(kind),
    }
}

const fn no_adapter(api: Api) -> &'static str {
    match api {
        Api::Metal => "there is no Metal adapter; it needs a Mac",
        _ if cfg!(target_os = "linux") => {
            "there is no adapter; on Debian and Ubuntu the Vulkan drivers of AMD, Intel and software are in \
             `mesa-vulkan-drivers`, NVIDIA's comes with its driver and needs the loader `libvulkan1`"
        }
        _ => "there is no adapter; install the driver of the GPU",
    }
}
