//! Where this process computes.

use burn::tensor::Device;
use clap::Args;
use temper_device::{DeviceName, Error, Found};
use temper_world::Place;

use crate::failure::{Context, Failure, Kind};
use crate::memory;
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
        // Where threads compute already, they go on as they do.
        let _ = start_threads(cores(&Place::alone()));
        let refused = |error: Error| Failure::new(Kind::Recipe, format!("error: --device: {error}"));
        open(&find(&self.device, &Place::alone()).map_err(refused)?).map_err(refused)
    }
}

/// The device of this machine that `name` names, for the rank at `place`: of GPUs, where `name` has no number, the ranks of a
/// machine have one each.
///
/// # Errors
/// When there is none.
pub fn find(name: &str, place: &Place) -> Result<Found, Error> {
    let found = temper_device::find(name.parse()?)?;
    match found.name {
        DeviceName::Gpu(api, 0) if place.local_rank > 0 && !name.contains(':') => {
            temper_device::find(DeviceName::Gpu(api, place.local_rank))
        }
        _ => Ok(found),
    }
}

/// How many values of f32 an operation may hold at once on a device: a thirty-second of its memory, where that is known.
pub fn scratch(device: &Found) -> usize {
    let share = device.memory.map_or(0, |bytes| bytes / 32 / 4) as usize;
    share.max(temper_kernels::DEFAULT_SCRATCH)
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
    temper_kernels::set_scratch(scratch(found));
    memory::keep();
    found.open()
}

/// Sets how this process computes: how many threads compute and tokenise, and in which precision. Once, before any of them
/// works.
pub fn set_up(config: &DeviceConfig, place: &Place) -> Result<(), Failure> {
    temper_kernels::set_precision(match config.precision {
        Precision::F32 => temper_kernels::Precision::F32,
        Precision::Bf16 => temper_kernels::Precision::Bf16,
        Precision::F16 => temper_kernels::Precision::F16,
    });
    let threads = config.threads.unwrap_or_else(|| cores(place));
    start_threads(threads).context(Kind::Other, format!("failed to start {threads} threads"))
}

/// Starts the threads that compute. The one that calls this is one of them, so that none waits for another to begin; nobody else
/// may give them work.
fn start_threads(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global()
}

/// Threads that the rank at `place` uses: the ranks of a machine share its cores, unless their launcher has divided them.
pub fn cores(place: &Place) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if place.local_size > 1 { (cores / place.local_size).max(1) } else { cores }
}
