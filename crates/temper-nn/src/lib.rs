//! What are models written in? Layers, dropout, attention.
//!
//! Legend of all shapes: B batch, S sequence, T = B·S tokens, D model, N heads, K key/value heads, H head dim, V vocabulary.

mod attention;
mod embedding;
mod layout;
mod linear;
mod norm;
mod pass;
mod rotary;

pub use attention::Attention;
pub use embedding::Embedding;
pub use layout::Layout;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use pass::{Pass, dropout};
pub use rotary::{Rotary, Rotation};
pub use temper_kernels::{
    Activation, Activations, Format, Sight, feed_forward, matmul, residual, rounded, row_exponential, scratch,
};

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor};

/// A trainable f32 parameter that is filled with `value` when it is first used, unless it was loaded before.
pub fn lazy<const D: usize>(shape: [usize; D], value: f64, device: &Device) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad: bool| {
        let tensor = Tensor::full(shape, value, (device, DType::F32));
        if require_grad { tensor.require_grad() } else { tensor }
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}
