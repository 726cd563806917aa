//! Attention on the CPU: each head of each row is the work of one thread, 64 queries at a time.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::*;
use crate::cpu::bf16::Engine;
use crate::cpu::gemm::{Matrix, Target};
use crate::cpu::panels::Right;
use crate::cpu::{all_f32, math, slice, tensor, vectorised, widened};
use crate::product::lane::engine;

/// How many queries have their scores at once.
const BLOCK: usize = 64;
/// From this many multiplications on the heads are shared by all threads.
const SHARED: usize = 1 << 20;

/// One head of one row.
#[derive(Debug, Clone, Copy)]
struct Head {
    sizes: Sizes,
    row: usize,
    head: usize,
}

impl Head {
    /// Where the head's part of `[B, S, N, H]` begins, from a query on.
    fn query(self, query: usize) -> usize {
        ((self.row * self.sizes.queries + query) * self.sizes.heads + self.head) * self.sizes.features
    }

    /// Where the head's part of `[B, keys, K, H]` begins, from a key on.
    fn key(self, key: usize) -> usize {
        let Sizes { keys, heads, shared, features, .. } = self.sizes;
        ((self.row * keys + key) * shared + self.head / (heads / shared)) * features
    }

    /// Where the head's part of `[B, N, S]` begins, from a query on.
    fn sum(self, query: usize) -> usize {
        (self.row * self.sizes.heads + self.head) * self.sizes.queries + query
    }

    /// The matrix of some queries.
    fn queries(self, x: &[f32], block: &Range<usize>) -> Matrix {
        let Sizes { heads, features, .. } = self.sizes;
        Matrix::of(&x[self.query(block.start)..], block.len(), features, heads * features)
    }

    /// The matrix of all keys or values.
    fn keys(self, x: &[f32]) -> Matrix {
        let Sizes { keys, shared, features, .. } = self.sizes;
        Matrix::of(&x[self.key(0)..], keys, features, shared * features)
    }

    /// What queries are multiplied by.
    fn right(self, x: Matrix, engine: Option<Engine>) -> Right {
        Right::new(x, self.sizes.queries, engine)
    }

    /// Blocks of queries with the ranges of keys that they see, and the keys that a block has scores of.
    fn blocks(self, sight: &Sight) -> impl Iterator<Item = (Range<usize>, &[Range<u32>], Range<usize>)> {
        let queries = self.sizes.queries;
        (0..queries).step_by(BLOCK).map(move |start| {
            let block = start..queries.min(start + BLOCK);
            let ranges = sight.of(self.row, block.clone());
            (block, ranges, Right::whole(union(ranges.iter())))
        })
    }

    /// The factors of dropout from a query's first key on.
    #[inline(always)]
    fn factor(self, drop: Option<Drop>, query: usize) -> impl Fn(usize) -> f32 {
        let first = (self.sum(query) * self.sizes.keys) as u32;
        move |key| drop.map_or(1.0, |drop| drop.factor(first.wrapping_add(key as u32)))
    }
}

/// Runs `work` for each head of each row, with room for `N` times the scores of a block over all keys.
fn heads<const N: usize>(sizes: Sizes, work: impl Fn(&mut [Vec<f32>; N], Head) + Sync + Send) {
    let Sizes { batch, queries, heads, features, keys, .. } = sizes;
    let head = |i: usize| Head { sizes, row: i / heads, head: i % heads };
    let room = || [(); N].map(|()| vec![0.0; BLOCK.min(queries) * keys]);
    if batch * heads * queries * keys * features < SHARED {
        let mut room = room();
        (0..batch * heads).map(head).for_each(|head| work(&mut room, head));
    } else {
        (0..batch * heads).into_par_iter().map(head).for_each_init(room, work);
    }
}

impl AttentionOps for Flex {
    fn attention_forward(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        form: Form,
    ) -> (FlexTensor, FlexTensor) {
        if !all_f32([&query, &key, &value]) {
            return blocks::forward::<Self>([query, key, value].map(Float), &form, &Steps::portable());
        }
        let (sizes, engine) = (Sizes::of::<Flex>(&query, &key), engine([&query, &key, &value]));
        let [query, key, value] = [query, key, value].map(|x| x.to_contiguous());
        let shape = query.layout().shape().clone();
        let [query, key, value] = [&query, &key, &value].map(slice);
        let Sizes { batch, queries, heads: count, features, .. } = sizes;
        let (mut result, mut lse) = (Vec::with_capacity(query.len()), vec![0.0; batch * count * queries]);
        let out = Target::new(result.as_mut_ptr(), count * features);
        let sums = Target::new(lse.as_mut_ptr(), 1);
        heads(sizes, |[scores], head| {
            let (k, v) = (head.right(head.keys(key).transposed(), engine), head.right(head.keys(value), engine));
            for (block, ranges, keys) in head.blocks(&form.sight) {
                if keys.is_empty() {
                    // SAFETY: results of this head.
                    unsafe { clear(out.at(head.query(block.start)), block.len(), features) };
                    continue; // nothing is seen
                }
                let width = keys.len();
                let scores = &mut scores[..block.len() * width];
                // SAFETY: scratch of this thread; results and sums of this head, which no other thread has.
                unsafe {
                    let target = Target::new(scores.as_mut_ptr(), width);
                    let q = head.queries(query, &block);
                    k.product(target, false, form.scale as f32, q, [0..features, keys.clone()]);
                    vectorised(
                        #[inline(always)]
                        || {
                            for ((query, range), row) in block.clone().zip(ranges).zip(scores.chunks_exact_mut(width)) {
                                let sum =
                                    softmax(row, range, &keys, head.factor(form.drop, query), form.drop.is_some());
                                sums.at(head.sum(query)).first().write(sum);
                            }
                        },
                    );
                    let weights = Matrix::of(scores, block.len(), width, width);
                    v.product(out.at(head.query(block.start)), false, 1.0, weights, [keys, 0..features]);
                }
            }
        });
        // SAFETY: every head has written its part.
        unsafe { result.set_len(query.len()) };
        (tensor(result, shape), tensor(lse, Shape::from(vec![batch, count, queries])))
    }

    fn attention_backward(
        query: FlexTensor,
        key: FlexTensor,
        value: FlexTensor,
        result: FlexTensor,
        lse: FlexTensor,
        grad: FlexTensor,
        form: Form,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [query, key, value, result, grad] = [query, key, value, result, grad].map(widened);
        if !all_f32([&query, &key, &value, &grad]) {
            let inputs = [query, key, value, result, lse, grad].map(Float);
            return blocks::backward::<Self>(inputs, &form, &Steps::portable());
        }
        let (sizes, engine) = (Sizes::of::<Flex>(&query, &key), engine([&query, &key, &value]));
        let inputs = [query, key, value, result, lse, grad].map(|x| x.to_contiguous());
        let shapes = [0, 1].map(|i| inputs[i].layout().shape().clone());
        let [query, key, value, result, lse, grad] = inputs.each_ref().map(slice);
        let Sizes { batch, heads: count, features, keys: all, shared, .. } = sizes;
        let mut of_query = Vec::with_capacity(query.len());
        // Every head has keys and values of its own here; those of a group are added below.
        let own = batch * all * count * features;
        let (mut of_key, mut of_value) = (Vec::with_capacity(own), Vec::with_capacity(own));
        let to = |x: &mut Vec<f32>| Target::new(x.as_mut_ptr(), count * features);
        let (to_query, to_key, to_value) = (to(&mut of_query), to(&mut of_key), to(&mut of_value));
        heads(sizes, |[weights, slopes], head| {
            let [k, v] = [key, value].map(|x| head.keys(x));
            let (across, down) = ([k, v].map(|x| head.right(x.transposed(), engine)), head.right(k, engine));
            let first = (head.row * all * count + head.head) * features;
            for to in [to_key, to_value] {
                // SAFETY: gradients of this head.
                unsafe { clear(to.at(first), all, features) };
            }
            for (block, ranges, keys) in head.blocks(&form.sight) {
                if keys.is_empty() {
                    // SAFETY: as above.
                    unsafe { clear(to_query.at(head.query(block.start)), block.len(), features) };
                    continue;
                }
                let width = keys.len();
                let (weights, slopes) = (&mut weights[..block.len() * width], &mut slopes[..block.len() * width]);
                let [q, g] = [query, grad].map(|x| head.queries(x, &block));
                let place = first + keys.start * count * features;
                // SAFETY: scratch of this thread; gradients of this head, which no other thread has.
                unsafe {
                    let scores = Target::new(weights.as_mut_ptr(), width);
                    let part = [0..features, keys.clone()];
                    across[0].product(scores, false, form.scale as f32, q, part.clone());
                    across[1].product(Target::new(slopes.as_mut_ptr(), width), false, 1.0, g, part);
                    vectorised(
                        #[inline(always)]
                        || {
                            let rows = weights.chunks_exact_mut(width).zip(slopes.chunks_exact_mut(width));
                            for ((query, range), (weights, slopes)) in block.clone().zip(ranges).zip(rows) {
                                let at = head.query(query);
                                let (g, y) = (&grad[at..at + features], &result[at..at + features]);
                                let along = math::sum([g, y], |[g, y]| g * y);
                                let factor = head.factor(form.drop, query);
                                let row = Row { lse: lse[head.sum(query)], along, scale: form.scale as f32 };
                                row.turn(weights, slopes, range, &keys, factor, form.drop.is_some());
                            }
                        },
                    );
                    let weights = Matrix::of(weights, block.len(), width, width);
                    let slopes = Matrix::of(slopes, block.len(), width, width);
                    for (to, left, right) in [(to_value, weights, g), (to_key, slopes, q)] {
                        let part = [0..block.len(), 0..features];
                        Right::new(right, width, engine).product(to.at(place), true, 1.0, left.transposed(), part);
                    }
                    down.product(to_query.at(head.query(block.start)), false, 1.0, slopes, [keys, 0..features]);
                }
            }
        });
        // SAFETY: every head has written its part.
        unsafe {
            of_query.set_len(query.len());
            of_key.set_len(own);
            of_value.set_len(own);
        }
        let together =
            |own: Vec<f32>| tensor(if shared == count { own } else { gathered(&own, sizes) }, shapes[1].clone());
        (tensor(of_query, shapes[0].clone()), together(of_key), together(of_value))
    }
}

/// Writes zeros into so many rows.
///
/// # Safety
///
/// There is room for them, and nobody else uses it.
unsafe fn clear(to: Target, rows: usize, features: usize) {
    for row in 0..rows {
        // SAFETY: the caller's.
        unsafe { to.row(row).first().write_bytes(0, features) };
    }
}

/// Turns a row of scores into weights, out of sight 0, times their dropout; gives ln Σ e^score.
#[inline(always)]
fn softmax(
    row: &mut [f32],
    range: &Range<u32>,
    keys: &Range<usize>,
    factor: impl Fn(usize) -> f32,
    drops: bool,
) -> f32 {
    let (first, end) = inside(range, keys);
    row[..first].fill(0.0);
    row[end..].fill(0.0);
    let seen = &mut row[first..end];
    if seen.is_empty() {
        return 0.0;
    }
    let max = math::max(seen);
    for x in seen.iter_mut() {
        *x = math::exp(*x - max);
    }
    let sum = math::sum([seen], |[x]| x);
    let scale = 1.0 / sum;
    if drops {
        for (i, x) in seen.iter_mut().enumerate() {
            *x *= scale * factor(keys.start + first + i);
        }
    } else {
        for x in seen.iter_mut() {
            *x *= scale;
        }
    }
    max + sum.ln()
}

/// The numbers of a query in the backward pass.
struct Row {
    lse: f32,
    along: f32,
    scale: f32,
}

impl Row {
    /// Turns scores into weights (times their dropout) and the gradients of weights into those of scores.
    #[inline(always)]
    fn turn(
        &self,
        weights: &mut [f32],
        slopes: &mut [f32],
        range: &Range<u32>,
        keys: &Range<usize>,
        factor: impl Fn(usize) -> f32,
        drops: bool,
    ) {
        let (first, end) = inside(range, keys);
        for row in [&mut *weights, &mut *slopes] {
            row[..first].fill(0.0);
            row[end..].fill(0.0);
        }
        let seen = weights[first..end].iter_mut().zip(&mut slopes[first..end]);
        if drops {
            for (i, (weight, slope)) in seen.enumerate() {
                let factor = factor(keys.start + first + i);
                let w = math::exp(*weight - self.lse);
                *slope = w * (*slope * factor - self.along) * self.scale;
                *weight = w * factor;
            }
        } else {
            for (weight, slope) in seen {
                let w = math::exp(*weight - self.lse);
                *slope = w * (*slope - self.along) * self.scale;
                *weight = w;
            }
        }
    }
}

/// A query's range within the keys of its block.
#[inline(always)]
fn inside(range: &Range<u32>, keys: &Range<usize>) -> (usize, usize) {
    if range.is_empty() { (0, 0) } else { (range.start as usize - keys.start, range.end as usize - keys.start) }
}

/// `[B, keys, N, H]` summed over the heads of a group, as `[B, keys, K, H]`.
fn gathered(own: &[f32], sizes: Sizes) -> Vec<f32> {
    let Sizes { batch, heads, features, keys, shared, .. } = sizes;
    let size = heads / shared * features;
    let [sum] = crate::cpu::rows(
        batch * keys * shared,
        crate::cpu::group(size),
        [features],
        #[inline(always)]
        |range, [sum]| {
            for (group, sum) in range.zip(sum.chunks_exact_mut(features)) {
                let own = &own[group * size..(group + 1) * size];
                for (i, sum) in sum.iter_mut().enumerate() {
                    sum.write(own[i..].iter().step_by(features).sum());
                }
            }
        },
    );
    sum
}
