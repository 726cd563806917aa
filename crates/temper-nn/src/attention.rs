//! Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762).

use burn::tensor::Tensor;
use temper_kernels::{Sight, attention};

use crate::Pass;

/// The numbers of an attention; how many heads there are is said by its inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// What queries are multiplied with, as a rule 1/√H; 1 for queries that come scaled.
    pub scale: f64,
    /// The dropout probability on the attention's weights.
    pub dropout: f64,
}

impl Attention {
    /// softmax(scale · q kᵀ) v over the keys in sight; see [`attention`].
    ///
    /// # Shapes
    ///
    /// - query: `[B, S, N, H]`
    /// - key, value: `[B, keys, K, H]`
    /// - result: `[T, N·H]`
    pub fn forward(&self, inputs: [Tensor<4>; 3], sight: &Sight, pass: &Pass) -> Tensor<2> {
        let [batch, sequence, heads, size] = inputs[0].dims();
        let attended = attention(inputs, sight, self.scale, pass.mask(self.dropout));
        attended.reshape([batch * sequence, heads * size])
    }
}
