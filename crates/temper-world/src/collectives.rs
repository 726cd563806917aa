//! What ranks do together.

use burn::tensor::{Device, Tensor, TensorData};

use crate::Error;

/// An engine that carries numbers between ranks. Every rank calls the same operations in the same order; each returns on all
/// ranks the same bits, and the same sums from the same numbers each time.
///
/// Tensors are f32, flat, without autodiff, on the rank's own device.
pub trait Collectives {
    /// Every element summed over all ranks.
    ///
    /// # Errors
    /// What the engine or the device says.
    fn all_reduce(&self, values: Tensor<1>) -> Result<Tensor<1>, Error>;

    /// The same, of which this rank gets its part alone: `parts` has the number of elements of each rank's, in order.
    ///
    /// # Errors
    /// What the engine or the device says.
    fn reduce_scatter(&self, values: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error>;

    /// The parts of all ranks, one after the other; `parts` has their numbers of elements.
    ///
    /// # Errors
    /// What the engine or the device says.
    fn all_gather(&self, part: Tensor<1>, parts: &[usize]) -> Result<Tensor<1>, Error>;

    /// Some bytes of every rank, in the order of ranks, on every rank.
    ///
    /// # Errors
    /// What the engine says.
    fn exchange(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error>;

    /// The same, on rank 0 alone; the others get nothing.
    ///
    /// # Errors
    /// What the engine says.
    fn collect(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error>;
}

/// The numbers of a tensor, on the host.
pub(crate) fn to_host(values: Tensor<1>) -> Result<Vec<f32>, Error> {
    temper_device::values(values).map_err(|failed| Error::collective("read numbers")(failed.to_string()))
}

/// Numbers of the host, on a device.
pub(crate) fn from_host(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
