//! Stochastic gradient descent, as `torch.optim.SGD`, with decoupled weight decay.

use burn::tensor::Tensor;

use super::Update;

const BUFFER: &str = "momentum_buffer";

/// `b ← μb + g` (the first `b` is `g`), `p ← (1-lr·λ)p - lr · b`.
pub(super) struct Sgd {
    pub momentum: f64,
}

impl Sgd {
    pub fn slots(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &[BUFFER] }
    }

    pub fn update(&self, param: Tensor<1>, gradient: Tensor<1>, update: &mut Update) -> Tensor<1> {
        let gradient = update.scaled(gradient);
        let param = param.mul_scalar(update.keep);
        if self.momentum == 0.0 {
            return param - gradient.mul_scalar(update.lr);
        }
        let buffer = match update.take(BUFFER) {
            Some(buffer) => buffer.mul_scalar(self.momentum) + gradient,
            None => gradient,
        };
        update.put(BUFFER, buffer.clone());
        param - buffer.mul_scalar(update.lr)
    }
}
