//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in Hugging Face's layout.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};

use crate::portable::Float;
use crate::product::Reader;

/// Turns feature i against feature i + R/2, for i below R/2: `(x₁·cos - x₂·sin, x₂·cos + x₁·sin)`. The features from R on are
/// multiplied by `rest`. Keeps nothing of `x`. The result is for [`Reader::Kernels`], and x may be.
///
/// # Shapes
///
/// - x, result: `[B, S, heads, H]`
/// - cos, sin: `[1 or B, S, 1, R/2]`, constants
pub fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>, rest: f64) -> Tensor<4> {
    let (x, cos, sin) = (x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(<Dispatch as RotationOps>::rotate(x, cos, sin, rest, Reader::Kernels))
}

/// The extension behind [`rotate`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait RotationOps: Backend {
    /// The rotation.
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rest: f64,
        _reader: Reader,
    ) -> FloatTensor<Self> {
        portable::<Self>(Float(x), Float(cos), Float(sin), rest).0
    }

    /// The rotation the other way, which is its transpose.
    fn rotate_back(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rest: f64,
        reader: Reader,
    ) -> FloatTensor<Self> {
        Self::rotate(x, cos, Self::float_neg(sin), rest, reader)
    }
}

fn portable<B: Backend>(x: Float<B>, cos: Float<B>, sin: Float<B>, rest: f64) -> Float<B> {
    let (half, features) = (cos.shape()[3], x.shape()[3]);
    let (first, second) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
    let mut parts = vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
    if features > 2 * half {
        parts.push(x.narrow(3, 2 * half, features - 2 * half).scale(rest));
    }
    Float::cat(parts, 3)
}

#[cfg(feature = "cube")]
mod gpu {
    use burn::backend::Cube;
    use burn_cubecl::kernel::into_contiguous;
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::ir::ElemType;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, all_f32, by_element, cubecl, empty, flat, floats};
    use crate::portable::Float;
    use crate::product::gpu::written_for;

    /// A unit turns a pair of features, or scales a feature of the rest. The rows of x are those of tokens, a head after the
    /// other, or those of heads, a token after the other.
    #[cube(launch_unchecked)]
    fn rotate_kernel<I: Numeric, O: Numeric>(
        x: &[I],
        cos: &[f32],
        sin: &[f32],
        y: &mut [O],
        count: usize,
        sequence: usize,
        heads: usize,
        features: usize,
        half: usize,
        rest: f32,
        turn: f32,
        #[comptime] alike: bool,
        #[comptime] by_heads: bool,
        #[define(I, O)] _types: [ElemType; 2],
    ) {
        if ABSOLUTE_POS >= count {
            terminate!();
        }
        let work = features - half;
        let row = ABSOLUTE_POS / work;
        let i = ABSOLUTE_POS % work;
        let first = row * features;
        let mut from = first;
        if comptime!(by_heads) {
            let head = row / (sequence * heads) * heads + row % heads;
            from = (head * sequence + row / heads % sequence) * features;
        }
        if i < half {
            let mut token = row / heads;
            if comptime!(alike) {
                token %= sequence;
            }
            let c = cos[token * half + i];
            let s = sin[token * half + i] * turn;
            let a = f32::cast_from(x[from + i]);
            let b = f32::cast_from(x[from + half + i]);
            y[first + i] = O::cast_from(a * c - b * s);
            y[first + half + i] = O::cast_from(b * c + a * s);
        } else {
            y[first + half + i] = O::cast_from(f32::cast_from(x[from + half + i]) * rest);
        }
    }

    /// By the angles or back; `None` where there is nothing to turn, or not in floats.
    fn turned([x, cos, sin]: [&CubeTensor; 3], rest: f64, turn: f32, reader: Reader) -> Option<CubeTensor> {
        let [input] = floats([x]).filter(|_| x.meta.num_elements() > 0 && all_f32([cos, sin]))?;
        let [x, cos, sin] = [x, cos, sin].map(Clone::clone);
        let [_, sequence, heads, features] = *x.meta.shape().as_slice() else { unreachable!("four dimensions") };
        let [tables, _, _, half] = *cos.meta.shape().as_slice() else { unreachable!("four dimensions") };
        let by_heads = x.meta.strides()[..] == [sequence * heads * features, features, sequence * features, 1];
        let ([cos, sin], x) = (flat([cos, sin]), if by_heads { x } else { into_contiguous(x) });
        let (dtype, output) = written_for(reader);
        let y = empty(&x, x.meta.shape().clone(), dtype);
        let count = x.meta.num_elements() / features * (features - half);
        let (cubes, dim) = by_element(&x.client, count);
        // SAFETY: a unit for each pair of features and each feature of the rest; tables have a row for each token.
        unsafe {
            rotate_kernel::launch_unchecked(
                &x.client,
                cubes,
                dim,
                all(&x),
                all(&cos),
                all(&sin),
                all(&y),
                count,
                sequence,
                heads,
                features,
                half,
                rest as f32,
                turn,
                tables == 1,
                by_heads,
                [input, output],
            );
        }
        Some(y)
    }

    impl RotationOps for Cube {
        fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, rest: f64, reader: Reader) -> CubeTensor {
            turned([&x, &cos, &sin], rest, 1.0, reader)
                .unwrap_or_else(|| portable::<Self>(Float(x), Float(cos), Float(sin), rest).0)
        }

        fn rotate_back(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, rest: f64, reader: Reader) -> CubeTensor {
            turned([&x, &cos, &sin], rest, -1.0, reader)
                .unwrap_or_else(|| portable::<Self>(Float(x), Float(cos), -Float(sin), rest).0)
        }
    }
}

impl<B: RotationOps, C: CheckpointStrategy> RotationOps for Autodiff<B, C> {
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rest: f64,
        reader: Reader,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: RotationOps> Backward<B, 1> for Step {
            /// Cosines, sines, what the rest is multiplied by, and who reads the gradient.
            type State = (B::FloatTensorPrimitive, B::FloatTensorPrimitive, f64, Reader);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let (cos, sin, rest, reader) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::rotate_back(grad, cos, sin, rest, reader));
            }
        }
        let (x, node) = x.into_parts();
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let of_x = if x.dtype() == DType::F32 { Reader::Anyone } else { Reader::Kernels };
        let y = B::rotate(x, cos.clone(), sin.clone(), rest, reader);
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos, sin, rest, of_x), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

mod lane {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;

    use super::*;
    use crate::cpu::{all_f32, group, rows, slice, tensor};

    impl RotationOps for Flex {
        fn rotate(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, rest: f64, _: Reader) -> FlexTensor {
            if !all_f32([&x, &cos, &sin]) {
                return portable::<Self>(Float(x), Float(cos), Float(sin), rest).0;
            }
            let (x, cos, sin) = (x.to_contiguous(), cos.to_contiguous(), sin.to_contiguous());
            let [batch, sequence, heads, features]: [usize; 4] = x.layout().shape().dims();
            let [tables, _, _, half]: [usize; 4] = cos.layout().shape().dims();
            let (values, cos, sin, rest) = (slice(&x), slice(&cos), slice(&sin), rest as f32);
            let count = batch * sequence * heads;
            let [y] = rows(
                count,
                group(features),
                [features],
                #[inline(always)]
                |range, [y]| {
                    for (row, y) in range.zip(y.chunks_exact_mut(features)) {
                        let token = row / heads;
                        let token = if tables == 1 { token % sequence } else { token };
                        let place = token * half..(token + 1) * half;
                        let (cos, sin) = (&cos[place.clone()], &sin[place]);
                        let x = &values[row * features..(row + 1) * features];
                        let ((first, second), tail) = (x[..2 * half].split_at(half), &x[2 * half..]);
                        let (turned, rest_of_y) = y.split_at_mut(2 * half);
                        let (y1, y2) = turned.split_at_mut(half);
                        for i in 0..half {
                            y1[i].write(first[i] * cos[i] - second[i] * sin[i]);
                            y2[i].write(second[i] * cos[i] + first[i] * sin[i]);
                        }
                        for (y, x) in rest_of_y.iter_mut().zip(tail) {
                            y.write(x * rest);
                        }
                    }
                },
            );
            tensor(y, x.layout().shape().clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::testing::{backward, close, device, values, vec_of};

    #[test]
    fn values_and_gradients_equal_the_steps() {
        for (tables, features) in [(1, 6), (2, 6), (2, 9)] {
            let table = |seed| values(seed, [tables, 3, 1, 3], 1.0).tensor(&device().autodiff());
            let (cos, sin) = (table(5), table(6));
            let inputs = || [values(1, [2, 3, 4, features], 1.0)];
            let own = backward(inputs(), |[x]| rotate(x, cos.clone(), sin.clone(), 0.5));
            let steps = backward(inputs(), |[x]| {
                let (a, b) = (x.clone().narrow(3, 0, 3), x.clone().narrow(3, 3, 3));
                let first = a.clone() * cos.clone() - b.clone() * sin.clone();
                let mut parts = vec![first, b * cos.clone() + a * sin.clone()];
                if features > 6 {
                    parts.push(x.narrow(3, 6, features - 6) * 0.5);
                }
                Tensor::cat(parts, 3)
            });
            close(&own, &steps, 1e-6);
            // Heads that lie behind each other.
            let x = values(1, [2, 4, 3, features], 1.0).tensor(&device()).swap_dims(1, 2);
            let plain = TensorData::new(vec_of(x.clone()), x.shape());
            let [cos, sin] = [cos, sin].map(Tensor::inner);
            let turned =
                [x, Tensor::from_data(plain, &device())].map(|x| vec_of(rotate(x, cos.clone(), sin.clone(), 0.5)));
            assert_eq!(turned[0], turned[1]);
        }
    }
}
