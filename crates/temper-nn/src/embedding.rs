//! Tables of vectors.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, module};

use crate::lazy;

/// A table of vectors, looked up by id.
#[derive(Module, Debug)]
pub struct Embedding {
    /// The table `[V, D]`.
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// A table of `count` vectors of `size` features.
    pub fn new(count: usize, size: usize, device: &Device) -> Self {
        Self { weight: lazy([count, size], 0.0, device) }
    }

    /// Looks up every id. Every id has a gradient; Transformers withholds it from the one that is padding.
    ///
    /// # Shapes
    ///
    /// - ids: `[B, S]`
    /// - result: `[B, S, D]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        module::embedding(self.weight.val(), ids)
    }

    /// The first `count` vectors, `[1, count, D]`, which broadcast over a batch.
    pub fn first(&self, count: usize) -> Tensor<3> {
        self.weight.val().narrow(0, 0, count).unsqueeze()
    }
}
