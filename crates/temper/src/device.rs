//! The devices of this build. The only place that names a backend.

use burn::tensor::Device;

use crate::failure::{Context, Failure, Kind};
use crate::recipe::{DeviceConfig, Precision};

/// Sets how this process computes: how many threads compute and tokenise, and in which precision. Once, before any of them
/// works.
pub fn set_up(config: &DeviceConfig) -> Result<(), Failure> {
    temper_kernels::set_precision(match config.precision {
        Precision::F32 => temper_kernels::Precision::F32,
        Precision::Bf16 => temper_kernels::Precision::Bf16,
    });
    let threads = config.threads.unwrap_or_else(cores);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context(Kind::Other, format!("failed to start {threads} threads"))
}

/// The device for training, with autodiff.
pub fn training() -> Device {
    Device::flex().autodiff()
}

/// Threads that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The device for using a trained model: no autodiff.
pub fn inference() -> Device {
    Device::flex()
}
