//! The softmax of rows without its division, for losses that divide where rows are thin.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::portable::Float;

/// `e^(z - max)` [as products round it](crate::rounded), its sum before that, and the max of each row. Not differentiable: for
/// tensors without autodiff.
///
/// # Shapes
///
/// - z: `[R, C]`
/// - result: `[R, C]`, `[R, 1]`, `[R, 1]`
pub fn row_exponential(z: Tensor<2>) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let (exp, sum, max) = <Dispatch as ExponentialOps>::row_exponential(z.into_dispatch());
    (Tensor::from_dispatch(exp), Tensor::from_dispatch(sum), Tensor::from_dispatch(max))
}

/// The extension behind [`row_exponential`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait ExponentialOps: Backend {
    /// `e^(z - max)`, its sum and the max of each row.
    fn row_exponential(z: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        portable::<Self>(Float(z))
    }
}

fn portable<B: Backend>(z: Float<B>) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let max = z.clone().max_last();
    let exp = (z - max.clone()).exp();
    (exp.0.clone(), exp.sum(1).0, max.0)
}

#[cfg(feature = "cube")]
mod gpu {
    use burn::backend::Cube;
    use burn::tensor::DType;
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::ir::ElemType;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, all_f32, by_row, cubecl, empty, flat, highest, total};
    use crate::portable::Float;
    use crate::product::gpu::operands;

    #[cube(launch_unchecked)]
    fn exponential_kernel<F: Numeric>(
        z: &[f32],
        exp: &mut [F],
        sum: &mut [f32],
        most: &mut [f32],
        rows: usize,
        width: usize,
        #[comptime] units: usize,
        #[define(F)] _rounded: ElemType,
    ) {
        if CUBE_POS >= rows {
            terminate!();
        }
        let mut shared = Shared::<[f32]>::new_slice(units);
        let first = CUBE_POS * width;
        let unit = UNIT_POS as usize;
        let mut own = z[first];
        let mut i = unit;
        while i < width {
            own = max(own, z[first + i]);
            i += units;
        }
        let own = highest(&mut shared, own, units);
        let mut of_unit = 0.0f32;
        let mut i = unit;
        while i < width {
            let value = (z[first + i] - own).exp();
            exp[first + i] = F::cast_from(value);
            of_unit += value;
            i += units;
        }
        let all = total(&mut shared, of_unit, units);
        if unit == 0 {
            sum[CUBE_POS] = all;
            most[CUBE_POS] = own;
        }
    }

    impl ExponentialOps for Cube {
        fn row_exponential(z: CubeTensor) -> (CubeTensor, CubeTensor, CubeTensor) {
            let [rows, width] = *z.meta.shape().as_slice() else { unreachable!("a matrix") };
            if rows * width == 0 || !all_f32([&z]) {
                return portable::<Self>(Float(z));
            }
            let [z] = flat([z]);
            let [sum, most] = [(); 2].map(|()| empty(&z, [rows, 1], DType::F32));
            let (dtype, element) = operands();
            let exp = empty(&z, [rows, width], dtype);
            let (count, dim, units) = by_row(&z.client, rows, width);
            // SAFETY: all indices are below rows · width, those of the sums below rows.
            unsafe {
                exponential_kernel::launch_unchecked(
                    &z.client,
                    count,
                    dim,
                    all(&z),
                    all(&exp),
                    all(&sum),
                    all(&most),
                    rows,
                    width,
                    units,
                    element,
                );
            }
            (exp, sum, most)
        }
    }
}

mod lane {
    use std::mem::MaybeUninit;

    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::{Shape, bf16};
    use rayon::iter::{IndexedParallelIterator, ParallelIterator};
    use rayon::slice::{ParallelSlice, ParallelSliceMut};

    use super::*;
    use crate::cpu::{Stored, all_f32, bf16 as half, math, slice, tensor, vectorised, written};
    use crate::product::lane::engine;

    impl ExponentialOps for Flex {
        fn row_exponential(z: FlexTensor) -> (FlexTensor, FlexTensor, FlexTensor) {
            let shape = z.layout().shape().clone();
            if !all_f32([&z]) || z.layout().num_elements() == 0 {
                return portable::<Self>(Float(z));
            }
            let z = z.to_contiguous();
            let [height, width] = shape.dims();
            let rows = slice(&z).par_chunks(width);
            let (exp, sums): (_, Vec<[f32; 2]>) = if engine([&z]).is_some() {
                let mut exp = Vec::<bf16>::with_capacity(height * width);
                let places = exp.spare_capacity_mut()[..height * width].par_chunks_mut(width);
                let room = || Vec::<f32>::with_capacity(width);
                let write = |room: &mut Vec<f32>, (place, row): (&mut [MaybeUninit<bf16>], _)| {
                    let room = &mut room.spare_capacity_mut()[..width];
                    let sums = exponential(row, room);
                    // SAFETY: just written; the places are only written to.
                    unsafe { half::narrowed(written(room), place.assume_init_mut()) };
                    sums
                };
                let sums = places.zip(rows).map_init(room, write).collect();
                // SAFETY: all rows were written.
                unsafe { exp.set_len(height * width) };
                (Stored::tensor(exp, shape), sums)
            } else {
                let mut exp = Vec::<f32>::with_capacity(height * width);
                let places = exp.spare_capacity_mut()[..height * width].par_chunks_mut(width);
                let sums = places.zip(rows).map(|(place, row)| exponential(row, place)).collect();
                // SAFETY: as above.
                unsafe { exp.set_len(height * width) };
                (tensor(exp, shape), sums)
            };
            let thin = |i: usize| tensor(sums.iter().map(|row| row[i]).collect(), Shape::from(vec![height, 1]));
            (exp, thin(0), thin(1))
        }
    }

    /// Writes `e^(z - max)`; gives its sum, and the max.
    fn exponential(z: &[f32], exp: &mut [MaybeUninit<f32>]) -> [f32; 2] {
        vectorised(
            #[inline(always)]
            || {
                let highest = math::max(z);
                for (exp, value) in exp.iter_mut().zip(z) {
                    exp.write(math::exp(value - highest));
                }
                // SAFETY: the loop has written all.
                [math::sum([&*unsafe { written(exp) }], |[x]| x), highest]
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, device, values, vec_of};

    #[test]
    fn rows_sum_to_what_is_said() {
        for shape in [[1, 1], [3, 7], [9, 20_000]] {
            let z = values(1, shape, 30.0).tensor(&device());
            let max = z.clone().max_dim(1);
            let exp = (z.clone() - max.clone()).exp();
            let expected = [vec_of(exp.clone()), vec_of(exp.sum_dim(1)), vec_of(max)];
            let (exp, sum, max) = row_exponential(z);
            close(&[vec_of(exp), vec_of(sum), vec_of(max)], &expected, 1e-6);
        }
    }
}
