//! Normalisation over the last dimension.

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

#[cfg(feature = "cube")]
mod gpu {
    use burn::backend::Cube;
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::ir::ElemType;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, all_f32, by_row, cubecl, empty, flat, like, own, total};
    use crate::portable::Float;
    use crate::product::gpu::written_for;

    #[cube(launch_unchecked)]
    fn norm_kernel<O: Numeric>(
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        y: &mut [O],
        rows: usize,
        width: usize,
        offset: f32,
        eps: f32,
        #[comptime] centered: bool,
        #[comptime] units: usize,
        #[define(O)] _output: ElemType,
    ) {
        if CUBE_POS >= rows {
            terminate!();
        }
        let mut shared = Shared::<[f32]>::new_slice(units);
        let first = CUBE_POS * width;
        let (mean, scale) = moments(x, &mut shared, first, width, eps, centered, units);
        let mut i = UNIT_POS as usize;
        while i < width {
            let normed = (x[first + i] - mean) * scale * (weight[i] + offset);
            if comptime!(centered) {
                y[first + i] = O::cast_from(normed + bias[i]);
            } else {
                y[first + i] = O::cast_from(normed);
            }
            i += units;
        }
    }

    /// Mean and 1/√(… + eps) of a row.
    #[cube]
    fn moments(
        x: &[f32],
        shared: &mut Shared<[f32]>,
        first: usize,
        width: usize,
        eps: f32,
        #[comptime] centered: bool,
        #[comptime] units: usize,
    ) -> (f32, f32) {
        let count = f32::cast_from(width);
        let mut mean = 0.0f32;
        if comptime!(centered) {
            let mut sum = 0.0f32;
            let mut i = UNIT_POS as usize;
            while i < width {
                sum += x[first + i];
                i += units;
            }
            mean = total(shared, sum, units) / count;
        }
        let mut squares = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            let value = x[first + i] - mean;
            squares += value * value;
            i += units;
        }
        let variance = total(shared, squares, units) / count;
        (mean, 1.0f32 / (variance + eps).sqrt())
    }

    #[cube(launch_unchecked)]
    fn backward_kernel(
        x: &[f32],
        weight: &[f32],
        grad: &[f32],
        of_x: &mut [f32],
        rows: usize,
        width: usize,
        offset: f32,
        eps: f32,
        #[comptime] centered: bool,
        #[comptime] adds: bool,
        #[comptime] units: usize,
    ) {
        if CUBE_POS >= rows {
            terminate!();
        }
        let mut shared = Shared::<[f32]>::new_slice(units);
        let first = CUBE_POS * width;
        let count = f32::cast_from(width);
        let (mean, scale) = moments(x, &mut shared, first, width, eps, centered, units);
        let mut along = 0.0f32;
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            let g = grad[first + i] * (weight[i] + offset);
            along += g * (x[first + i] - mean) * scale;
            sum += g;
            i += units;
        }
        along = total(&mut shared, along, units) / count;
        if comptime!(centered) {
            sum = total(&mut shared, sum, units) / count;
        } else {
            sum = 0.0f32;
        }
        let mut i = UNIT_POS as usize;
        while i < width {
            let g = grad[first + i] * (weight[i] + offset);
            let mut all = (g - sum - (x[first + i] - mean) * scale * along) * scale;
            if comptime!(adds) {
                all += of_x[first + i];
            }
            of_x[first + i] = all;
            i += units;
        }
    }

    /// Rows and their width; `None` where there is nothing to do.
    fn sizes(x: &CubeTensor) -> Option<(usize, usize)> {
        let width = *x.meta.shape().last()?;
        let rows = x.meta.num_elements().checked_div(width)?;
        (rows > 0).then_some((rows, width))
    }

    fn norm(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>, form: Form) -> CubeTensor {
        let size = sizes(&x).filter(|_| all_f32([&x, &weight].into_iter().chain(&bias)));
        let Some((rows, width)) = size else {
            return portable::<Cube>(Float(x), Float(weight), bias.map(Float), form).0;
        };
        let bias = bias.unwrap_or_else(|| weight.clone());
        let [x, weight, bias] = flat([x, weight, bias]);
        let (dtype, output) = written_for(form.reader);
        let y = empty(&x, x.meta.shape().clone(), dtype);
        let (count, dim, units) = by_row(&x.client, rows, width);
        let (offset, eps) = (form.offset as f32, form.eps as f32);
        // SAFETY: all indices are below rows · width.
        unsafe {
            norm_kernel::launch_unchecked(
                &x.client,
                count,
                dim,
                all(&x),
                all(&weight),
                all(&bias),
                all(&y),
                rows,
                width,
                offset,
                eps,
                form.centered,
                units,
                output,
            );
        }
        y
    }

    impl NormOps for Cube {
        fn norm_by_scale(x: CubeTensor, weight: CubeTensor, form: Form) -> CubeTensor {
            norm(x, weight, None, form)
        }

        fn norm_by_moments(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, form: Form) -> CubeTensor {
            norm(x, weight, Some(bias), form)
        }

        fn norm_backward(
            before: Begin<Self>,
            x: CubeTensor,
            weight: CubeTensor,
            grad: CubeTensor,
            form: Form,
        ) -> CubeTensor {
            let before = before.sum();
            let size = sizes(&x).filter(|_| all_f32([&x, &weight, &grad].into_iter().chain(&before)));
            let Some((rows, width)) = size else {
                return portable_backward::<Cube>(before, Float(x), Float(weight), Float(grad), form);
            };
            let [x, weight, grad] = flat([x, weight, grad]);
            let adds = before.is_some();
            let of_x = before.map_or_else(|| like(&x), own);
            let (count, dim, units) = by_row(&x.client, rows, width);
            let (offset, eps) = (form.offset as f32, form.eps as f32);
            // SAFETY: all indices are below rows · width.
            unsafe {
                backward_kernel::launch_unchecked(
                    &x.client,
                    count,
                    dim,
                    all(&x),
                    all(&weight),
                    all(&grad),
                    all(&of_x),
                    rows,
                    width,
                    offset,
                    eps,
                    form.centered,
                    adds,
                    units,
                );
            }
            of_x
        }
    }
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

mod lane {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::{Shape, bf16};

    use super::*;
    use crate::cpu::{Stored, all_f32, group, math, rows, slice, tensor};
    use crate::product::lane::narrows;

    /// Mean and 1/√(… + eps) of a row.
    #[inline(always)]
    fn moments(x: &[f32], form: Form) -> (f32, f32) {
        let count = x.len() as f32;
        let mean = if form.centered { math::sum([x], |[x]| x) / count } else { 0.0 };
        let squares = math::sum([x], |[x]| (x - mean) * (x - mean));
        (mean, 1.0 / (squares / count + form.eps as f32).sqrt())
    }

    fn width(x: &FlexTensor) -> usize {
        *x.layout().shape().iter().last().unwrap_or(&1)
    }

    fn norm(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, form: Form) -> FlexTensor {
        if narrows(form.reader) { normed::<bf16>(x, weight, bias, form) } else { normed::<f32>(x, weight, bias, form) }
    }

    fn normed<T: Stored>(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>, form: Form) -> FlexTensor {
        if !all_f32([&x, &weight].into_iter().chain(&bias)) {
            return portable::<Flex>(Float(x), Float(weight), bias.map(Float), form).0;
        }
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.map(|bias| bias.to_contiguous()));
        let (width, values, weight) = (width(&x), slice(&x), slice(&weight));
        let bias = bias.as_ref().map(slice);
        let height = values.len() / width.max(1);
        let [y] = rows(
            height,
            group(width),
            [width],
            #[inline(always)]
            |range, [y]| {
                for (row, y) in range.zip(y.chunks_exact_mut(width)) {
                    let x = &values[row * width..(row + 1) * width];
                    let (mean, scale) = moments(x, form);
                    let offset = form.offset as f32;
                    let scaled = |x: f32, weight: f32| (x - mean) * scale * (weight + offset);
                    let y = y.iter_mut().zip(x.iter().zip(weight));
                    match bias {
                        None => y.for_each(|(y, (x, weight))| {
                            y.write(scaled(*x, *weight));
                        }),
                        Some(bias) => y.zip(bias).for_each(|((y, (x, weight)), bias)| {
                            y.write(scaled(*x, *weight) + bias);
                        }),
                    }
                }
            },
        );
        T::tensor(y, x.layout().shape().clone())
    }

    impl NormOps for Flex {
        fn norm_by_scale(x: FlexTensor, weight: FlexTensor, form: Form) -> FlexTensor {
            norm(x, weight, None, form)
        }

        fn norm_by_moments(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, form: Form) -> FlexTensor {
            norm(x, weight, Some(bias), form)
        }

        fn norm_backward(
            before: Begin<Self>,
            x: FlexTensor,
            weight: FlexTensor,
            grad: FlexTensor,
            form: Form,
        ) -> FlexTensor {
            let before = before.sum();
            if !all_f32([&x, &weight, &grad].into_iter().chain(&before)) {
                return portable_backward::<Self>(before, Float(x), Float(weight), Float(grad), form);
            }
            let before = before.map(|before| before.to_contiguous());
            let before = before.as_ref().map(slice);
            let (x, weight, grad) = (x.to_contiguous(), weight.to_contiguous(), grad.to_contiguous());
            let (width, values, grads, weight) = (width(&x), slice(&x), slice(&grad), slice(&weight));
            let height = values.len() / width.max(1);
            let [dx] = rows(
                height,
                group(width),
                [width],
                #[inline(always)]
                |range, [dx]| {
                    for (row, dx) in range.zip(dx.chunks_exact_mut(width)) {
                        let place = row * width..(row + 1) * width;
                        let (x, dy) = (&values[place.clone()], &grads[place.clone()]);
                        let (mean, scale) = moments(x, form);
                        let offset = form.offset as f32;
                        let g = |dy: f32, weight: f32| dy * (weight + offset);
                        let normed = |x: f32| (x - mean) * scale;
                        let along =
                            math::sum([x, dy, weight], |[x, dy, weight]| g(dy, weight) * normed(x)) / width as f32;
                        let level = match form.centered {
                            true => math::sum([dy, weight], |[dy, weight]| g(dy, weight)) / width as f32,
                            false => 0.0,
                        };
                        let of = |x: f32, dy: f32, weight: f32| (g(dy, weight) - level - normed(x) * along) * scale;
                        let all = dx.iter_mut().zip(x).zip(dy.iter().zip(weight));
                        match before {
                            None => all.for_each(|((dx, x), (dy, weight))| {
                                dx.write(of(*x, *dy, *weight));
                            }),
                            Some(before) => all.zip(&before[place]).for_each(|(((dx, x), (dy, weight)), before)| {
                                dx.write(before + of(*x, *dy, *weight));
                            }),
                        }
                    }
                },
            );
            tensor(dx, x.layout().shape().clone())
        }

        fn norm_backward_weight(x: FlexTensor, grad: FlexTensor, form: Form) -> (FlexTensor, FlexTensor) {
            if !all_f32([&x, &grad]) {
                return portable_backward_weight::<Self>(Float(x), Float(grad), form);
            }
            let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
            let (width, values, grads) = (width(&x), slice(&x), slice(&grad));
            let height = values.len() / width.max(1);
            // One partial sum for each group of rows, in a fixed order: the same on any number of threads.
            let size = group(width).max(16);
            let groups = height.div_ceil(size);
            let [partial] = rows(
                groups,
                1,
                [2 * width],
                #[inline(always)]
                |range, [partial]| {
                    let (weight, bias) = partial.split_at_mut(width);
                    weight.iter_mut().chain(bias.iter_mut()).for_each(|value| {
                        value.write(0.0);
                    });
                    // SAFETY: just written.
                    let (weight, bias) = unsafe { (crate::cpu::written(weight), crate::cpu::written(bias)) };
                    let first = range.start * size;
                    for row in first..height.min(first + size) {
                        let place = row * width..(row + 1) * width;
                        let (x, dy) = (&values[place.clone()], &grads[place]);
                        let (mean, scale) = moments(x, form);
                        for ((weight, bias), (x, dy)) in weight.iter_mut().zip(bias.iter_mut()).zip(x.iter().zip(dy)) {
                            *weight += dy * (x - mean) * scale;
                            *bias += dy;
                        }
                    }
                },
            );
            let total = |from: usize| {
                let at = |i: usize| partial.iter().skip(from + i).step_by(2 * width).sum::<f32>();
                tensor((0..width).map(at).collect(), Shape::from(vec![width]))
            };
            (total(0), total(width))
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
