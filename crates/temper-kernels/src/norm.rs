//! Normalisation over the last dimension.

#[cfg(feature = "cube")]
mod gpu;
mod lane;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::portable::Float;
use crate::product::{Begin, ProductOps, Reader};
use crate::sum::Place;

/// `y = x / √(mean(x²) + eps) · (offset + weight)` (Zhang & Sennrich 2019, arXiv:1910.07467), as a `reader`
/// takes it. Keeps `x` for the backward pass.
///
/// # Shapes
///
/// - x, result: `[..., D]`
/// - weight: `[D]`
///
/// # Panics
///
/// When they have not these shapes.
pub fn rms_norm<const R: usize>(x: Tensor<R>, weight: Tensor<1>, offset: f64, eps: f64, reader: Reader) -> Tensor<R> {
    assert_eq!(x.dims()[R - 1], weight.dims()[0], "the weight of a norm");
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    let form = Form { centered: false, offset, eps, reader };
    Tensor::from_dispatch(<Dispatch as NormOps>::norm_by_scale(x, weight, form))
}

/// `y = (x - mean) / √(var + eps) · weight + bias` with the biased variance (Ba et al. 2016, arXiv:1607.06450). Keeps `x`
/// for the backward pass.
///
/// # Shapes
///
/// - x, result: `[..., D]`
/// - weight, bias: `[D]`
///
/// # Panics
///
/// When they have not these shapes.
pub fn layer_norm<const R: usize>(x: Tensor<R>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<R> {
    let width = x.dims()[R - 1];
    assert_eq!([width; 2], [weight.dims()[0], bias.dims()[0]], "the weight and the bias of a norm");
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    let form = Form { centered: true, offset: 0.0, eps, reader: Reader::Anyone };
    Tensor::from_dispatch(<Dispatch as NormOps>::norm_by_moments(x, weight, bias, form))
}

/// Which norm it is.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Whether the mean is taken off.
    centered: bool,
    /// Added to the weight.
    offset: f64,
    /// Added to the mean of squares.
    eps: f64,
    /// Who reads the result.
    reader: Reader,
}

/// The extension behind [`rms_norm`] and [`layer_norm`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait NormOps: ProductOps {
    /// Without a mean to take off, and without a bias.
    fn norm_by_scale(x: FloatTensor<Self>, weight: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        portable::<Self>(Float(x), Float(weight), None, form).0
    }

    /// With both.
    fn norm_by_moments(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        portable::<Self>(Float(x), Float(weight), Some(Float(bias)), form).0
    }

    /// The gradient of x, added to what there is `before`.
    fn norm_backward(
        #[extension_type] before: Begin<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        portable_backward::<Self>(before.sum(), Float(x), Float(weight), Float(grad), form)
    }

    /// The gradients of weight and bias.
    fn norm_backward_weight(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable_backward_weight::<Self>(Float(x), Float(grad), form)
    }
}

/// x̂ and 1/√(… + eps), with the last dimension of x.
fn normalised<B: Backend>(x: Float<B>, form: Form) -> (Float<B>, Float<B>) {
    let x = if form.centered { x.clone() - x.mean_last() } else { x };
    let scale = (x.clone() * x.clone()).mean_last().shift(form.eps).rsqrt();
    (x * scale.clone(), scale)
}

fn portable<B: ProductOps>(x: Float<B>, weight: Float<B>, bias: Option<Float<B>>, form: Form) -> Float<B> {
    let rank = x.shape().len();
    let y = normalised(x, form).0 * weight.shift(form.offset).along_last(rank);
    let y = match bias {
        None => y,
        Some(bias) => y + bias.along_last(rank),
    };
    Float(form.reader.take::<B>(y.0))
}

/// With g = dy·w: dx = (g - x̂·mean(g·x̂) [- mean(g)]) / √(… + eps).
fn portable_backward<B: ProductOps>(
    before: Option<FloatTensor<B>>,
    x: Float<B>,
    weight: Float<B>,
    grad: Float<B>,
    form: Form,
) -> FloatTensor<B> {
    let rank = x.shape().len();
    let (normed, scale) = normalised(x, form);
    let g = grad * weight.shift(form.offset).along_last(rank);
    let along = (g.clone() * normed.clone()).mean_last();
    let g = if form.centered { g.clone() - g.mean_last() } else { g };
    let of_x = (g - normed * along) * scale;
    before.map_or(of_x.clone().0, |before| B::plus(before, of_x.0))
}

fn portable_backward_weight<B: Backend>(x: Float<B>, grad: Float<B>, form: Form) -> (FloatTensor<B>, FloatTensor<B>) {
    let shape = x.shape();
    let width = shape[shape.len() - 1];
    let flat = [shape.iter().product::<usize>() / width.max(1), width];
    let (x, grad) = (x.reshape(&flat), grad.reshape(&flat));
    let weight = (normalised(x, form).0 * grad.clone()).sum(0).reshape(&[width]);
    (weight.0, grad.sum(0).reshape(&[width]).0)
}

#[derive(Debug)]
struct Step;

/// Parents: x, weight, and bias if there is one.
impl<B: NormOps, const N: usize> Backward<B, N> for Step {
    /// x, weight.
    type State = ([B::FloatTensorPrimitive; 2], Form);
    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let of_x = Place::<B>::of(&ops, 0, grads);
        let ([x, weight], form) = ops.state;
        let affine: Vec<_> = ops.parents.into_iter().skip(1).collect();
        if affine.iter().any(Option::is_some) {
            let (of_weight, of_bias) = B::norm_backward_weight(x.clone(), grad.clone(), form);
            for (node, grad) in affine.into_iter().zip([of_weight, of_bias]) {
                if let Some(node) = node {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
        if let Some(place) = of_x {
            place.fill_from(grads, |before| B::norm_backward(before.into(), x, weight, grad, form));
        }
    }
}

impl<B: NormOps, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
    fn norm_by_scale(x: FloatTensor<Self>, weight: FloatTensor<Self>, form: Form) -> FloatTensor<Self> {
        let ((x, of_x), (weight, of_weight)) = (x.into_parts(), weight.into_parts());
        let y = B::norm_by_scale(x.clone(), weight.clone(), form);
        match Step.prepare::<C>([of_x, of_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([x, weight], form), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn norm_by_moments(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        let [(x, of_x), (weight, of_weight), (bias, of_bias)] = [x, weight, bias].map(|x| x.into_parts());
        let y = B::norm_by_moments(x.clone(), weight.clone(), bias, form);
        match Step.prepare::<C>([of_x, of_weight, of_bias]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([x, weight], form), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backward, close, device, values, vec_of};

    /// The formulas, step by step.
    fn reference(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<2>>) -> Tensor<2> {
        let x = if bias.is_some() { x.clone() - x.mean_dim(1) } else { x };
        let variance = (x.clone() * x.clone()).mean_dim(1);
        let y = x / (variance + 1e-5).sqrt() * weight;
        bias.into_iter().fold(y, |y, bias| y + bias)
    }

    #[test]
    fn values_and_gradients_equal_the_steps() {
        for [rows, width] in [[1, 1], [3, 5], [130, 300]] {
            let inputs = || [values(1, [rows, width], 2.0), values(2, [1, width], 1.0), values(3, [1, width], 1.0)];
            let own = backward(inputs(), |[x, weight, bias]| {
                layer_norm(x, weight.reshape([width]), bias.reshape([width]), 1e-5)
            });
            close(&own, &backward(inputs(), |[x, weight, bias]| reference(x, weight, Some(bias))), 5e-6);
            let inputs = || [values(1, [rows, width], 2.0), values(2, [1, width], 1.0)];
            let own = backward(inputs(), |[x, weight]| rms_norm(x, weight.reshape([width]), 1.0, 1e-5, Reader::Anyone));
            close(&own, &backward(inputs(), |[x, weight]| reference(x, weight + 1.0, None)), 5e-6);
        }
    }

    #[test]
    fn frozen_weights_get_no_gradient_and_nan_stays() {
        let device = device().autodiff();
        let weight = values(2, [5], 1.0).tensor(&device);
        let x = values(1, [3, 5], 1.0).tensor(&device).require_grad();
        let gradients = rms_norm(x.clone(), weight.clone(), 0.0, 1e-6, Reader::Anyone).sum().backward();
        assert!(x.grad(&gradients).is_some() && weight.grad(&gradients).is_none());
        let x = Tensor::<2>::from_floats([[f32::NAN, 1.0, 1.0, 1.0, 1.0]], &device);
        assert!(vec_of(rms_norm(x, weight, 0.0, 1e-6, Reader::Anyone).inner())[1].is_nan());
    }
}
