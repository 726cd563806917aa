//! Low-rank adapters on a linear layer: LoRA and DoRA.
//!
//! LoRA (Hu et al. 2021, arXiv:2106.09685): `y = x Wᵀ + s · (x Aᵀ) Bᵀ` with A `[r, in]`, B `[out, r]`, s = alpha/r, or
//! alpha/√r with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).
//! DoRA (Liu et al. 2024, arXiv:2402.09353): `y = m/‖W + sBA‖ · x (W + sBA)ᵀ` with a norm for each output row, which
//! receives no gradient (section 4.3 of the paper, and PEFT's `tuners/lora/dora.py`).
//!
//! Shapes: T tokens, r rank.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Tensor, TensorData};

use temper_kernels::{Weight, linear, lora_product, matmul};

use crate::{Held, init};

/// The trained factors of one linear layer.
#[derive(Module, Debug)]
pub struct Adapter {
    /// A `[r, in]`, drawn from U(-1/√in, 1/√in), which is Kaiming's rule with a = √5.
    pub lora_a: Param<Tensor<2>>,
    /// B `[out, r]`, zeros at first, so that a new adapter changes nothing.
    pub lora_b: Param<Tensor<2>>,
    /// DoRA's m `[out]`, at first the norms of W's rows. Absent in LoRA.
    pub magnitude: Option<Param<Tensor<1>>>,
    /// The factor s.
    pub scaling: f64,
    /// The dropout probability on the adapter's input; the layer applies it.
    pub dropout: f64,
}

/// The numbers of a new adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The rank r.
    pub rank: usize,
    /// The factor s on the update.
    pub scaling: f64,
    /// The dropout probability on the adapter's input.
    pub dropout: f64,
    /// Whether it is DoRA.
    pub dora: bool,
    /// The seed of A.
    pub seed: u64,
}

impl Adapter {
    /// A new adapter for the layer at `path` with the given `weight`, on the weight's device. Nothing is allocated before it
    /// is used. DoRA's magnitude is taken from `weight`, which must therefore be loaded before.
    pub fn new(spec: &Spec, path: &str, weight: &Held, fan_in_fan_out: bool) -> Self {
        let [outputs, inputs] = weight.widths(fan_in_fan_out);
        let (rank, seed, device) = (spec.rank, spec.seed, weight.device());
        let name = format!("{path}.lora_a");
        let lora_a = Param::uninitialized(
            ParamId::new(),
            move |device, require_grad| {
                let values = init::uniform(seed, &name, rank * inputs, 1.0 / (inputs as f64).sqrt());
                let a = Tensor::from_data(TensorData::new(values, [rank, inputs]), (device, DType::F32));
                if require_grad { a.require_grad() } else { a }
            },
            device.clone(),
            true,
            [rank, inputs].into(),
        );
        let lora_b = Param::uninitialized(
            ParamId::new(),
            move |device, require_grad| {
                let b = Tensor::zeros([outputs, rank], (device, DType::F32));
                if require_grad { b.require_grad() } else { b }
            },
            device.clone(),
            true,
            [outputs, rank].into(),
        );
        let base = weight.clone();
        let magnitude = spec.dora.then(|| {
            Param::uninitialized(
                ParamId::new(),
                move |device, require_grad| {
                    let weight = base.value(fan_in_fan_out).dense().inner();
                    let norms = row_squares(weight).sqrt().reshape([outputs]);
                    let norms = if device.is_autodiff() { Tensor::from_inner(norms) } else { norms };
                    if require_grad { norms.require_grad() } else { norms }
                },
                device,
                true,
                [outputs].into(),
            )
        });
        Self { lora_a, lora_b, magnitude, scaling: spec.scaling, dropout: spec.dropout }
    }

    /// The layer's output without its bias. `dropped` is `x` after dropout, if there was any. As in PEFT, DoRA then scales
    /// the frozen product of the dropped input.
    ///
    /// No gradient of W's shape is made unless W trains: it enters only products.
    ///
    /// # Shapes
    ///
    /// - x, dropped: `[T, in]`
    /// - weight: `[out, in]`
    /// - result: `[T, out]`
    pub fn forward(&self, x: Tensor<2>, dropped: Option<Tensor<2>>, weight: Weight) -> Tensor<2> {
        let factors = || [self.lora_a.val(), self.lora_b.val()];
        match (self.dora_scale(&weight), dropped) {
            (None, None) => lora_product(x, weight, factors(), self.scaling),
            (None, Some(dropped)) => linear(x, weight) + self.update(dropped),
            (Some(scale), None) => lora_product(x, weight, factors(), self.scaling) * scale,
            (Some(scale), Some(dropped)) => {
                let frozen = linear(dropped.clone(), weight.clone());
                linear(x, weight) - frozen.clone() + (frozen + self.update(dropped)) * scale
            }
        }
    }

    /// A, B and s, if they are all that there is: not in DoRA.
    pub fn factors(&self) -> Option<([Tensor<2>; 2], f64)> {
        self.magnitude.is_none().then(|| ([self.lora_a.val(), self.lora_b.val()], self.scaling))
    }

    /// The dense update s·B·A `[out, in]`. For merging; training never makes it.
    pub fn delta_weight(&self) -> Tensor<2> {
        matmul(self.lora_b.val(), self.lora_a.val()).mul_scalar(self.scaling)
    }

    /// The weight `[out, in]` of the plain layer that computes what the adapted layer computes.
    pub fn merged_weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let merged = weight.clone() + self.delta_weight();
        match self.dora_scale(&Weight::Dense(weight)) {
            None => merged,
            Some(scale) => merged * scale.transpose(),
        }
    }

    /// s·(x Aᵀ) Bᵀ as two thin products, scaled where it is thinnest.
    fn update(&self, x: Tensor<2>) -> Tensor<2> {
        let thin = matmul(x, self.lora_a.val().transpose()).mul_scalar(self.scaling);
        matmul(thin, self.lora_b.val().transpose())
    }

    /// m/‖W + sBA‖ `[1, out]`. The norm comes from thin products on the plain device, so it has no gradient:
    /// ‖W + sBA‖² = ‖W‖² + 2s⟨W, BA⟩ + s²‖BA‖², with ⟨W, BA⟩ = rows of B ∘ (W Aᵀ) and ‖BA‖² = rows of B ∘ (B A Aᵀ).
    fn dora_scale(&self, weight: &Weight) -> Option<Tensor<2>> {
        let magnitude = self.magnitude.as_ref()?;
        let (w, a, b) = (weight.clone().dense().inner(), self.lora_a.val().inner(), self.lora_b.val().inner());
        let cross = matmul(w.clone(), a.clone().transpose()).mul_scalar(2.0 * self.scaling);
        let own = matmul(b.clone(), matmul(a.clone(), a.transpose())).mul_scalar(self.scaling * self.scaling);
        let norm = (row_squares(w) + ((cross + own) * b).sum_dim(1)).sqrt();
        Some(magnitude.val().unsqueeze::<2>() * norm.recip().transpose())
    }
}

/// The sum of squares of each row, `[rows, 1]`.
fn row_squares(matrix: Tensor<2>) -> Tensor<2> {
    (matrix.clone() * matrix).sum_dim(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use temper_device::testing;

    fn weight(device: &Device) -> Held {
        let values = init::normal(3, "w", 12 * 8, 1.0);
        let weight = Tensor::from_data(TensorData::new(values, [12, 8]), device);
        Held::Dense(Param::from_tensor(weight).set_require_grad(false))
    }

    fn adapter(dora: bool, device: &Device) -> Adapter {
        let spec = Spec { rank: 2, scaling: 1.5, dropout: 0.0, dora, seed: 1 };
        let mut adapter = Adapter::new(&spec, "layer", &weight(device), false);
        if dora {
            adapter.magnitude.as_ref().unwrap().val(); // taken before B moves
        }
        let b = Tensor::from_data(TensorData::new(init::normal(5, "b", 24, 0.5), [12, 2]), device);
        adapter.lora_b = Param::from_tensor(b);
        adapter
    }

    fn max_difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    #[test]
    fn a_new_adapter_changes_nothing_and_allocates_late() {
        let device = testing::device();
        let w = weight(&device);
        for dora in [false, true] {
            let spec = Spec { rank: 2, scaling: 2.0, dropout: 0.0, dora, seed: 1 };
            let adapter = Adapter::new(&spec, "layer", &w, false);
            assert!(!adapter.lora_a.is_initialized() && !adapter.lora_b.is_initialized());
            let x = Tensor::from_data(TensorData::new(init::normal(9, "x", 5 * 8, 1.0), [5, 8]), &device);
            let base = linear(x.clone(), w.value(false));
            assert!(max_difference(adapter.forward(x, None, w.value(false)), base) < testing::tolerance(1e-5));
            let a: Vec<f32> = adapter.lora_a.val().try_into_vec_as().unwrap();
            let bound = 1.0 / 8_f32.sqrt();
            assert!(a.iter().all(|v| v.abs() <= bound) && a.iter().any(|v| v.abs() > bound / 2.0));
        }
    }

    #[test]
    fn merged_equals_unmerged() {
        let device = testing::device();
        let w = weight(&device);
        for dora in [false, true] {
            let adapter = adapter(dora, &device);
            let x = Tensor::from_data(TensorData::new(init::normal(9, "x", 5 * 8, 1.0), [5, 8]), &device);
            let base = linear(x.clone(), w.value(false));
            let adapted = adapter.forward(x.clone(), None, w.value(false));
            let merged = matmul(x, adapter.merged_weight(w.value(false).dense()).transpose());
            assert!(max_difference(adapted.clone(), base) > 0.1);
            assert!(max_difference(adapted, merged) < testing::tolerance(1e-5));
        }
    }

    #[test]
    fn dora_norm_equals_the_dense_norm() {
        let device = testing::device();
        let (adapter, w) = (adapter(true, &device), weight(&device));
        let dense = row_squares(w.value(false).dense() + adapter.delta_weight()).sqrt().transpose();
        let expected = adapter.magnitude.as_ref().unwrap().val().unsqueeze::<2>() / dense;
        assert!(max_difference(adapter.dora_scale(&w.value(false)).unwrap(), expected) < testing::tolerance(1e-5));
    }

    #[test]
    fn no_gradient_for_the_frozen_weight() {
        let device = testing::device().autodiff();
        let w = weight(&device);
        for dora in [false, true] {
            let adapter = adapter(dora, &device);
            let x = Tensor::from_data(TensorData::new(init::normal(9, "x", 5 * 8, 1.0), [5, 8]), &device);
            let dropped = x.clone() * 0.5;
            let grads = adapter.forward(x, Some(dropped), w.value(false)).sum().backward();
            assert!(w.value(false).dense().grad(&grads).is_none());
            assert!(adapter.lora_a.val().grad(&grads).is_some() && adapter.lora_b.val().grad(&grads).is_some());
            assert_eq!(adapter.magnitude.as_ref().map(|m| m.val().grad(&grads).is_some()), dora.then_some(true));
        }
    }
}
