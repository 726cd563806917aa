//! Activation functions by Hugging Face's names.

use burn::tensor::{Tensor, activation};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `gelu`: x·Φ(x) with the error function (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`: its approximation with tanh.
    GeluTanh,
    /// `relu`.
    Relu,
    /// `silu`, `swish`.
    Silu,
    /// `tanh`.
    Tanh,
}

impl Activation {
    /// The names that [`Activation::named`] knows.
    pub const NAMES: [&str; 8] =
        ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu", "swish", "tanh"];

    /// The function that Hugging Face calls `name` in `hidden_act`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            _ => return None,
        })
    }

    /// Applies the function to each element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => {
                // x/2·(1 + tanh u) = x·σ(2u) with u = √(2/π)·(x + 0.044715 x³)
                let twice = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let inner = (x.clone() * x.clone()).mul_scalar(0.044715 * twice).add_scalar(twice) * x.clone();
                activation::sigmoid(inner) * x
            }
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
            Self::Tanh => activation::tanh(x),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use temper_device::testing;

    #[test]
    fn values_equal_pytorch() {
        let x = [-3.0_f32, -1.0, 0.5, 2.0];
        for (name, expected) in [
            ("gelu", [-0.004_049_7, -0.158_655_3, 0.345_731_2, 1.954_499_7]),
            ("gelu_new", [-0.003_637_4, -0.158_808, 0.345_714, 1.954_597_7]),
            ("relu", [0.0, 0.0, 0.5, 2.0]),
            ("silu", [-0.142_277_6, -0.268_941_4, 0.311_229_7, 1.761_594_2]),
            ("tanh", [-0.995_054_8, -0.761_594_2, 0.462_117_2, 0.964_027_6]),
        ] {
            let y = Activation::named(name).unwrap().forward(Tensor::<1>::from_floats(x, &testing::device()));
            let y: Vec<f32> = y.try_into_vec_as().unwrap();
            assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{name}: {y:?}");
        }
        assert!(Activation::NAMES.iter().all(|name| Activation::named(name).is_some()));
    }
}
