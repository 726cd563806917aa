//! Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762), as Hugging Face's eager path computes it.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};

use crate::{Pass, dropout, matmul};

/// The numbers of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// B and S.
    pub shape: [usize; 2],
    /// N; the features divide by it.
    pub heads: usize,
    /// The dropout probability on the attention's weights.
    pub dropout: f64,
}

impl Attention {
    /// softmax(q kᵀ/√H + mask) v.
    ///
    /// # Shapes
    ///
    /// - query, key, value, result: `[T, D]`
    /// - mask: `[B, 1, 1, S]`, added to the scores; see [`padding_mask`]
    pub fn forward(&self, [query, key, value]: [Tensor<2>; 3], mask: Option<&Tensor<4>>, pass: &Pass) -> Tensor<2> {
        let ([batch, sequence], [tokens, model]) = (self.shape, query.dims());
        let size = model / self.heads;
        let split = |x: Tensor<2>| x.reshape([batch, sequence, self.heads, size]).swap_dims(1, 2);
        let query = split(query.mul_scalar((size as f64).powf(-0.5)));
        let scores = matmul(query, split(key).transpose());
        let scores = match mask {
            None => scores,
            Some(mask) => scores + mask.clone(),
        };
        let weights = dropout(softmax(scores), self.dropout, pass);
        matmul(weights, split(value)).swap_dims(1, 2).reshape([tokens, model])
    }
}

/// The mask that hides padding on the right of each row: 0 on the first `lengths[b]` keys, the lowest f32 on the others.
/// `None` if every row is full.
pub fn padding_mask(lengths: &[usize], sequence: usize, device: &Device) -> Option<Tensor<4>> {
    if lengths.iter().all(|length| *length >= sequence) {
        return None;
    }
    let row = |length: &usize| (0..sequence).map(|i| if i < *length { 0.0 } else { f32::MIN }).collect::<Vec<_>>();
    let values: Vec<f32> = lengths.iter().flat_map(row).collect();
    Some(Tensor::from_data(TensorData::new(values, [lengths.len(), 1, 1, sequence]), (device, DType::F32)))
}

/// Softmax over the last dimension.
pub fn softmax<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    if !x.is_tracked() {
        return activation::softmax(x, R - 1); // fused where the backend can
    }
    // A product with the reciprocal has a cheaper backward pass than a quotient.
    let exp = (x.clone() - x.detach().max_dim(R - 1)).exp();
    exp.clone() * exp.sum_dim(R - 1).recip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use temper_peft::init;

    #[test]
    fn padding_does_not_change_the_result() {
        let device = Device::flex();
        let tensor = |name: &str, rows: usize, padded: usize| {
            let mut values = init::normal(1, name, rows * 8, 1.0);
            values.resize(padded * 8, 7.0);
            Tensor::<2>::from_data(TensorData::new(values, [padded, 8]), &device)
        };
        let run = |padded: usize| {
            let attention = Attention { shape: [1, padded], heads: 2, dropout: 0.0 };
            let inputs = ["q", "k", "v"].map(|name| tensor(name, 3, padded));
            attention.forward(inputs, padding_mask(&[3], padded, &device).as_ref(), &Pass::eval()).narrow(0, 0, 3)
        };
        assert!(padding_mask(&[3], 3, &device).is_none());
        assert!((run(3) - run(5)).abs().max().into_scalar::<f32>() < 1e-6);
    }

    #[test]
    fn tracked_softmax_equals_the_plain_one() {
        let device = Device::flex();
        let data = || TensorData::new(init::normal(1, "x", 12, 5.0), [3, 4]);
        let plain = softmax(Tensor::<2>::from_data(data(), &device));
        let tracked = softmax(Tensor::<2>::from_data(data(), &device.autodiff()).require_grad());
        assert!((plain - tracked.inner()).abs().max().into_scalar::<f32>() < 1e-6);
    }
}
