//! Activation functions on the CPU, in pieces on all threads.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::*;
use crate::cpu::bf16::narrowed;
use crate::cpu::{CHUNK, Stored, Wide, all_f32, map, math, rows, slice, slice_bf16, tensor, vectorised, widened};
use crate::product::lane::{engine, narrows};

/// `x -> (act(x), act'(x))`, a type so that it is compiled into its loop.
trait Curve {
    fn at(x: f32) -> (f32, f32);
}
struct Gelu;
struct GeluTanh;
struct Relu;
struct Silu;
struct Tanh;

impl Curve for Gelu {
    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        let below = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
        (x * below, below + x * DENSITY as f32 * math::exp(-0.5 * x * x))
    }
}
impl Curve for GeluTanh {
    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        let (twice, square) = (TWICE as f32, x * x);
        let gate = math::sigmoid(twice * x * (1.0 + CUBIC as f32 * square));
        let y = x * gate;
        (y, gate + y * (1.0 - gate) * twice * (1.0 + 3.0 * CUBIC as f32 * square))
    }
}
impl Curve for Relu {
    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        if x <= 0.0 { (0.0, 0.0) } else { (x, 1.0) }
    }
}
impl Curve for Silu {
    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        let gate = math::sigmoid(x);
        let y = x * gate;
        (y, gate + y * (1.0 - gate))
    }
}
impl Curve for Tanh {
    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        let y = math::tanh(x);
        (y, 1.0 - y * y)
    }
}

macro_rules! by_kind {
    ($kind:expr, $run:ident[$($type:ty),*]($($argument:expr),*)) => {
        match $kind {
            Activation::Gelu => $run::<Gelu, $($type),*>($($argument),*),
            Activation::GeluTanh => $run::<GeluTanh, $($type),*>($($argument),*),
            Activation::Relu => $run::<Relu, $($type),*>($($argument),*),
            Activation::Silu => $run::<Silu, $($type),*>($($argument),*),
            Activation::Tanh => $run::<Tanh, $($type),*>($($argument),*),
        }
    };
}

fn value<F: Curve>(x: &[f32]) -> [Vec<f32>; 1] {
    map(
        [x],
        #[inline(always)]
        |[x]| [F::at(x).0],
    )
}
fn back<F: Curve>(x: &[f32], grad: &[f32]) -> [Vec<f32>; 1] {
    map(
        [x, grad],
        #[inline(always)]
        |[x, grad]| [grad * F::at(x).1],
    )
}
fn gated<F: Curve, T: Stored>(gate: &[f32], up: &[f32]) -> [Vec<T>; 1] {
    map(
        [gate, up],
        #[inline(always)]
        |[gate, up]| [F::at(gate).0 * up],
    )
}
/// The same, and both rounded while they are at hand.
fn gated_kept<F: Curve, T: Stored>(gate: &[f32], up: &[f32]) -> (Vec<T>, [Vec<bf16>; 2]) {
    let count = gate.len();
    let (mut y, mut kept) = (Vec::with_capacity(count), [(); 2].map(|()| Vec::with_capacity(count)));
    let [of_gate, of_up] = kept.each_mut().map(|kept| kept.spare_capacity_mut()[..count].par_chunks_mut(CHUNK));
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    let outputs = y.spare_capacity_mut()[..count].par_chunks_mut(CHUNK).zip(of_gate.zip(of_up));
    inputs.zip(outputs).for_each(|((gate, up), (y, (of_gate, of_up)))| {
        T::fill(
            [y],
            #[inline(always)]
            |[y]| {
                vectorised(
                    #[inline(always)]
                    || {
                        for (y, (gate, up)) in y.iter_mut().zip(gate.iter().zip(up)) {
                            y.write(F::at(*gate).0 * up);
                        }
                    },
                );
            },
        );
        for (x, out) in [(gate, of_gate), (up, of_up)] {
            // SAFETY: bf16 needs no initialisation to be written.
            narrowed(x, unsafe { out.assume_init_mut() });
        }
    });
    // SAFETY: all were written.
    unsafe {
        y.set_len(count);
        kept.iter_mut().for_each(|kept| kept.set_len(count));
    }
    (y, kept)
}

fn gated_back<F: Curve, W: Wide, T: Stored>(gate: &[W], up: &[W], grad: &[f32]) -> [Vec<T>; 2] {
    rows(
        grad.len(),
        CHUNK,
        [1; 2],
        #[inline(always)]
        |range, [of_gate, of_up]| {
            let inputs = gate[range.clone()].iter().zip(&up[range.clone()]).zip(&grad[range]);
            for (((gate, up), grad), (of_gate, of_up)) in inputs.zip(of_gate.iter_mut().zip(of_up.iter_mut())) {
                let (y, slope) = F::at(gate.wide());
                of_gate.write(grad * up.wide() * slope);
                of_up.write(grad * y);
            }
        },
    )
}

/// What reads and writes one dtype, of contiguous tensors.
fn gated_as<T: Stored>(gate: &FlexTensor, up: &FlexTensor, kind: Activation) -> FlexTensor {
    let [y] = by_kind!(kind, gated[T](slice(gate), slice(up)));
    T::tensor(y, gate.layout().shape().clone())
}
fn gated_kept_as<T: Stored>(gate: &FlexTensor, up: &FlexTensor, kind: Activation) -> [FlexTensor; 3] {
    let shape = || gate.layout().shape().clone();
    let (y, [of_gate, of_up]) = by_kind!(kind, gated_kept[T](slice(gate), slice(up)));
    [T::tensor(y, shape()), bf16::tensor(of_gate, shape()), bf16::tensor(of_up, shape())]
}
fn gated_back_as<T: Stored>(
    gate: &FlexTensor,
    up: &FlexTensor,
    grad: &FlexTensor,
    kind: Activation,
) -> [FlexTensor; 2] {
    let of: [Vec<T>; 2] = if gate.dtype() == DType::BF16 {
        by_kind!(kind, gated_back[_, T](slice_bf16(gate), slice_bf16(up), slice(grad)))
    } else {
        by_kind!(kind, gated_back[_, T](slice(gate), slice(up), slice(grad)))
    };
    of.map(|of| T::tensor(of, gate.layout().shape().clone()))
}

impl ActivationOps for Flex {
    fn activate(x: FlexTensor, kind: Activation) -> FlexTensor {
        if !all_f32([&x]) {
            return kind.portable::<Self>(Float(x)).0.0;
        }
        let x = x.to_contiguous();
        let [y] = by_kind!(kind, value[](slice(&x)));
        tensor(y, x.layout().shape().clone())
    }

    fn activate_backward(x: FlexTensor, grad: FlexTensor, kind: Activation) -> FlexTensor {
        if !all_f32([&x, &grad]) {
            return (Float::<Self>(grad) * kind.portable::<Self>(Float(x)).1).0;
        }
        let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
        let [y] = by_kind!(kind, back[](slice(&x), slice(&grad)));
        tensor(y, x.layout().shape().clone())
    }

    fn gated(gate: FlexTensor, up: FlexTensor, kind: Activation, reader: Reader) -> FlexTensor {
        if !all_f32([&gate, &up]) {
            return reader.take::<Self>((kind.portable::<Self>(Float(gate)).0 * Float(up)).0);
        }
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        match narrows(reader) {
            true => gated_as::<bf16>(&gate, &up, kind),
            false => gated_as::<f32>(&gate, &up, kind),
        }
    }

    fn gated_kept(
        gate: FlexTensor,
        up: FlexTensor,
        kind: Activation,
        reader: Reader,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !all_f32([&gate, &up]) || engine([&gate, &up]).is_none() {
            return (Self::gated(gate.clone(), up.clone(), kind, reader), gate, up);
        }
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        match narrows(reader) {
            true => gated_kept_as::<bf16>(&gate, &up, kind).into(),
            false => gated_kept_as::<f32>(&gate, &up, kind).into(),
        }
    }

    fn gated_backward(
        gate: FlexTensor,
        up: FlexTensor,
        grad: FlexTensor,
        kind: Activation,
        reader: Reader,
    ) -> (FlexTensor, FlexTensor) {
        let kept = [gate.dtype(), up.dtype()] == [DType::BF16; 2];
        if !kept && !all_f32([&gate, &up]) || !all_f32([&grad]) {
            let (of_gate, of_up) = kind.portable_gated_backward::<Self>(widened(gate), widened(up), grad);
            return (reader.take::<Self>(of_gate), reader.take::<Self>(of_up));
        }
        let (gate, up, grad) = (gate.to_contiguous(), up.to_contiguous(), grad.to_contiguous());
        match narrows(reader) {
            true => gated_back_as::<bf16>(&gate, &up, &grad, kind).into(),
            false => gated_back_as::<f32>(&gate, &up, &grad, kind).into(),
        }
    }
}
