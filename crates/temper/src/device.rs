//! Where this process computes.

use burn::tensor::Device;
use clap::Args;
use temper_device::{Error, Found};

use crate::failure::{Context, Failure, Kind};
use crate::recipe::{DeviceConfig, Precision};

/// Which device, for a verb without a recipe.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Where to compute: `auto`, `cpu`, or a GPU as `temper devices` lists them.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
}

impl DeviceArgs {
    /// The device, ready, without autodiff.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(&self) -> Result<Device, Failure> {
        let refused = |error: Error| Failure::new(Kind::Recipe, format!("error: --device: {error}"));
        open(&find(&self.device).map_err(refused)?).map_err(refused)
    }
}

/// The device of this machine that `name` names.
///
/// # Errors
/// When there is none.
pub fn find(name: &str) -> Result<Found, Error> {
    temper_device::find(name.parse()?)
}

/// Makes a device ready, without autodiff, and warns where it is not what a user may expect.
///
/// # Errors
/// What the driver says.
pub fn open(found: &Found) -> Result<Device, Error> {
    for passed in &found.passed {
        tracing::warn!("auto passes over {}: {}", passed.backend, passed.why);
    }
    if found.is_software() {
        tracing::warn!("{} is a software rasterizer: `cpu` is faster", found.name);
    }
    found.open()
}

/// Sets how this process computes: how many threads compute and tokenise, and in which precision. Once, before any of them
/// works.
pub fn set_up(config: &DeviceConfig) -> Result<(), Failure> {
    temper_kernels::set_precision(match config.precision {
        Precision::F32 => temper_kernels::Precision::F32,
        Precision::Bf16 => temper_kernels::Precision::Bf16,
        Precision::F16 => temper_kernels::Precision::F16,
    });
    let threads = config.threads.unwrap_or_else(cores);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context(Kind::Other, format!("failed to start {threads} threads"))
}

/// Threads that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
