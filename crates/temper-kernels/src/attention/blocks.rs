//! Attention as tensor operations on blocks of queries, for every device.

use burn::tensor::TensorData;

use super::*;
use crate::scratch::DEFAULT_SCRATCH;

/// Queries of all heads, and the keys that some of them see.
pub(super) struct Block<'a> {
    pub sizes: Sizes,
    pub form: &'a Form,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

pub(super) type Pair<B> = [Float<B>; 2];

/// What a device does in its own way.
pub(super) struct Steps<B: Backend> {
    /// The most scores that exist at once.
    pub most: usize,
    /// A gradient of the result as products take it, as [`AttentionOps::laid_out`] does with the others.
    pub laid_out: fn(Float<B>) -> Float<B>,
    /// The f32 products of two stacks of matrices.
    pub product: fn(Float<B>, Float<B>) -> Float<B>,
    /// Of `q kᵀ`, `[B, N, block, keys]`: what values are weighed with, rounded, and ln Σ e^score `[B, N, block]`.
    pub weigh: fn(Float<B>, &Block) -> Pair<B>,
    /// Of `q kᵀ` and the gradients of weights, `[B, N, block, keys]`, ln Σ e^score and how much of each query's gradient its
    /// result carries, `[B, N, block, 1]`: the gradients of `q kᵀ`, and the weights again, both rounded.
    pub slopes: fn(Pair<B>, Pair<B>, &Block) -> Pair<B>,
    /// Of a gradient of the result and the result, `[B, S, N, H]`: the sums of their products, `[B, N, S]`.
    pub along: fn(Pair<B>) -> Float<B>,
    /// Adds a block's part `[B, K, keys in sight, H]` to the gradients of all keys, `[B, K, keys, H]`.
    pub add: fn(Float<B>, Float<B>, &Block) -> Float<B>,
}

impl<B: Backend> Steps<B> {
    /// Nothing is rounded.
    pub fn portable() -> Self {
        Self { most: DEFAULT_SCRATCH, laid_out: |x| x, product: Float::matmul, weigh, slopes, along, add }
    }
}

impl<'a> Block<'a> {
    /// All blocks, the last first: in causal layers that one sees all keys.
    fn all(sizes: Sizes, form: &'a Form, most: usize) -> impl Iterator<Item = Self> {
        let size = (most / (sizes.batch * sizes.heads * sizes.keys).max(1)).clamp(1, sizes.queries.max(1));
        (0..sizes.queries).step_by(size).rev().map(move |start| {
            let queries = start..sizes.queries.min(start + size);
            let keys = form.sight.union(&queries);
            Self { sizes, form, queries, keys: if keys.is_empty() { 0..1 } else { keys } }
        })
    }

    /// `[B, N, block, keys]`.
    pub fn shape(&self) -> [usize; 4] {
        [self.sizes.batch, self.sizes.heads, self.queries.len(), self.keys.len()]
    }

    /// The same with the queries of heads that share keys behind each other: `[B, K, N/K·block, keys]`.
    fn grouped_shape(&self) -> [usize; 4] {
        let Sizes { batch, heads, shared, .. } = self.sizes;
        [batch, shared, heads / shared * self.queries.len(), self.keys.len()]
    }

    /// The keys in sight of `[B, keys, K, H]`, as `[B, K, keys, H]`.
    fn in_sight<B: Backend>(&self, x: &Float<B>) -> Float<B> {
        x.clone().narrow(1, self.keys.start, self.keys.len()).swap(1, 2)
    }

    /// The block of `[B, S, N, H]`, as `[B, K, N/K·block, H]`.
    fn grouped<B: Backend>(&self, x: &Float<B>) -> Float<B> {
        let [batch, shared, rows, _] = self.grouped_shape();
        let block = x.clone().narrow(1, self.queries.start, self.queries.len());
        block.swap(1, 2).reshape(&[batch, shared, rows, self.sizes.features])
    }

    /// The way back.
    fn ungrouped<B: Backend>(&self, x: Float<B>) -> Float<B> {
        let Sizes { batch, heads, features, .. } = self.sizes;
        x.reshape(&[batch, heads, self.queries.len(), features]).swap(1, 2)
    }

    /// `scale · q kᵀ` with the lowest f32 added out of sight.
    fn scores<B: Backend>(&self, products: Float<B>) -> Float<B> {
        let device = products.0.device();
        let dtype = products.0.dtype();
        let products = products.scale(self.form.scale);
        let (rows, [_, _, block, keys]) = (self.form.sight.rows(), self.shape());
        let mut mask = vec![f32::MIN; rows * block * keys];
        let ranges = (0..rows).flat_map(|row| self.form.sight.of(row, self.queries.clone()));
        for (mask, range) in mask.chunks_mut(keys).zip(ranges) {
            if !range.is_empty() {
                mask[range.start as usize - self.keys.start..range.end as usize - self.keys.start].fill(0.0);
            }
        }
        if mask.iter().all(|value| *value == 0.0) {
            return products;
        }
        let data = TensorData::new(mask, [rows, 1, block, keys]).convert_dtype(dtype);
        products + Float(B::float_from_data(data, &device))
    }

    /// `x` times the factors of dropout, if there is any.
    fn dropped<B: Backend>(&self, x: Float<B>) -> Float<B> {
        let Some(drop) = self.form.drop else { return x };
        let Sizes { batch, heads, queries, keys, .. } = self.sizes;
        let mut values = Vec::with_capacity(self.shape().iter().product());
        for head in 0..batch * heads {
            for query in self.queries.clone() {
                let first = (head * queries + query) * keys;
                values.extend(self.keys.clone().map(|key| drop.factor((first + key) as u32)));
            }
        }
        let data = TensorData::new(values, self.shape()).convert_dtype(x.0.dtype());
        let factors = Float(B::float_from_data(data, &x.0.device()));
        x * factors
    }
}

fn weigh<B: Backend>(products: Float<B>, block: &Block) -> Pair<B> {
    let scores = block.scores(products);
    let max = scores.clone().max_last();
    let exp = (scores - max.clone()).exp();
    let sum = exp.clone().sum(3);
    let weights = block.dropped(exp * sum.clone().recip());
    [weights, (sum.log() + max).reshape(&block.shape()[..3])]
}

fn slopes<B: Backend>([products, of_weights]: Pair<B>, [lse, along]: Pair<B>, block: &Block) -> Pair<B> {
    let weights = (block.scores(products) - lse).exp();
    let of_scores = weights.clone() * (block.dropped(of_weights) - along);
    [of_scores.scale(block.form.scale), block.dropped(weights)]
}

fn along<B: Backend>([grad, result]: Pair<B>) -> Float<B> {
    let [batch, queries, heads, _] = grad.shape()[..] else { unreachable!("four dimensions") };
    (grad * result).sum(3).swap(1, 2).reshape(&[batch, heads, queries])
}

fn add<B: Backend>(sum: Float<B>, part: Float<B>, block: &Block) -> Float<B> {
    let Range { start, end } = block.keys;
    let added = sum.clone().narrow(2, start, end - start) + part;
    sum.replaced(2, start, added)
}

/// The result, and ln Σ e^score `[B, N, S]`.
pub(super) fn forward<B: Backend>(
    [query, key, value]: [Float<B>; 3],
    form: &Form,
    steps: &Steps<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sizes = Sizes::of::<B>(&query.0, &key.0);
    let (mut results, mut sums) = (Vec::new(), Vec::new());
    for block in Block::all(sizes, form, steps.most) {
        let products = (steps.product)(block.grouped(&query), block.in_sight(&key).transpose());
        let [weights, sum] = (steps.weigh)(products.reshape(&block.shape()), &block);
        let mixed = (steps.product)(weights.reshape(&block.grouped_shape()), block.in_sight(&value));
        results.push(block.ungrouped(mixed));
        sums.push(sum);
    }
    (joined(results, 1), joined(sums, 2))
}

/// Blocks, the last first, along a dimension.
fn joined<B: Backend>(blocks: Vec<Float<B>>, dim: usize) -> FloatTensor<B> {
    Float::cat(blocks.into_iter().rev().collect(), dim).0
}

/// The gradients of query, key and value.
pub(super) fn backward<B: Backend>(
    [query, key, value, result, lse, grad]: [Float<B>; 6],
    form: &Form,
    steps: &Steps<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let sizes = Sizes::of::<B>(&query.0, &key.0);
    // How much of each query's gradient its result carries.
    let along = (steps.along)([grad.clone(), result]);
    let grad = (steps.laid_out)(grad);
    let (mut of_query, mut of_key, mut of_value) = (Vec::new(), None, None);
    for block in Block::all(sizes, form, steps.most) {
        let [queries, grads] = [&query, &grad].map(|x| block.grouped(x));
        let row = |x: &Float<B>| {
            let rows = x.clone().narrow(2, block.queries.start, block.queries.len());
            rows.reshape(&[sizes.batch, sizes.heads, block.queries.len(), 1])
        };
        let products = (steps.product)(queries.clone(), block.in_sight(&key).transpose());
        let of_weights = (steps.product)(grads.clone(), block.in_sight(&value).transpose());
        let pair = [products, of_weights].map(|x| x.reshape(&block.shape()));
        let [of_scores, weights] = (steps.slopes)(pair, [row(&lse), row(&along)], &block);
        let [of_scores, weights] = [of_scores, weights].map(|x| x.reshape(&block.grouped_shape()));

        add_up(&mut of_value, (steps.product)(weights.transpose(), grads), &block, steps);
        add_up(&mut of_key, (steps.product)(of_scores.clone().transpose(), queries), &block, steps);
        of_query.push(block.ungrouped((steps.product)(of_scores, block.in_sight(&key))));
    }
    let [of_key, of_value] =
        [(of_key, key), (of_value, value)].map(|(sum, x)| sum.map_or_else(|| x.zeros_like().0, |sum| sum.swap(1, 2).0));
    (joined(of_query, 1), of_key, of_value)
}

/// Adds a block's part `[B, K, keys in sight, H]` to the gradients of all keys, `[B, K, keys, H]`.
fn add_up<B: Backend>(sum: &mut Option<Float<B>>, part: Float<B>, block: &Block, steps: &Steps<B>) {
    let Sizes { batch, keys, shared, features, .. } = block.sizes;
    *sum = Some(match sum.take() {
        None if block.keys.len() == keys => part,
        sum => (steps.add)(sum.unwrap_or_else(|| part.zeros(&[batch, shared, keys, features])), part, block),
    });
}
