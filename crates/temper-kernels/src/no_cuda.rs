//! What a build without CUDA says of it.

use burn::tensor::{Device, Tensor};

/// Whether this machine has cuBLASLt, and the build uses it.
pub fn has_cublaslt() -> bool {
    false
}

/// One rank among those that NCCL joins: none, without CUDA.
pub enum Nccl {}

impl Nccl {
    /// Whether this machine has the library, and the build uses it.
    pub fn is_present() -> bool {
        false
    }

    /// What one rank draws, and all join with.
    ///
    /// # Errors
    /// Always.
    pub fn invitation() -> Result<Vec<u8>, String> {
        Err(MISSING.into())
    }

    /// Joins ranks.
    ///
    /// # Errors
    /// Always.
    pub fn join(_device: &Device, _rank: usize, _size: usize, _invitation: &[u8]) -> Result<Self, String> {
        Err(MISSING.into())
    }

    /// Every element summed over all ranks.
    ///
    /// # Errors
    /// None: nobody has joined.
    pub fn all_reduce(&self, _values: Tensor<1>) -> Result<Tensor<1>, String> {
        match *self {}
    }

    /// The same, of which this rank gets its part alone.
    ///
    /// # Errors
    /// None: nobody has joined.
    pub fn reduce_scatter(&self, _values: Tensor<1>, _parts: &[usize]) -> Result<Tensor<1>, String> {
        match *self {}
    }

    /// The parts of all ranks, one after the other.
    ///
    /// # Errors
    /// None: nobody has joined.
    pub fn all_gather(&self, _part: Tensor<1>, _parts: &[usize]) -> Result<Tensor<1>, String> {
        match *self {}
    }
}

const MISSING: &str = "this build has no CUDA";
