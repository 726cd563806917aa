//! Activation functions by Hugging Face's names, alone and as gates (Shazeer 2020, arXiv:2002.05202).

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::portable::Float;
use crate::product::{ProductOps, Reader};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// x/2·(1 + tanh u) = x·σ(2u) with 2u = `TWICE`·(x + `CUBIC`·x³).
const TWICE: f64 = 2.0 * 0.797_884_560_802_865_4; // 2·√(2/π)
const CUBIC: f64 = 0.044_715;
/// 1/√(2π), the density of the normal distribution at 0.
const DENSITY: f64 = 0.398_942_280_401_432_7;

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

    /// Applies the function to each element. Keeps `x` for the backward pass.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        Tensor::from_dispatch(<Dispatch as ActivationOps>::activate(x.into_dispatch(), self))
    }

    /// `act(gate) · up`, element by element. Keeps `gate` and `up` for the backward pass.
    ///
    /// # Panics
    ///
    /// When their shapes differ.
    pub fn gated<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        assert_eq!(gate.dims(), up.dims(), "a gate and what it gates");
        let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
        Tensor::from_dispatch(<Dispatch as ActivationOps>::gated(gate, up, self, Reader::Anyone))
    }

    /// The function, and its derivative.
    fn portable<B: Backend>(self, x: Float<B>) -> (Float<B>, Float<B>) {
        match self {
            Self::Gelu => {
                let below = x.clone().scale(std::f64::consts::FRAC_1_SQRT_2).erf().shift(1.0).scale(0.5);
                let density = (x.clone() * x.clone()).scale(-0.5).exp().scale(DENSITY);
                (x.clone() * below.clone(), below + x * density)
            }
            Self::GeluTanh => {
                let square = x.clone() * x.clone();
                let inner = square.clone().scale(CUBIC * TWICE).shift(TWICE) * x.clone();
                let gate = inner.sigmoid();
                let y = x * gate.clone();
                let slope = square.scale(3.0 * CUBIC * TWICE).shift(TWICE);
                (y.clone(), gate.clone() + y * (-gate).shift(1.0) * slope)
            }
            Self::Relu => {
                let y = Float::<B>(B::relu(x.0));
                let ones = y.zeros_like().shift(1.0);
                let slope = Float(B::relu_backward(y.clone().0, ones.0));
                (y, slope)
            }
            Self::Silu => {
                let gate = x.clone().sigmoid();
                let y = x * gate.clone();
                (y.clone(), gate.clone() + y * (-gate).shift(1.0))
            }
            Self::Tanh => {
                let y = x.tanh();
                (y.clone(), (-(y.clone() * y)).shift(1.0))
            }
        }
    }
}

impl Activation {
    /// The gradients of gate and up.
    fn portable_gated_backward<B: Backend>(
        self,
        gate: FloatTensor<B>,
        up: FloatTensor<B>,
        grad: FloatTensor<B>,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let (y, slope) = self.portable::<B>(Float(gate));
        let grad = Float(grad);
        ((grad.clone() * Float(up) * slope).0, (grad * y).0)
    }
}

/// The extension behind [`Activation`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait ActivationOps: ProductOps {
    /// `act(x)`.
    fn activate(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        kind.portable::<Self>(Float(x)).0.0
    }

    /// The gradient of x.
    fn activate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        (Float::<Self>(grad) * kind.portable::<Self>(Float(x)).1).0
    }

    /// `act(gate)·up` of what is in one dtype, f32 or as it is [kept](ProductOps::kept), as a `reader` takes it.
    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Activation, reader: Reader) -> FloatTensor<Self> {
        reader.take::<Self>((kind.portable::<Self>(Float(gate)).0 * Float(up)).0)
    }

    /// The same, and gate and up as they are kept.
    fn gated_kept(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Activation,
        reader: Reader,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        (Self::gated(gate.clone(), up.clone(), kind, reader), Self::kept(gate), Self::kept(up))
    }

    /// The gradients of gate and up, which come as they were kept, as a `reader` takes them.
    fn gated_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: Activation,
        reader: Reader,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (of_gate, of_up) = kind.portable_gated_backward::<Self>(gate, up, grad);
        (reader.take::<Self>(of_gate), reader.take::<Self>(of_up))
    }
}

#[cfg(feature = "cube")]
#[allow(unstable_name_collisions)]
mod gpu;

impl<B: ActivationOps, C: CheckpointStrategy> ActivationOps for Autodiff<B, C> {
    fn activate(x: FloatTensor<Self>, kind: Activation) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ActivationOps> Backward<B, 1> for Step {
            type State = (B::FloatTensorPrimitive, Activation);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (x, kind) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::activate_backward(x, grad, kind));
            }
        }
        let (x, node) = x.into_parts();
        let y = B::activate(x.clone(), kind);
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, kind), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Activation, reader: Reader) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ActivationOps> Backward<B, 2> for Step {
            type State = (B::FloatTensorPrimitive, B::FloatTensorPrimitive, Activation);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (gate, up, kind) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let (of_gate, of_up) = B::gated_backward(gate, up, grad, kind, Reader::Anyone);
                for (parent, grad) in ops.parents.into_iter().zip([of_gate, of_up]) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let ((gate, of_gate), (up, of_up)) = (gate.into_parts(), up.into_parts());
        match Step.prepare::<C>([of_gate, of_up]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, gate, up) = B::gated_kept(gate, up, kind, reader);
                prep.finish((gate, up, kind), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated(gate, up, kind, reader)),
        }
    }
}

mod lane;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{backward, close, device, values};
    use burn::tensor::activation;

    const ALL: [Activation; 5] =
        [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh];

    /// burn's own operations, step by step.
    fn reference(kind: Activation, x: Tensor<2>) -> Tensor<2> {
        match kind {
            // burn's own backward pass of GELU is that of the tanh approximation on some backends.
            Activation::Gelu => x.clone() * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5,
            Activation::GeluTanh => {
                let inner = (x.clone() + x.clone().powi_scalar(3) * CUBIC) * (TWICE / 2.0);
                x * (inner.tanh() + 1.0) * 0.5
            }
            Activation::Relu => activation::relu(x),
            Activation::Silu => activation::silu(x),
            Activation::Tanh => x.tanh(),
        }
    }

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
            let y = Activation::named(name).unwrap().forward(Tensor::<1>::from_floats(x, &device()));
            let y: Vec<f32> = y.try_into_vec_as().unwrap();
            assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{name}: {y:?}");
        }
        assert!(Activation::NAMES.iter().all(|name| Activation::named(name).is_some()));
    }

    #[test]
    fn values_and_gradients_equal_the_steps() {
        // Long enough for several chunks, and a last one that is not full.
        for shape in [[3, 5], [211, 173]] {
            let inputs = || [values(1, shape, 2.0), values(2, shape, 1.0)];
            for kind in ALL {
                let own = backward(inputs(), |[gate, up]| kind.gated(gate, up));
                let steps = backward(inputs(), |[gate, up]| reference(kind, gate) * up);
                close(&own, &steps, 2e-6);
                let own = backward(inputs(), |[x, up]| kind.forward(x) * up);
                close(&own, &steps, 2e-6);
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for kind in ALL {
            let x = Tensor::<1>::from_floats([f32::NAN, 1.0], &device());
            let y: Vec<f32> = kind.forward(x).try_into_vec_as().unwrap();
            assert!(y[0].is_nan() && y[1].is_finite(), "{kind:?}: {y:?}");
        }
    }
}
