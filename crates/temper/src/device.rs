//! The devices of this build. The only place that names a backend.

use burn::tensor::Device;

use crate::plan::DevicePlan;

/// The device of the plan, with autodiff. Sets the number of threads, once in a process.
pub fn open(plan: &DevicePlan) -> Device {
    // Some of burn's library code takes the default device, which compiled features choose; see its `Device::default`.
    // SAFETY: called on the main thread before any other thread is started.
    unsafe { std::env::set_var("BURN_DEVICE", "flex") };
    unsafe { std::env::set_var("RAYON_NUM_THREADS", plan.threads.to_string()) };
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
