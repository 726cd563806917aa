//! Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762), as Hugging Face's eager path computes it.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};

use crate::{Pass, dropout, matmul};

/// The numbers of an attention; how many heads there are is said by its inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// What queries are multiplied with, as a rule 1/√H; 1 for queries that come scaled.
    pub scale: f64,
    /// The dropout probability on the attention's weights.
    pub dropout: f64,
}

impl Attention {
    /// softmax(scale · q kᵀ + mask) v. N/K neighbouring query heads share a key/value head (Ainslie et al. 2023,
    /// arXiv:2305.13245); keys and values are not repeated for them.
    ///
    /// # Shapes
    ///
    /// - query: `[B, S, N, H]`
    /// - key, value: `[B, keys, K, H]`
    /// - mask: broadcasts to `[B, N, S, keys]` and is added to the scores; see [`padding_mask`] and
    ///   [`Layout::causal_mask`](crate::Layout::causal_mask)
    /// - result: `[T, N·H]`
    pub fn forward(&self, [query, key, value]: [Tensor<4>; 3], mask: Option<&Tensor<4>>, pass: &Pass) -> Tensor<2> {
        let ([batch, sequence, heads, size], [_, keys, shared, _]) = (query.dims(), key.dims());
        let grouped = [batch, shared, heads / shared * sequence, size];
        let query = if self.scale == 1.0 { query } else { query.mul_scalar(self.scale) };
        let query = query.swap_dims(1, 2);
        let query = if heads == shared { query } else { query.reshape(grouped) };
        let scores = matmul(query, key.swap_dims(1, 2).transpose()).reshape([batch, heads, sequence, keys]);
        let scores = match mask {
            None => scores,
            Some(mask) => scores + mask.clone(),
        };
        let weights = dropout(softmax(scores), self.dropout, pass);
        let weights = weights.reshape([batch, shared, heads / shared * sequence, keys]);
        let mixed = matmul(weights, value.swap_dims(1, 2)).reshape([batch, heads, sequence, size]);
        mixed.swap_dims(1, 2).reshape([batch * sequence, heads * size])
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
    use temper_device::testing;
    use temper_peft::init;

    #[test]
    fn padding_does_not_change_the_result() {
        let device = testing::device();
        let tensor = |name: &str, rows: usize, padded: usize| {
            let mut values = init::normal(1, name, rows * 8, 1.0);
            values.resize(padded * 8, 7.0);
            Tensor::<4>::from_data(TensorData::new(values, [1, padded, 2, 4]), &device)
        };
        let run = |padded: usize| {
            let attention = Attention { scale: 0.5, dropout: 0.0 };
            let inputs = ["q", "k", "v"].map(|name| tensor(name, 3, padded));
            attention.forward(inputs, padding_mask(&[3], padded, &device).as_ref(), &Pass::eval()).narrow(0, 0, 3)
        };
        assert!(padding_mask(&[3], 3, &device).is_none());
        assert!((run(3) - run(5)).abs().max().into_scalar::<f32>() < testing::tolerance(1e-6));
    }

    #[test]
    fn shared_heads_equal_repeated_ones() {
        let device = testing::device();
        let tensor = |name: &str, heads: usize| {
            let values = init::normal(1, name, 2 * 3 * heads * 4, 1.0);
            Tensor::<4>::from_data(TensorData::new(values, [2, 3, heads, 4]), &device)
        };
        let (query, key, value) = (tensor("q", 6), tensor("k", 2), tensor("v", 2));
        let mask = crate::Layout::packed(&[vec![3], vec![1, 2]], 3).causal_mask(None, &device);
        let attention = Attention { scale: 0.5, dropout: 0.0 };
        let run = |key, value| attention.forward([query.clone(), key, value], mask.as_ref(), &Pass::eval());
        let repeat = |x: &Tensor<4>| {
            let heads = (0..6).map(|head| x.clone().narrow(2, head / 3, 1)).collect();
            Tensor::cat(heads, 2)
        };
        let repeated = run(repeat(&key), repeat(&value));
        assert!((run(key, value) - repeated).abs().max().into_scalar::<f32>() < testing::tolerance(1e-6));
    }

    #[test]
    fn tracked_softmax_equals_the_plain_one() {
        let device = testing::device();
        let data = || TensorData::new(init::normal(1, "x", 12, 5.0), [3, 4]);
        let plain = softmax(Tensor::<2>::from_data(data(), &device));
        let tracked = softmax(Tensor::<2>::from_data(data(), &device.autodiff()).require_grad());
        assert!((plain - tracked.inner()).abs().max().into_scalar::<f32>() < testing::tolerance(1e-6));
    }
}
