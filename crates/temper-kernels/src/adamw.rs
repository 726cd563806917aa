//! The update of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), in one walk over memory.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::portable::Float;

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// What the gradient is multiplied with first.
    pub scale: f64,
    /// How much of each moment stays: β₁, β₂.
    pub betas: [f64; 2],
    /// How much of the parameter stays: `1 - lr·λ`.
    pub keep: f64,
    /// `lr / (1 - β₁ᵗ)`.
    pub step_size: f64,
    /// `√(1 - β₂ᵗ)`.
    pub root_correction: f64,
    /// ε.
    pub eps: f64,
}

/// `g ← scale·g`, `m ← β₁m + (1-β₁)g`, `v ← β₂v + (1-β₂)g²`, `p ← keep·p - step_size · m / (√v / root_correction + ε)`, in
/// place where nobody else holds p, m and v. Gives p, m, v. For tensors without autodiff.
pub fn adamw(param: Tensor<1>, gradient: Tensor<1>, [mean, square]: [Tensor<1>; 2], form: AdamW) -> [Tensor<1>; 3] {
    let [param, gradient, mean, square] = [param, gradient, mean, square].map(Tensor::into_dispatch);
    let (param, mean, square) = <Dispatch as AdamWOps>::adamw(param, gradient, mean, square, form);
    [param, mean, square].map(Tensor::from_dispatch)
}

/// The extension behind [`adamw`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait AdamWOps: Backend {
    /// Parameter and moments after the update.
    fn adamw(
        param: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        form: AdamW,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        portable::<Self>([param, gradient, mean, square].map(Float), form)
    }
}

fn portable<B: Backend>(
    [param, gradient, mean, square]: [Float<B>; 4],
    form: AdamW,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let [beta1, beta2] = form.betas;
    let gradient = gradient.scale(form.scale);
    let mean = mean.scale(beta1) + gradient.clone().scale(1.0 - beta1);
    let square = square.scale(beta2) + (gradient.clone() * gradient).scale(1.0 - beta2);
    let root = square.clone().sqrt().scale(1.0 / form.root_correction).shift(form.eps);
    let param = param.scale(form.keep) - (mean.clone() * root.recip()).scale(form.step_size);
    (param.0, mean.0, square.0)
}

#[cfg(feature = "cube")]
mod gpu {
    use burn::backend::Cube;
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, all_f32, by_element, cubecl, flat, own};
    use crate::portable::Float;

    #[cube(launch_unchecked)]
    fn adamw_kernel(
        param: &mut [f32],
        gradient: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
        count: usize,
        scale: f32,
        beta1: f32,
        beta2: f32,
        rest1: f32,
        rest2: f32,
        keep: f32,
        step_size: f32,
        root_correction: f32,
        eps: f32,
    ) {
        if ABSOLUTE_POS >= count {
            terminate!();
        }
        let g = gradient[ABSOLUTE_POS] * scale;
        let m = beta1 * mean[ABSOLUTE_POS] + rest1 * g;
        let v = beta2 * square[ABSOLUTE_POS] + rest2 * g * g;
        mean[ABSOLUTE_POS] = m;
        square[ABSOLUTE_POS] = v;
        param[ABSOLUTE_POS] = keep * param[ABSOLUTE_POS] - step_size * m / (v.sqrt() / root_correction + eps);
    }

    impl AdamWOps for Cube {
        fn adamw(
            param: CubeTensor,
            gradient: CubeTensor,
            mean: CubeTensor,
            square: CubeTensor,
            form: AdamW,
        ) -> (CubeTensor, CubeTensor, CubeTensor) {
            let count = param.meta.num_elements();
            if count == 0 || !all_f32([&param, &gradient, &mean, &square]) {
                return portable::<Self>([param, gradient, mean, square].map(Float), form);
            }
            let [param, mean, square] = [param, mean, square].map(own);
            let [gradient] = flat([gradient]);
            let (cubes, dim) = by_element(&param.client, count);
            // SAFETY: no index reaches the count, and all tensors hold that many.
            unsafe {
                adamw_kernel::launch_unchecked(
                    &param.client,
                    cubes,
                    dim,
                    all(&param),
                    all(&gradient),
                    all(&mean),
                    all(&square),
                    count,
                    form.scale as f32,
                    form.betas[0] as f32,
                    form.betas[1] as f32,
                    (1.0 - form.betas[0]) as f32,
                    (1.0 - form.betas[1]) as f32,
                    form.keep as f32,
                    form.step_size as f32,
                    form.root_correction as f32,
                    form.eps as f32,
                );
            }
            (param, mean, square)
        }
    }
}

mod lane {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use rayon::iter::{IndexedParallelIterator, ParallelIterator};
    use rayon::slice::{ParallelSlice, ParallelSliceMut};

    use super::*;
    use crate::cpu::{CHUNK, all_f32, own, slice, vectorised};

    impl AdamWOps for Flex {
        fn adamw(
            param: FlexTensor,
            gradient: FlexTensor,
            mean: FlexTensor,
            square: FlexTensor,
            form: AdamW,
        ) -> (FlexTensor, FlexTensor, FlexTensor) {
            if !all_f32([&param, &gradient, &mean, &square]) {
                return portable::<Self>([param, gradient, mean, square].map(Float), form);
            }
            let [mut param, mut mean, mut square] = [param, mean, square].map(own);
            let gradient = gradient.to_contiguous();
            let [scale, beta1, beta2] = [form.scale, form.betas[0], form.betas[1]].map(|x| x as f32);
            let [rest1, rest2] = form.betas.map(|beta| (1.0 - beta) as f32);
            let [keep, step_size] = [form.keep, form.step_size].map(|x| x as f32);
            let [root_correction, eps] = [form.root_correction, form.eps].map(|x| x as f32);
            let params = param.storage_mut::<f32>().par_chunks_mut(CHUNK);
            let means = mean.storage_mut::<f32>().par_chunks_mut(CHUNK);
            let squares = square.storage_mut::<f32>().par_chunks_mut(CHUNK);
            let all = params.zip(slice(&gradient).par_chunks(CHUNK)).zip(means.zip(squares));
            all.for_each(|((params, gradients), (means, squares))| {
                vectorised(|| {
                    let moments = means.iter_mut().zip(squares);
                    for ((p, g), (m, v)) in params.iter_mut().zip(gradients).zip(moments) {
                        let g = g * scale;
                        *m = beta1 * *m + rest1 * g;
                        *v = beta2 * *v + rest2 * g * g;
                        *p = keep * *p - step_size * *m / (v.sqrt() / root_correction + eps);
                    }
                });
            });
            (param, mean, square)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, device, values, vec_of};

    #[test]
    fn one_walk_is_the_steps() {
        for count in [1, 100, 40_000] {
            let data = |seed, scale| values(seed, [count], scale).tensor(&device());
            let [param, gradient, mean] = [data(1, 1.0), data(2, 3.0), data(3, 0.1)];
            let square = data(4, 0.1).square();
            let form = AdamW {
                scale: 0.25,
                betas: [0.9, 0.95],
                keep: 0.999,
                step_size: 0.02,
                root_correction: 0.7,
                eps: 1e-3,
            };
            let g = gradient.clone() * 0.25;
            let m = mean.clone() * 0.9 + g.clone() * 0.1;
            let v = square.clone() * 0.95 + g.square() * 0.05;
            let p = param.clone() * 0.999 - m.clone() / (v.clone().sqrt() / 0.7 + 1e-3) * 0.02;
            // The originals are held while the update runs, so that it may not write into them.
            let found = adamw(param.clone(), gradient, [mean.clone(), square.clone()], form);
            close(&found.map(vec_of), &[p, m, v].map(vec_of), 1e-6);
            close(&[param, mean].map(vec_of), &[data(1, 1.0), data(3, 0.1)].map(vec_of), 0.0);
        }
    }
}
