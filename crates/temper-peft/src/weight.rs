//! The weight of a linear layer: a parameter, or frozen in few bits.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use temper_kernels::{Format, Quantized, Weight};

/// W of a linear layer, as the layer holds it.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Held {
    /// A parameter `[out, in]`, or `[in, out]` in a layer with `fan_in_fan_out`.
    Dense(Param<Tensor<2>>),
    /// A constant `[out, in]`, whatever the layer's orientation. It is no parameter: nothing lists, trains or saves it.
    Quantized(Quantized),
}

impl Held {
    /// `[out, in]`.
    pub fn widths(&self, fan_in_fan_out: bool) -> [usize; 2] {
        match self {
            Self::Dense(weight) => {
                let [rows, columns] = weight.lazy_shape().dims();
                if fan_in_fan_out { [columns, rows] } else { [rows, columns] }
            }
            Self::Quantized(weight) => weight.shape(),
        }
    }

    /// Where it is, or will be.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(weight) => weight.lazy_device(),
            Self::Quantized(weight) => weight.device(),
        }
    }

    /// W `[out, in]` for a product.
    pub fn value(&self, fan_in_fan_out: bool) -> Weight {
        match self {
            Self::Dense(weight) if fan_in_fan_out => Weight::Dense(weight.val().transpose()),
            Self::Dense(weight) => Weight::Dense(weight.val()),
            Self::Quantized(weight) => Weight::Quantized(weight.clone()),
        }
    }

    /// The same, frozen in `format`; `values` are those of the parameter, row by row.
    pub fn quantized(&self, mut values: Vec<f32>, fan_in_fan_out: bool, format: Format) -> Self {
        let [outputs, inputs] = self.widths(fan_in_fan_out);
        if fan_in_fan_out {
            let at = |i: usize| values[i % inputs * outputs + i / inputs];
            values = (0..outputs * inputs).map(at).collect();
        }
        Self::Quantized(Quantized::encode(&values, [outputs, inputs], format, &self.device()))
    }
}
