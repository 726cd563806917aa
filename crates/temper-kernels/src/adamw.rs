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
/// place where nobody else holds p, m and v. Gives p, m, v, which may be written later, with those of other updates: nobody may
/// read them before this thread has called [`finish_updates`]. For tensors without autodiff.
pub fn adamw(param: Tensor<1>, gradient: Tensor<1>, [mean, square]: [Tensor<1>; 2], form: AdamW) -> [Tensor<1>; 3] {
    let [param, gradient, mean, square] = [param, gradient, mean, square].map(Tensor::into_dispatch);
    let (param, mean, square) = <Dispatch as AdamWOps>::adamw(param, gradient, mean, square, form);
    [param, mean, square].map(Tensor::from_dispatch)
}

/// Writes what [`adamw`] has promised on this thread.
pub fn finish_updates() {
    #[cfg(feature = "cube")]
    gpu::launch();
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
    use std::cell::RefCell;

    use burn::backend::Cube;
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::prelude::*;
    use crate::cube::{all, all_f32, at_once, cubecl, flat, own};
    use crate::portable::Float;

    const UNITS: usize = 256;

    /// An update that waits: the parameter, its gradient and its moments, and what to do.
    type Waiting = ([CubeTensor; 4], AdamW);

    thread_local! {
        static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
    }

    /// The tensors of an update and its own numbers.
    #[derive(CubeType, CubeLaunch)]
    struct Part {
        param: Box<[f32]>,
        gradient: Box<[f32]>,
        mean: Box<[f32]>,
        square: Box<[f32]>,
        count: usize,
        /// Its first cube.
        first: usize,
        keep: f32,
        step_size: f32,
        root_correction: f32,
    }

    /// Several updates, of which each has the cubes from its first on, up to the next one's.
    #[cube(launch_unchecked)]
    fn adamw_kernel(parts: &mut Sequence<Part>, scale: f32, beta1: f32, beta2: f32, rest1: f32, rest2: f32, eps: f32) {
        #[unroll]
        for number in 0..parts.len() {
            let part = &mut parts[number];
            // The cubes of later ones are beyond the count.
            let at = (CUBE_POS - part.first) * UNITS + UNIT_POS as usize;
            if CUBE_POS >= part.first && at < part.count {
                let g = part.gradient[at] * scale;
                let m = beta1 * part.mean[at] + rest1 * g;
                let v = beta2 * part.square[at] + rest2 * g * g;
                part.mean[at] = m;
                part.square[at] = v;
                let step = part.step_size * m / (v.sqrt() / part.root_correction + eps);
                part.param[at] = part.keep * part.param[at] - step;
            }
        }
    }

    /// Launches what waits.
    pub fn launch() {
        WAITING.with_borrow_mut(|waiting| {
            let same = |(a, x): &Waiting, (b, y): &Waiting| {
                let shared = |form: &AdamW| [form.scale, form.betas[0], form.betas[1], form.eps];
                a[0].device == b[0].device && shared(x) == shared(y)
            };
            for alike in waiting.chunk_by(same) {
                let most = at_once(&alike[0].0[0].client, 4);
                alike.chunks(most).for_each(launch_together);
            }
            waiting.clear();
        });
    }

    fn launch_together(updates: &[Waiting]) {
        let ([tensor, ..], form) = &updates[0];
        let mut cubes = 0;
        let parts = updates.iter().map(|([param, gradient, mean, square], form)| {
            let (count, first) = (param.meta.num_elements(), cubes);
            cubes += count.div_ceil(UNITS);
            PartLaunch::new(
                all(param),
                all(gradient),
                all(mean),
                all(square),
                count,
                first,
                form.keep as f32,
                form.step_size as f32,
                form.root_correction as f32,
            )
        });
        let parts = parts.collect();
        let dim = CubeDim::new_1d(UNITS as u32);
        let count = cubecl::calculate_cube_count_elemwise(&tensor.client, cubes * UNITS, dim);
        // SAFETY: no index reaches its update's count, and the four tensors of an update hold that many.
        unsafe {
            adamw_kernel::launch_unchecked(
                &tensor.client,
                count,
                dim,
                parts,
                form.scale as f32,
                form.betas[0] as f32,
                form.betas[1] as f32,
                (1.0 - form.betas[0]) as f32,
                (1.0 - form.betas[1]) as f32,
                form.eps as f32,
            );
        }
    }

    impl AdamWOps for Cube {
        fn adamw(
            param: CubeTensor,
            gradient: CubeTensor,
            mean: CubeTensor,
            square: CubeTensor,
            form: AdamW,
        ) -> (CubeTensor, CubeTensor, CubeTensor) {
            if param.meta.num_elements() == 0 || !all_f32([&param, &gradient, &mean, &square]) {
                return portable::<Self>([param, gradient, mean, square].map(Float), form);
            }
            let [param, mean, square] = [param, mean, square].map(own);
            let [gradient] = flat([gradient]);
            // From here on memory that others hold, too, is written into: that of these results.
            let waiting = ([param.clone(), gradient, mean.clone(), square.clone()], form);
            let enough = WAITING.with_borrow_mut(|all| {
                all.push(waiting);
                all.len() >= 64
            });
            if enough {
                launch();
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
                vectorised(
                    #[inline(always)]
                    || {
                        let moments = means.iter_mut().zip(squares);
                        for ((p, g), (m, v)) in params.iter_mut().zip(gradients).zip(moments) {
                            let g = g * scale;
                            *m = beta1 * *m + rest1 * g;
                            *v = beta2 * *v + rest2 * g * g;
                            *p = keep * *p - step_size * *m / (v.sqrt() / root_correction + eps);
                        }
                    },
                );
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
            finish_updates();
            close(&found.map(vec_of), &[p, m, v].map(vec_of), 1e-6);
            close(&[param, mean].map(vec_of), &[data(1, 1.0), data(3, 0.1)].map(vec_of), 0.0);
        }
    }

    #[test]
    fn many_updates_are_those_of_each() {
        let form = |number: usize| AdamW {
            scale: 0.5,
            betas: [0.9, 0.999],
            keep: 1.0 - 1e-3 * number as f64,
            step_size: 1e-3 * (number + 1) as f64,
            root_correction: 0.5 + 1e-2 * number as f64,
            eps: 1e-8,
        };
        let data = |number: usize| {
            let count = 1 + 97 * number;
            let tensor = |seed: usize| values(seed as u64, [count], 1.0).tensor(&device());
            (tensor(number), tensor(number + 100), [tensor(number + 200), tensor(number + 300).square()])
        };
        let update = |number: usize| {
            let (param, gradient, moments) = data(number);
            adamw(param, gradient, moments, form(number))
        };
        let numbers = || (0..23).chain(0..70);
        let alone = numbers().map(|number| {
            let all = update(number);
            finish_updates();
            all.map(vec_of)
        });
        let alone: Vec<_> = alone.flatten().collect();
        let together: Vec<_> = numbers().map(update).collect();
        finish_updates();
        let together: Vec<_> = together.into_iter().flatten().map(vec_of).collect();
        close(&together, &alone, 0.0);
    }
}
