//! Layer normalisation.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use temper_kernels::{Reader, layer_norm, rms_norm};

use crate::lazy;

/// `y = (x - mean) / √(var + eps) · weight + bias` over the last dimension, with the biased variance, in f32
/// (Ba et al. 2016, arXiv:1607.06450).
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// The scale `[D]`.
    pub weight: Param<Tensor<1>>,
    /// The shift `[D]`.
    pub bias: Param<Tensor<1>>,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// The norm over `size` features.
    pub fn new(size: usize, eps: f64, device: &Device) -> Self {
        Self { weight: lazy([size], 1.0, device), bias: lazy([size], 0.0, device), eps }
    }

    /// Normalises the last dimension.
    ///
    /// # Shapes
    ///
    /// - x, result: `[..., D]`
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        in_f32(x, |x| layer_norm(x, self.weight.val(), self.bias.val(), self.eps))
    }
}

/// `y = x / √(mean(x²) + eps) · (offset + weight)` over the last dimension, in f32 (Zhang & Sennrich 2019,
/// arXiv:1910.07467).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The scale `[D]`.
    pub weight: Param<Tensor<1>>,
    /// Added to the mean of squares.
    pub eps: f64,
    /// Added to the weight: 1 in Gemma, whose weights are stored as distances from 1; else 0.
    pub offset: f64,
}

impl RmsNorm {
    /// The norm over `size` features; at first it scales by 1.
    pub fn new(size: usize, eps: f64, offset: f64, device: &Device) -> Self {
        Self { weight: lazy([size], 1.0 - offset, device), eps, offset }
    }

    /// Normalises the last dimension.
    ///
    /// # Shapes
    ///
    /// - x, result: `[..., D]`
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        in_f32(x, |x| rms_norm(x, self.weight.val(), self.offset, self.eps, Reader::Anyone))
    }

    /// The same for [linear layers](crate::Linear) alone: as products round it.
    pub fn before_linear(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.weight.val(), self.offset, self.eps, Reader::Products)
    }
}

/// What `norm` gives for x in f32, in the dtype of x.
fn in_f32<const R: usize>(x: Tensor<R>, norm: impl FnOnce(Tensor<R>) -> Tensor<R>) -> Tensor<R> {
    if x.dtype() == DType::F32 {
        return norm(x);
    }
    let dtype = FloatDType::from(x.dtype());
    norm(x.cast(FloatDType::F32)).cast(dtype)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use temper_device::testing;
    use temper_peft::init;

    #[test]
    fn the_root_mean_square_becomes_the_weight() {
        let device = testing::device();
        let x = Tensor::<2>::from_data(TensorData::new(init::normal(1, "x", 4 * 16, 3.0), [4, 16]), &device);
        for (offset, expected) in [(0.0, 2.0), (1.0, 3.0)] {
            let mut norm = RmsNorm::new(16, 1e-6, offset, &device);
            assert_eq!(norm.weight.val().max().into_scalar::<f32>(), 1.0 - offset as f32);
            norm.weight = Param::from_tensor(Tensor::full([16], 2.0, &device));
            let y = norm.forward(x.clone());
            assert!(
                (y.square().mean_dim(1).sqrt() - expected).abs().max().into_scalar::<f32>() < testing::tolerance(1e-5)
            );
        }
    }

    #[test]
    fn mean_and_variance_become_0_and_1() {
        let device = testing::device();
        let x = Tensor::<2>::from_data(TensorData::new(init::normal(1, "x", 4 * 16, 3.0), [4, 16]), &device);
        let y = LayerNorm::new(16, 1e-5, &device).forward(x);
        assert!(y.clone().mean_dim(1).abs().max().into_scalar::<f32>() < testing::tolerance(1e-5));
        assert!((y.square().mean_dim(1) - 1.0).abs().max().into_scalar::<f32>() < testing::tolerance(1e-4));
    }
}
