//! The sum of the squares of many tensors, for one global norm.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::portable::Float;

/// Adds the squares of `x` to those that are summed already. The result has one number or several, whose sum is the sum of the
/// squares. For tensors without autodiff.
pub fn add_squares(sum: Option<Tensor<1>>, x: Tensor<1>) -> Tensor<1> {
    let x = x.into_dispatch();
    Tensor::from_dispatch(match sum {
        None => <Dispatch as SquareOps>::squares(x),
        Some(sum) => <Dispatch as SquareOps>::add_squares(sum.into_dispatch(), x),
    })
}

/// The extension behind [`add_squares`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait SquareOps: Backend {
    /// Numbers that sum up to the sum of the squares.
    fn squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = Float::<Self>(x);
        Self::float_sum((x.clone() * x).0)
    }

    /// The same, added to others.
    fn add_squares(sum: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        (Float::<Self>(sum) + Float(Self::squares(x))).0
    }
}

impl SquareOps for burn::backend::Flex {}

#[cfg(feature = "cube")]
mod gpu {
    use burn::backend::Cube;
    use burn::backend::ops::FloatTensorOps;
    use burn::tensor::{DType, Shape};
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, all_f32, cubecl, flat, own, total};

    /// How many sums there are: one for each cube.
    const SUMS: usize = 64;
    const UNITS: usize = 256;

    #[cube(launch_unchecked)]
    fn squares_kernel(x: &[f32], sums: &mut [f32], count: usize) {
        let mut shared = Shared::<[f32]>::new_slice(UNITS);
        let mut sum = 0.0f32;
        let mut i = ABSOLUTE_POS;
        while i < count {
            sum += x[i] * x[i];
            i += comptime!(SUMS * UNITS);
        }
        let sum = total(&mut shared, sum, UNITS);
        if UNIT_POS == 0 {
            sums[CUBE_POS] += sum;
        }
    }

    impl SquareOps for Cube {
        fn squares(x: CubeTensor) -> CubeTensor {
            let zeros = Self::float_zeros(Shape::new([SUMS]), &x.device, DType::F32.into());
            Self::add_squares(zeros, x)
        }

        fn add_squares(sum: CubeTensor, x: CubeTensor) -> CubeTensor {
            assert!(all_f32([&sum, &x]), "sums of gradients are f32");
            let (sum, [x]) = (own(sum), flat([x]));
            let (cubes, dim) = (CubeCount::Static(SUMS as u32, 1, 1), CubeDim::new_1d(UNITS as u32));
            // SAFETY: a sum for each cube, and no index reaches the count.
            unsafe {
                squares_kernel::launch_unchecked(&x.client, cubes, dim, all(&x), all(&sum), x.meta.num_elements());
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
        let counts = [1, 300, 70_000];
        let tensors = counts.map(|count| values(count as u64, [count], 2.0).tensor(&device()));
        let expected = tensors.iter().flat_map(|x| vec_of(x.clone())).map(|x| f64::from(x).powi(2)).sum::<f64>();
        let sum = tensors.into_iter().fold(None, |sum, x| Some(add_squares(sum, x)));
        let found = sum.map(|sum| vec_of(sum.sum())).unwrap_or_default();
        close(&[found], &[vec![expected as f32]], 1e-5);
    }
}
