//! The linear layer, with or without an adapter.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use temper_kernels::{Format, LinearMap, Weight, add_rows, residual};
use temper_peft::{Adapter, Held, Spec};

use crate::{Pass, dropout, lazy};

/// `y = x Wᵀ + b`, and what the adapter adds to it.
#[derive(Module, Debug)]
pub struct Linear {
    /// W `[out, in]`, as in PyTorch, or Wᵀ if `fan_in_fan_out`; or frozen in few bits.
    pub weight: Held,
    /// b `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The adapter, if the layer has one; W is then usually frozen.
    pub adapter: Option<Adapter>,
    /// Whether the weight is stored `[in, out]`, as by GPT-2's Conv1D. The name is PEFT's.
    pub fan_in_fan_out: bool,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features with a bias; its values are made (as zeros) or loaded later.
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        let bias = Some(lazy([outputs], 0.0, device));
        Self { bias, ..Self::without_bias(inputs, outputs, device) }
    }

    /// The same without a bias.
    pub fn without_bias(inputs: usize, outputs: usize, device: &Device) -> Self {
        let weight = Held::Dense(lazy([outputs, inputs], 0.0, device));
        Self { weight, bias: None, adapter: None, fan_in_fan_out: false }
    }

    /// The same with a bias and the weight stored `[in, out]`: Transformers' `Conv1D`.
    pub fn conv1d(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            weight: Held::Dense(lazy([inputs, outputs], 0.0, device)),
            fan_in_fan_out: true,
            ..Self::new(inputs, outputs, device)
        }
    }

    /// W `[out, in]`, however it is held.
    pub fn matrix(&self) -> Weight {
        self.weight.value(self.fan_in_fan_out)
    }

    /// Freezes W in few bits; `values` are those of the parameter, row by row.
    pub fn quantize(&mut self, values: Vec<f32>, format: Format) {
        self.weight = self.weight.quantized(values, self.fan_in_fan_out, format);
    }

    /// Puts a new adapter on the layer; its values follow from `spec` and `path`. W must be loaded before, because DoRA
    /// begins from it.
    pub fn adapt(&mut self, spec: &Spec, path: &str) {
        self.adapter = Some(Adapter::new(spec, path, &self.weight, self.fan_in_fan_out));
    }

    /// Applies the layer to the last dimension. The product is always that of two matrices `[T, in]` and `[in, out]`:
    /// burn would otherwise repeat the weight, and its gradient, for each batch row.
    ///
    /// # Shapes
    ///
    /// - x: `[..., in]`
    /// - result: `[..., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>, pass: &Pass) -> Tensor<D> {
        let mut shape = x.dims();
        let x = shaped(x, [shape[..D - 1].iter().product(), shape[D - 1]]);
        let [outputs, _] = self.weight.widths(self.fan_in_fan_out);
        let bias = self.bias.as_ref().map(Param::val);
        let y = match self.products(pass) {
            Ok(map) => map.forward(x, bias),
            Err(adapter) => {
                let dropped = pass.drops(adapter.dropout).then(|| dropout(x.clone(), adapter.dropout, pass));
                let y = adapter.forward(x, dropped, self.matrix());
                bias.into_iter().fold(y, add_rows)
            }
        };
        shape[D - 1] = outputs;
        shaped(y, shape)
    }

    /// The layer before a rotation or [attention](crate::Attention), of `[T, in]`: as [`LinearMap::kept`] gives it, where it is
    /// products alone.
    pub fn before_attention(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        match self.products(pass) {
            Ok(map) => map.kept(x, self.bias.as_ref().map(Param::val)),
            Err(_) => self.forward(x, pass),
        }
    }

    /// The layer after [attention](crate::Attention), of `[T, in]`, added to `sum`.
    pub fn after_attention(&self, sum: Tensor<2>, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        match self.as_map(pass) {
            Some(map) => map.onto(sum, x),
            None => residual(sum, self.forward(x, pass)),
        }
    }

    /// The layer as products alone, if it is that in this pass: without a bias, dropout, or DoRA.
    pub fn as_map(&self, pass: &Pass) -> Option<LinearMap> {
        self.products(pass).ok().filter(|_| self.bias.is_none())
    }

    /// The same but for its bias, or the adapter that is more than products.
    fn products(&self, pass: &Pass) -> Result<LinearMap, &Adapter> {
        let factors = |adapter: &Adapter| adapter.factors().filter(|_| !pass.drops(adapter.dropout));
        let adapter = self.adapter.as_ref().map(|adapter| factors(adapter).ok_or(adapter)).transpose()?;
        Ok(LinearMap { weight: self.matrix(), adapter })
    }

    /// Puts the adapter's update into the weight and drops the adapter. The weight becomes a frozen parameter, also where there
    /// was no adapter and it was kept in few bits.
    pub fn merge(&mut self) {
        let adapter = self.adapter.take();
        if adapter.is_none() && matches!(self.weight, Held::Dense(_)) {
            return;
        }
        let weight = self.matrix().dense();
        let merged = adapter.map_or(weight.clone(), |adapter| adapter.merged_weight(weight)).detach();
        let merged = if self.fan_in_fan_out { merged.transpose() } else { merged };
        self.weight = Held::Dense(Param::from_tensor(merged).set_require_grad(false));
    }
}

/// `x` in another shape; in its own it is the tensor itself, so that what several layers send back to it meets there.
fn shaped<const D: usize, const E: usize>(x: Tensor<D>, shape: [usize; E]) -> Tensor<E> {
    if x.dims().as_slice() == shape { Tensor::from_dispatch(x.into_dispatch()) } else { x.reshape(shape) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use temper_device::testing;
    use temper_peft::init;

    fn tensor<const D: usize>(shape: [usize; D], name: &str, device: &Device) -> Tensor<D> {
        let values = init::normal(1, name, shape.iter().product(), 1.0);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn layer(conv1d: bool, dora: bool, dropout: f64, device: &Device) -> Linear {
        let mut layer = if conv1d { Linear::conv1d(8, 6, device) } else { Linear::new(8, 6, device) };
        let weight = tensor([6, 8], "w", device);
        let weight = if conv1d { weight.transpose() } else { weight };
        layer.weight = Held::Dense(Param::from_tensor(weight).set_require_grad(false));
        layer.bias = Some(Param::from_tensor(tensor([6], "b", device)).set_require_grad(false));
        let spec = Spec { rank: 2, scaling: 1.5, dropout, dora, seed: 1 };
        layer.adapt(&spec, "layer");
        let adapter = layer.adapter.as_mut().unwrap();
        adapter.magnitude = adapter.magnitude.take().map(|m| Param::from_tensor(m.val().detach() * 1.25));
        adapter.lora_b = Param::from_tensor(tensor([6, 2], "lora_b", device));
        layer
    }

    #[test]
    fn merging_leaves_nothing_in_few_bits() {
        let device = testing::device();
        for (conv1d, adapted) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut layer = layer(conv1d, false, 0.0, &device);
            let values: Vec<f32> = (0..48).map(|i| i as f32).collect();
            layer.quantize(values, Format::Int8);
            layer.adapter = layer.adapter.take().filter(|_| adapted);
            let (x, widths) = (tensor([3, 8], "x", &device), layer.weight.widths(conv1d));
            let before = layer.forward(x.clone(), &Pass::eval());
            layer.merge();
            assert!(matches!(&layer.weight, Held::Dense(weight) if !weight.is_require_grad()));
            assert_eq!(layer.weight.widths(conv1d), widths);
            let largest = before.clone().abs().max().into_scalar::<f32>();
            let difference = (before - layer.forward(x, &Pass::eval())).abs().max().into_scalar::<f32>();
            assert!(difference <= testing::tolerance(1e-6) * largest, "{difference} of {largest}");
        }
    }

    #[test]
    fn merging_keeps_the_output() {
        let device = testing::device();
        let x = || tensor([2, 3, 8], "x", &device);
        for (conv1d, dora) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut layer = layer(conv1d, dora, 0.5, &device);
            let (widths, adapted) = (layer.weight.widths(conv1d), layer.forward(x(), &Pass::eval()));
            layer.merge();
            assert!(layer.adapter.is_none() && layer.weight.widths(conv1d) == widths);
            let merged = layer.forward(x(), &Pass::eval());
            assert!((adapted - merged).abs().max().into_scalar::<f32>() < testing::tolerance(1e-5));
        }
    }

    #[test]
    fn a_weight_may_be_stored_either_way() {
        let device = testing::device();
        for dora in [false, true] {
            let [a, b] = [false, true]
                .map(|conv1d| layer(conv1d, dora, 0.0, &device).forward(tensor([4, 8], "x", &device), &Pass::eval()));
            assert!((a - b).abs().max().into_scalar::<f32>() < testing::tolerance(1e-5));
        }
    }

    #[test]
    fn around_attention_a_layer_is_what_it_is_elsewhere() {
        let device = testing::device();
        let (x, sum) = (tensor([4, 8], "x", &device), tensor([4, 6], "sum", &device));
        for (dora, biased) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut layer = layer(false, dora, 0.0, &device);
            layer.bias = layer.bias.filter(|_| biased);
            let pass = Pass::eval();
            let expected = layer.forward(x.clone(), &pass);
            let before = layer.before_attention(x.clone(), &pass);
            let after = layer.after_attention(sum.clone(), x.clone(), &pass) - sum.clone();
            for found in [before, after] {
                let difference = (found - expected.clone()).abs().max().into_scalar::<f32>();
                assert!(difference < testing::tolerance(1e-5), "{dora} {biased}: {difference}");
            }
        }
    }

    #[test]
    fn adapter_dropout_reaches_the_adapter_alone() {
        let device = testing::device();
        let mut layer = layer(false, false, 0.5, &device);
        let x = tensor([4, 8], "x", &device);
        let [a, b] = [1, 2].map(|seed| layer.forward(x.clone(), &Pass::train(seed)));
        assert!((a - b).abs().max().into_scalar::<f32>() > 1e-3);
        layer.adapter.as_mut().unwrap().lora_b = Param::from_tensor(Tensor::zeros([6, 2], &device));
        let [a, b] = [1, 2].map(|seed| layer.forward(x.clone(), &Pass::train(seed)));
        assert_eq!((a - b).abs().max().into_scalar::<f32>(), 0.0);
    }
}
