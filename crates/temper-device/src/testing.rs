//! The device that tests run on: the one that `TEMPER_TEST_DEVICE` names, the processor by default.
//!
//! A law or a comparison takes its device and its tolerances from here, so that it holds wherever it is asked to hold.

use std::sync::OnceLock;

use burn::tensor::Device;

use crate::{DeviceName, find};

/// The device, without autodiff.
///
/// # Panics
/// When it cannot be used: a test that was asked for never runs elsewhere.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || find(name()?)?.open();
    DEVICE.get_or_init(|| open().unwrap_or_else(|error| panic!("TEMPER_TEST_DEVICE: {error}"))).clone()
}

/// The tolerance of a comparison that meets `on_cpu` on the processor.
///
/// GPUs sum in another order and have functions of their own for exp, tanh and the like.
pub fn tolerance(on_cpu: f32) -> f32 {
    match name() {
        Ok(DeviceName::Cpu) => on_cpu,
        _ => 10.0 * on_cpu,
    }
}

fn name() -> Result<DeviceName, crate::Error> {
    std::env::var("TEMPER_TEST_DEVICE").map_or(Ok(DeviceName::Cpu), |name| name.parse())
}
