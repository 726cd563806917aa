//! Activation functions on GPUs: a kernel for each direction.

use burn::backend::Cube;
use burn_cubecl::tensor::CubeTensor;

use super::*;
use crate::cube::cubecl::ir::ElemType;
use crate::cube::cubecl::prelude::*;
use crate::cube::{all, all_f32, by_element, cubecl, empty, flat, floats, like};
use crate::portable::Float;
use crate::product::gpu::written_for;

/// The function, and its derivative.
#[cube]
fn curve(x: f32, #[comptime] kind: Activation) -> (f32, f32) {
    match comptime!(kind) {
        Activation::Gelu => {
            let below = 0.5f32 * (1.0f32 + (x * comptime!(std::f32::consts::FRAC_1_SQRT_2)).erf());
            (x * below, below + x * comptime!(DENSITY as f32) * (-0.5f32 * x * x).exp())
        }
        Activation::GeluTanh => {
            let twice = comptime!(TWICE as f32);
            let cubic = comptime!(CUBIC as f32);
            let square = x * x;
            let gate = 1.0f32 / (1.0f32 + (-(twice * x * (1.0f32 + cubic * square))).exp());
            let y = x * gate;
            (y, gate + y * (1.0f32 - gate) * twice * (1.0f32 + 3.0f32 * cubic * square))
        }
        Activation::Relu => {
            // A product, so that NaN stays: drivers take the greater of both for a choice between them.
            let slope = select(x > 0.0f32, 1.0f32, 0.0f32);
            (x * slope, slope)
        }
        Activation::Silu => {
            let gate = 1.0f32 / (1.0f32 + (-x).exp());
            let y = x * gate;
            (y, gate + y * (1.0f32 - gate))
        }
        Activation::Tanh => {
            let y = x.tanh();
            (y, 1.0f32 - y * y)
        }
    }
}

#[cube(launch_unchecked)]
fn activate_kernel(x: &[f32], y: &mut [f32], count: usize, #[comptime] kind: Activation) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let (value, _slope) = curve(x[ABSOLUTE_POS], kind);
    y[ABSOLUTE_POS] = value;
}

#[cube(launch_unchecked)]
fn slope_kernel(x: &[f32], grad: &[f32], of_x: &mut [f32], count: usize, #[comptime] kind: Activation) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let (_value, slope) = curve(x[ABSOLUTE_POS], kind);
    of_x[ABSOLUTE_POS] = grad[ABSOLUTE_POS] * slope;
}

#[cube(launch_unchecked)]
fn gated_kernel<I: Numeric, O: Numeric>(
    gate: &[I],
    up: &[I],
    y: &mut [O],
    count: usize,
    #[comptime] kind: Activation,
    #[define(I, O)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let (value, _slope) = curve(f32::cast_from(gate[ABSOLUTE_POS]), kind);
    y[ABSOLUTE_POS] = O::cast_from(value * f32::cast_from(up[ABSOLUTE_POS]));
}

#[cube(launch_unchecked)]
fn gated_slopes_kernel<I: Numeric, G: Numeric, O: Numeric>(
    gate: &[I],
    up: &[I],
    grad: &[G],
    of_gate: &mut [O],
    of_up: &mut [O],
    count: usize,
    #[comptime] kind: Activation,
    #[define(I, G, O)] _types: [ElemType; 3],
) {
    if ABSOLUTE_POS >= count {
        terminate!();
    }
    let (value, slope) = curve(f32::cast_from(gate[ABSOLUTE_POS]), kind);
    let g = f32::cast_from(grad[ABSOLUTE_POS]);
    of_gate[ABSOLUTE_POS] = O::cast_from(g * f32::cast_from(up[ABSOLUTE_POS]) * slope);
    of_up[ABSOLUTE_POS] = O::cast_from(g * value);
}

// SAFETY, of all launches: no index reaches the count, and all tensors hold that many.
impl ActivationOps for Cube {
    fn activate(x: CubeTensor, kind: Activation) -> CubeTensor {
        let count = x.meta.num_elements();
        if count == 0 || !all_f32([&x]) {
            return kind.portable::<Self>(Float(x)).0.0;
        }
        let [x] = flat([x]);
        let (y, (cubes, dim)) = (like(&x), by_element(&x.client, count));
        unsafe { activate_kernel::launch_unchecked(&x.client, cubes, dim, all(&x), all(&y), count, kind) };
        y
    }

    fn activate_backward(x: CubeTensor, grad: CubeTensor, kind: Activation) -> CubeTensor {
        let count = x.meta.num_elements();
        if count == 0 || !all_f32([&x, &grad]) {
            return (Float::<Self>(grad) * kind.portable::<Self>(Float(x)).1).0;
        }
        let [x, grad] = flat([x, grad]);
        let (of_x, (cubes, dim)) = (like(&x), by_element(&x.client, count));
        unsafe { slope_kernel::launch_unchecked(&x.client, cubes, dim, all(&x), all(&grad), all(&of_x), count, kind) };
        of_x
    }

    fn gated(gate: CubeTensor, up: CubeTensor, kind: Activation, reader: Reader) -> CubeTensor {
        let count = gate.meta.num_elements();
        let Some([input, _]) = floats([&gate, &up]).filter(|[gate, up]| gate == up && count > 0) else {
            return reader.take::<Self>((kind.portable::<Self>(Float(gate)).0 * Float(up)).0);
        };
        let [gate, up] = flat([gate, up]);
        let (dtype, output) = written_for(reader);
        let (y, (cubes, dim)) = (empty(&gate, gate.meta.shape().clone(), dtype), by_element(&gate.client, count));
        let types = [input, output];
        unsafe {
            gated_kernel::launch_unchecked(&gate.client, cubes, dim, all(&gate), all(&up), all(&y), count, kind, types);
        }
        y
    }

    fn gated_backward(
        gate: CubeTensor,
        up: CubeTensor,
        grad: CubeTensor,
        kind: Activation,
        reader: Reader,
    ) -> (CubeTensor, CubeTensor) {
        let count = gate.meta.num_elements();
        let known = floats([&gate, &up, &grad]).filter(|[gate, up, _]| gate == up && count > 0);
        let Some([input, _, of_y]) = known else {
            let (of_gate, of_up) = kind.portable_gated_backward::<Self>(gate, up, grad);
            return (reader.take::<Self>(of_gate), reader.take::<Self>(of_up));
        };
        let [gate, up, grad] = flat([gate, up, grad]);
        let (dtype, output) = written_for(reader);
        let [of_gate, of_up] = [(); 2].map(|()| empty(&gate, gate.meta.shape().clone(), dtype));
        let (cubes, dim) = by_element(&gate.client, count);
        unsafe {
            gated_slopes_kernel::launch_unchecked(
                &gate.client,
                cubes,
                dim,
                all(&gate),
                all(&up),
                all(&grad),
                all(&of_gate),
                all(&of_up),
                count,
                kind,
                [input, of_y, output],
            );
        }
        (of_gate, of_up)
    }
}
