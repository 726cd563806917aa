//! The sum of the squares of many tensors, for one global norm.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::portable::Float;

/// Numbers, one or several, whose sum is that of all squares of all values; `None` without a tensor. For tensors without
/// autodiff.
pub fn squares(tensors: impl IntoIterator<Item = Tensor<1>>) -> Option<Tensor<1>> {
    let sum = tensors.into_iter().map(Tensor::into_dispatch).fold(None, |sum, x| {
        Some(match sum {
            None => <Dispatch as SquareOps>::squares(x),
            Some(sum) => <Dispatch as SquareOps>::add_squares(sum, x),
        })
    });
    sum.map(|sum| Tensor::from_dispatch(<Dispatch as SquareOps>::added(sum)))
}

/// The extension behind [`squares`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait SquareOps: Backend {
    /// Numbers that sum up to the sum of the squares.
    fn squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = Float::<Self>(x);
        Self::float_sum((x.clone() * x).0)
    }

    /// The same, added to others, perhaps only by [`added`](Self::added).
    fn add_squares(sum: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        (Float::<Self>(sum) + Float(Self::squares(x))).0
    }

    /// The numbers with all that this thread has added to them.
    fn added(sum: FloatTensor<Self>) -> FloatTensor<Self> {
        sum
    }
}

impl SquareOps for burn::backend::Flex {}

#[cfg(feature = "cube")]
mod gpu {
    use std::cell::RefCell;

    use burn::backend::Cube;
    use burn::backend::ops::FloatTensorOps;
    use burn::tensor::{DType, Shape};
    use burn_cubecl::kernel::into_contiguous;
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, all_f32, at_once, cubecl, own, total};

    /// How many sums there are: one for each cube.
    const SUMS: usize = 512;
    const UNITS: usize = 256;

    #[cube(launch_unchecked)]
    fn squares_kernel(tensors: &Sequence<Box<[f32]>>, counts: &Sequence<usize>, sums: &mut [f32]) {
        let mut shared = Shared::<[f32]>::new_slice(UNITS);
        let mut sum = 0.0f32;
        #[unroll]
        for number in 0..tensors.len() {
            let mut i = ABSOLUTE_POS;
            while i < counts[number] {
                let x = tensors[number][i];
                sum += x * x;
                i += comptime!(SUMS * UNITS);
            }
        }
        let sum = total(&mut shared, sum, UNITS);
        if UNIT_POS == 0 {
            sums[CUBE_POS] += sum;
        }
    }

    thread_local! {
        /// What is to be added to the sums.
        static WAITING: RefCell<Vec<CubeTensor>> = const { RefCell::new(Vec::new()) };
    }

    impl SquareOps for Cube {
        fn squares(x: CubeTensor) -> CubeTensor {
            let zeros = Self::float_zeros(Shape::new([SUMS]), &x.device, DType::F32.into());
            Self::add_squares(zeros, x)
        }

        fn add_squares(sum: CubeTensor, x: CubeTensor) -> CubeTensor {
            assert!(all_f32([&sum, &x]), "sums of gradients are f32");
            let most = at_once(&x.client, 1);
            let full = WAITING.with_borrow_mut(|waiting| {
                waiting.push(into_contiguous(x));
                waiting.len() >= most
            });
            if full { Self::added(sum) } else { sum }
        }

        fn added(sum: CubeTensor) -> CubeTensor {
            let waiting = WAITING.take();
            if waiting.is_empty() {
                return sum;
            }
            let (sum, cubes, dim) = (own(sum), CubeCount::Static(SUMS as u32, 1, 1), CubeDim::new_1d(UNITS as u32));
            let counts = waiting.iter().map(|x| x.meta.num_elements());
            // SAFETY: a sum for each cube, and no index reaches its tensor's count.
            unsafe {
                squares_kernel::launch_unchecked(
                    &sum.client,
                    cubes,
                    dim,
                    waiting.iter().map(all).collect(),
                    counts.collect(),
                    all(&sum),
                );
            }
            sum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, device, values, vec_of};

    #[test]
    fn all_squares_are_summed() {
        let counts = (0..40).map(|number| 1 + 7 * number).chain([300, 200_000]);
        let tensors: Vec<_> = counts.map(|count| values(count as u64, [count], 2.0).tensor(&device())).collect();
        let expected = tensors.iter().flat_map(|x| vec_of(x.clone())).map(|x| f64::from(x).powi(2)).sum::<f64>();
        let found = squares(tensors).map(|sum| vec_of(sum.sum())).unwrap_or_default();
        close(&[found], &[vec![expected as f32]], 1e-5);
        assert!(squares([]).is_none());
    }
}
