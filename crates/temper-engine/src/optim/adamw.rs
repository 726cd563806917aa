//! AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), as `torch.optim.AdamW`; with moments in 8 bits as
//! `bitsandbytes.optim.AdamW8bit` (Dettmers et al. 2022, arXiv:2110.02861).

use burn::tensor::Tensor;
use temper_kernels::Format;

use super::{Kept, Update};

const MEAN: &str = "exp_avg";
const SQUARE: &str = "exp_avg_sq";

/// `m ← β₁m + (1-β₁)g`, `v ← β₂v + (1-β₂)g²`, `p ← (1-lr·λ)p - lr · m̂ / (√v̂ + ε)`, where `m̂` and `v̂` are divided by
/// `1 - βᵗ`.
pub(super) struct AdamW {
    pub betas: [f64; 2],
    pub eps: f64,
    /// Whether moments are kept in 8 bits.
    pub coded: bool,
}

/// Moments of fewer values stay f32.
const CODED_FROM: usize = 4096;

impl AdamW {
    /// What is kept of a parameter of so many values.
    pub fn slots(&self, count: usize) -> Vec<Kept> {
        let format = |format| (self.coded && count >= CODED_FROM).then_some(format);
        [(MEAN, format(Format::Dynamic)), (SQUARE, format(Format::DynamicUnsigned))]
            .map(|(name, format)| Kept { name, count, format })
            .into()
    }

    pub fn update(&self, param: Tensor<1>, gradient: Tensor<1>, update: &mut Update) -> Tensor<1> {
        let [beta1, beta2] = self.betas;
        let count = update.state.updates as f64;
        let step_size = update.lr / (1.0 - beta1.powf(count));
        let root_correction = (1.0 - beta2.powf(count)).sqrt();

        let mean = decayed_sum(update.take(MEAN), beta1, gradient.clone());
        let square = decayed_sum(update.take(SQUARE), beta2, gradient.square());
        let root = square.clone().sqrt().div_scalar(root_correction).add_scalar(self.eps);
        let param = param.mul_scalar(update.keep) - (mean.clone() / root).mul_scalar(step_size);
        for (kept, value) in self.slots(param.dims()[0]).into_iter().zip([mean, square]) {
            match kept.format {
                None => update.put(kept.name, value),
                Some(format) => update.put_coded(kept.name, value, format),
            }
        }
        param
    }
}

fn decayed_sum(old: Option<Tensor<1>>, beta: f64, new: Tensor<1>) -> Tensor<1> {
    let new = new.mul_scalar(1.0 - beta);
    match old {
        Some(old) => old.mul_scalar(beta) + new,
        None => new,
    }
}
