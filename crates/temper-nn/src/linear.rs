//! The linear layer, with or without an adapter.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use temper_kernels::{add_rows, matmul};
use temper_peft::{Adapter, Spec};

use crate::{Pass, dropout, lazy};

/// `y = x Wᵀ + b`, and what the adapter adds to it.
#[derive(Module, Debug)]
pub struct Linear {
    /// W `[out, in]`, as in PyTorch, or Wᵀ if `fan_in_fan_out`.
    pub weight: Param<Tensor<2>>,
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
        let weight = lazy([outputs, inputs], 0.0, device);
        Self { weight, bias: None, adapter: None, fan_in_fan_out: false }
    }

    /// The same with a bias and the weight stored `[in, out]`: Transformers' `Conv1D`.
    pub fn conv1d(inputs: usize, outputs: usize, device: &Device) -> Self {
        Self {
            weight: lazy([inputs, outputs], 0.0, device),
            fan_in_fan_out: true,
            ..Self::new(inputs, outputs, device)
        }
    }

    /// W `[out, in]`, however it is stored.
    pub fn matrix(&self) -> Tensor<2> {
        self.oriented(self.weight.val())
    }

    /// Between W as it is stored and W `[out, in]`, both ways.
    fn oriented(&self, weight: Tensor<2>) -> Tensor<2> {
        if self.fan_in_fan_out { weight.transpose() } else { weight }
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
        let x = x.reshape([shape[..D - 1].iter().product(), shape[D - 1]]);
        let weight = self.matrix();
        let [outputs, _] = weight.dims();
        let y = match &self.adapter {
            None => matmul(x, weight.transpose()),
            Some(adapter) => {
                let dropped = pass.drops(adapter.dropout).then(|| dropout(x.clone(), adapter.dropout, pass));
                adapter.forward(x, dropped, weight)
            }
        };
        let y = match &self.bias {
            None => y,
            Some(bias) => add_rows(y, bias.val()),
        };
        shape[D - 1] = outputs;
        y.reshape(shape)
    }

    /// Puts the adapter's update into the weight and drops the adapter. The weight becomes a frozen constant.
    pub fn merge(&mut self) {
        if let Some(adapter) = self.adapter.take() {
            let merged = self.oriented(adapter.merged_weight(self.matrix()).detach());
            self.weight = Param::from_tensor(merged).set_require_grad(false);
        }
    }
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
        let weight = layer.oriented(tensor([6, 8], "w", device));
        layer.weight = Param::from_tensor(weight).set_require_grad(false);
        layer.bias = Some(Param::from_tensor(tensor([6], "b", device)).set_require_grad(false));
        let spec = Spec { rank: 2, scaling: 1.5, dropout, dora, seed: 1 };
        layer.adapt(&spec, "layer");
        let adapter = layer.adapter.as_mut().unwrap();
        adapter.magnitude = adapter.magnitude.take().map(|m| Param::from_tensor(m.val().detach() * 1.25));
        adapter.lora_b = Param::from_tensor(tensor([6, 2], "lora_b", device));
        layer
    }

    #[test]
    fn merging_keeps_the_output() {
        let device = testing::device();
        let x = || tensor([2, 3, 8], "x", &device);
        for (conv1d, dora) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut layer = layer(conv1d, dora, 0.5, &device);
            let (shape, adapted) = (layer.weight.lazy_shape(), layer.forward(x(), &Pass::eval()));
            layer.merge();
            assert!(layer.adapter.is_none() && layer.weight.lazy_shape() == shape);
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
