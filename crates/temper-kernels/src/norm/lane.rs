//! Norms on the processor.

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
                    let along = math::sum([x, dy, weight], |[x, dy, weight]| g(dy, weight) * normed(x)) / width as f32;
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
