//! Norms on GPUs: a cube for each row.

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
