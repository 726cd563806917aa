//! The linear layer, with or without an adapter.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use temper_peft::{Adapter, matmul};

use crate::{Pass, dropout, lazy};

/// `y = x Wᵀ + b`, and what the adapter adds to it.
#[derive(Module, Debug)]
pub struct Linear {
    /// W `[out, in]`, as in PyTorch.
    pub weight: Param<Tensor<2>>,
    /// b `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The adapter, if the layer has one; W is then usually frozen.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features with a bias; its values are made (as zeros) or loaded later.
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        let bias = Some(lazy([outputs], 0.0, device));
        Self { weight: lazy([outputs, inputs], 0.0, device), bias, adapter: None }
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
        let [outputs, inputs] = self.weight.lazy_shape().dims();
        let x = x.reshape([shape[..D - 1].iter().product(), inputs]);
        let weight = self.weight.val();
        let y = match &self.adapter {
            None => matmul(x, weight.transpose()),
            Some(adapter) => {
                let base = matmul(x.clone(), weight.clone().transpose());
                let dropped = pass.drops(adapter.dropout).then(|| dropout(x.clone(), adapter.dropout, pass));
                adapter.forward(x, dropped, base, weight)
            }
        };
        let y = match &self.bias {
            None => y,
            Some(bias) => y + bias.val().unsqueeze(),
        };
        shape[D - 1] = outputs;
        y.reshape(shape)
    }

    /// Puts the adapter's update into the weight and drops the adapter. The weight becomes a frozen constant.
    pub fn merge(&mut self) {
        if let Some(adapter) = self.adapter.take() {
            let merged = adapter.merged_weight(self.weight.val()).detach();
            self.weight = Param::from_tensor(merged).set_require_grad(false);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use temper_peft::{Spec, init};

    fn tensor<const D: usize>(shape: [usize; D], name: &str, device: &Device) -> Tensor<D> {
        let values = init::normal(1, name, shape.iter().product(), 1.0);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn layer(dora: bool, dropout: f64, device: &Device) -> Linear {
        let mut layer = Linear::new(8, 6, device);
        layer.weight = Param::from_tensor(tensor([6, 8], "w", device)).set_require_grad(false);
        layer.bias = Some(Param::from_tensor(tensor([6], "b", device)).set_require_grad(false));
        let spec = Spec { rank: 2, scaling: 1.5, dropout, dora, seed: 1 };
        let mut adapter = Adapter::new(&spec, "layer", &layer.weight);
        adapter.magnitude = adapter.magnitude.map(|m| Param::from_tensor(m.val().detach() * 1.25));
        adapter.lora_b = Param::from_tensor(tensor([6, 2], "lora_b", device));
        layer.adapter = Some(adapter);
        layer
    }

    #[test]
    fn merging_keeps_the_output() {
        let device = Device::flex();
        for dora in [false, true] {
            let mut layer = layer(dora, 0.5, &device);
            let x = tensor([2, 3, 8], "x", &device);
            let adapted = layer.forward(x.clone(), &Pass::eval());
            layer.merge();
            assert!(layer.adapter.is_none());
            let merged = layer.forward(x, &Pass::eval());
            assert!((adapted - merged).abs().max().into_scalar::<f32>() < 1e-5);
        }
    }

    #[test]
    fn adapter_dropout_reaches_the_adapter_alone() {
        let device = Device::flex();
        let mut layer = layer(false, 0.5, &device);
        let x = tensor([4, 8], "x", &device);
        let [a, b] = [1, 2].map(|seed| layer.forward(x.clone(), &Pass::train(seed)));
        assert!((a - b).abs().max().into_scalar::<f32>() > 1e-3);
        layer.adapter.as_mut().unwrap().lora_b = Param::from_tensor(Tensor::zeros([6, 2], &device));
        let [a, b] = [1, 2].map(|seed| layer.forward(x.clone(), &Pass::train(seed)));
        assert_eq!((a - b).abs().max().into_scalar::<f32>(), 0.0);
    }
}
