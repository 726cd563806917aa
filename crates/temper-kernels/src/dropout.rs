//! Dropout (Srivastava et al. 2014, JMLR 15) with masks that can be made again.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};

use crate::portable::Float;

/// A mask of dropout: a hash of two keys and an index, the same on every device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drop {
    keys: [u32; 2],
    threshold: u32,
    kept: f32,
}

impl Drop {
    /// Zero with probability `p` in [0, 1), else 1/(1 - p).
    pub fn new(p: f64, keys: [u32; 2]) -> Self {
        let threshold = (p * 4_294_967_296.0).min(4_294_967_295.0) as u32;
        Self { keys, threshold, kept: (1.0 / (1.0 - p)) as f32 }
    }

    /// Its keys, its threshold, and what is not dropped is multiplied with.
    #[cfg(feature = "cube")]
    pub(crate) fn parts(self) -> ([u32; 2], u32, f32) {
        (self.keys, self.threshold, self.kept)
    }

    /// What the element `index` is multiplied with. A keyed 32-bit mixer: lowbias32 of C. Wellons, with the second key
    /// between its two multiplications.
    #[inline(always)]
    pub fn factor(self, index: u32) -> f32 {
        let x = index ^ self.keys[0];
        let x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad) ^ self.keys[1];
        let x = (x ^ (x >> 15)).wrapping_mul(0xd35a_2d97);
        let x = x ^ (x >> 15);
        if x >= self.threshold { self.kept } else { 0.0 }
    }
}

/// Multiplies each element with its factor. Keeps nothing of `x`.
pub fn dropout<const D: usize>(x: Tensor<D>, drop: Drop) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as DropOps>::dropout(x.into_dispatch(), drop))
}

/// The extension behind [`dropout`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait DropOps: Backend {
    /// x times its factors.
    fn dropout(x: FloatTensor<Self>, drop: Drop) -> FloatTensor<Self> {
        portable::<Self>(x, drop)
    }
}

fn portable<B: Backend>(x: FloatTensor<B>, drop: Drop) -> FloatTensor<B> {
    let factors: Vec<f32> = (0..x.shape().num_elements()).map(|i| drop.factor(i as u32)).collect();
    let data = TensorData::new(factors, x.shape()).convert_dtype(x.dtype());
    let factors = Float::<B>(B::float_from_data(data, &x.device()));
    (Float(x) * factors).0
}

#[cfg(feature = "cube")]
pub(crate) mod gpu {
    use burn::backend::Cube;
    use burn::tensor::DType;
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::ir::ElemType;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, by_element, cubecl, empty, flat, floats};

    /// [`Drop::factor`].
    #[cube]
    pub(crate) fn factor(index: u32, first: u32, second: u32, threshold: u32, kept: f32) -> f32 {
        let x = index ^ first;
        let x = ((x ^ (x >> 16u32)) * 0x21f0_aaadu32) ^ second;
        let x = (x ^ (x >> 15u32)) * 0xd35a_2d97u32;
        let x = x ^ (x >> 15u32);
        select(x >= threshold, kept, 0.0f32)
    }

    #[cube(launch_unchecked)]
    fn dropout_kernel<I: Numeric>(
        x: &[I],
        y: &mut [f32],
        count: usize,
        first: u32,
        second: u32,
        threshold: u32,
        kept: f32,
        #[define(I)] _input: ElemType,
    ) {
        if ABSOLUTE_POS >= count {
            terminate!();
        }
        y[ABSOLUTE_POS] = f32::cast_from(x[ABSOLUTE_POS]) * factor(ABSOLUTE_POS as u32, first, second, threshold, kept);
    }

    impl DropOps for Cube {
        fn dropout(x: CubeTensor, drop: Drop) -> CubeTensor {
            let count = x.meta.num_elements();
            let Some([input]) = floats([&x]).filter(|_| count > 0) else {
                return portable::<Self>(x, drop);
            };
            let [x] = flat([x]);
            let y = empty(&x, x.meta.shape().clone(), DType::F32);
            let (cubes, dim) = by_element(&x.client, count);
            let ([first, second], threshold, kept) = drop.parts();
            // SAFETY: no index reaches the count.
            unsafe {
                dropout_kernel::launch_unchecked(
                    &x.client,
                    cubes,
                    dim,
                    all(&x),
                    all(&y),
                    count,
                    first,
                    second,
                    threshold,
                    kept,
                    input,
                );
            }
            y
        }
    }
}

impl<B: DropOps, C: CheckpointStrategy> DropOps for Autodiff<B, C> {
    fn dropout(x: FloatTensor<Self>, drop: Drop) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: DropOps> Backward<B, 1> for Step {
            type State = Drop;
            fn backward(self, ops: Ops<Drop, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                unary::<B, _>(ops.parents, ops.node, grads, |grad| B::dropout(grad, ops.state));
            }
        }
        let (x, node) = x.into_parts();
        let y = B::dropout(x, drop);
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(drop, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

mod lane {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;

    use super::*;
    use crate::cpu::{CHUNK, all_f32, rows, slice, tensor, widened};

    impl DropOps for Flex {
        fn dropout(x: FlexTensor, drop: Drop) -> FlexTensor {
            let x = widened(x);
            if !all_f32([&x]) {
                return portable::<Self>(x, drop);
            }
            let x = x.to_contiguous();
            let values = slice(&x);
            let [y] = rows(
                values.len(),
                CHUNK,
                [1],
                #[inline(always)]
                |range, [y]| {
                    for ((i, x), y) in range.clone().zip(&values[range]).zip(y.iter_mut()) {
                        y.write(x * drop.factor(i as u32));
                    }
                },
            );
            tensor(y, x.layout().shape().clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backward, close, values};

    #[test]
    fn masks_have_the_asked_rate_and_are_independent() {
        let mask = |keys| {
            let drop = Drop::new(0.1, keys);
            (0..100_000).map(|i| drop.factor(i)).collect::<Vec<f32>>()
        };
        let (a, b) = (mask([1, 2]), mask([3, 4]));
        for mask in [&a, &b] {
            let zeros = mask.iter().filter(|v| **v == 0.0).count();
            assert!((9_600..10_400).contains(&zeros), "{zeros}");
            assert!(mask.iter().all(|v| *v == 0.0 || (v - 1.0 / 0.9).abs() < 1e-6));
        }
        let both = a.iter().zip(&b).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
        assert!((850..1_150).contains(&both), "{both}");
        let next = a.windows(2).filter(|pair| pair[0] == 0.0 && pair[1] == 0.0).count();
        assert!((850..1_150).contains(&next), "{next}");
    }

    #[test]
    fn value_and_gradient_have_one_mask() {
        let drop = Drop::new(0.4, [7, 8]);
        for shape in [[1, 1], [300, 123]] {
            let own = backward([values(1, shape, 1.0)], |[x]| dropout(x, drop));
            let steps = backward([values(1, shape, 1.0)], |[x]| {
                let mask = (0..shape[0] * shape[1]).map(|i| drop.factor(i as u32)).collect::<Vec<f32>>();
                x.clone() * Tensor::from_data(TensorData::new(mask, shape), &x.device())
            });
            close(&own, &steps, 0.0);
        }
    }
}
