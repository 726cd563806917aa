//! Lion (Chen et al. 2023, arXiv:2302.06675, program 1).

use burn::tensor::Tensor;

use super::Update;

const MEAN: &str = "exp_avg";

/// `p ← (1-lr·λ)p - lr · sign(β₁m + (1-β₁)g)`, then `m ← β₂m + (1-β₂)g`.
pub(super) struct Lion {
    pub betas: [f64; 2],
}

impl Lion {
    pub const SLOTS: &'static [&'static str] = &[MEAN];

    pub fn update(&self, param: Tensor<1>, gradient: Tensor<1>, update: &mut Update) -> Tensor<1> {
        let gradient = update.scaled(gradient);
        let [beta1, beta2] = self.betas;
        let mean = update.take(MEAN).unwrap_or_else(|| gradient.zeros_like());
        let direction = (mean.clone().mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1)).sign();
        update.put(MEAN, mean.mul_scalar(beta2) + gradient.mul_scalar(1.0 - beta2));
        param.mul_scalar(update.keep) - direction.mul_scalar(update.lr)
    }
}
