//! Layer normalisation.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor, module};

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
        if x.dtype() != DType::F32 {
            let dtype = FloatDType::from(x.dtype());
            return self.forward(x.cast(FloatDType::F32)).cast(dtype);
        }
        let (weight, bias) = (self.weight.val(), self.bias.val());
        if !(x.is_tracked() || weight.is_tracked() || bias.is_tracked()) {
            return module::layer_norm(x, weight, Some(bias), self.eps); // fused where the backend can
        }
        // Products with the reciprocal have a cheaper backward pass than quotients.
        let centered = x.clone() - x.mean_dim(R - 1);
        let variance = (centered.clone() * centered.clone()).mean_dim(R - 1);
        let scale = variance.add_scalar(self.eps).sqrt().recip();
        centered * scale * weight.unsqueeze() + bias.unsqueeze()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use temper_peft::init;

    #[test]
    fn tracked_and_plain_paths_agree() {
        let data = || TensorData::new(init::normal(1, "x", 4 * 16, 3.0), [4, 16]);
        let device = Device::flex();
        let plain = LayerNorm::new(16, 1e-5, &device).forward(Tensor::<2>::from_data(data(), &device));
        let device = device.autodiff();
        let tracked = LayerNorm::new(16, 1e-5, &device).forward(Tensor::<2>::from_data(data(), &device));
        assert!(tracked.is_tracked());
        assert!((plain.clone() - tracked.inner()).abs().max().into_scalar::<f32>() < 1e-5);
        assert!(plain.clone().mean_dim(1).abs().max().into_scalar::<f32>() < 1e-5);
        assert!((plain.square().mean_dim(1) - 1.0).abs().max().into_scalar::<f32>() < 1e-4);
    }
}
