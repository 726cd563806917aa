//! Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) whose memory grows with the length of a row, not with its
//! square: scores exist for a block of queries at a time, forward and backward, as in FlashAttention (Dao et al. 2022,
//! arXiv:2205.14135). The backward pass makes them again from queries, keys and the logarithm of the softmax's divisor.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};

use crate::dropout::Drop;
use crate::portable::Float;

/// Which keys each query sees: a range, for causal layers, windows, texts packed into a row and padding alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Row by row, query by query; those of one row if all rows are alike.
    ranges: Arc<[Range<u32>]>,
    queries: usize,
}

impl Sight {
    /// The ranges of `queries` queries in each row, or in one row if all are alike. What a query gets that sees nothing means
    /// nothing.
    ///
    /// # Panics
    ///
    /// When they are not whole rows.
    pub fn new(ranges: Vec<Range<u32>>, queries: usize) -> Self {
        assert!(queries > 0 && ranges.len().is_multiple_of(queries));
        Self { ranges: ranges.into(), queries }
    }

    /// Every query sees the first `lengths[b]` keys of its row.
    pub fn padded(lengths: &[usize], queries: usize) -> Self {
        let alike = lengths.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = if alike { &lengths[..lengths.len().min(1)] } else { lengths };
        Self::new(rows.iter().flat_map(|length| vec![0..*length as u32; queries]).collect(), queries)
    }

    /// The ranges, row by row, query by query; those of one row if all rows are alike.
    pub fn ranges(&self) -> &[Range<u32>] {
        &self.ranges
    }

    /// How many rows it tells apart.
    fn rows(&self) -> usize {
        self.ranges.len() / self.queries
    }

    /// The ranges of some queries of a row.
    fn of(&self, row: usize, queries: Range<usize>) -> &[Range<u32>] {
        let start = if self.rows() == 1 { 0 } else { row * self.queries };
        &self.ranges[start + queries.start..start + queries.end]
    }

    /// All keys that some of these queries see, in any row.
    fn union(&self, queries: &Range<usize>) -> Range<usize> {
        union((0..self.rows()).flat_map(|row| self.of(row, queries.clone())))
    }
}

/// The smallest range that holds all that are not empty.
fn union<'a>(ranges: impl Iterator<Item = &'a Range<u32>>) -> Range<usize> {
    let ranges = ranges.filter(|range| !range.is_empty()).cloned();
    let all = ranges.reduce(|all, range| all.start.min(range.start)..all.end.max(range.end));
    all.map_or(0..0, |all| all.start as usize..all.end as usize)
}

/// `softmax(scale · q kᵀ) v` over the keys in sight. N/K neighbouring query heads share a key/value head (Ainslie et al. 2023,
/// arXiv:2305.13245). Keeps query, key, value, the result and one number per query and head for the backward pass.
///
/// # Shapes
///
/// - query: `[B, S, N, H]`
/// - key, value: `[B, keys, K, H]`
/// - result: `[B, S, N, H]`
pub fn attention([query, key, value]: [Tensor<4>; 3], sight: &Sight, scale: f64, drop: Option<Drop>) -> Tensor<4> {
    let [query, key, value] = [query, key, value].map(Tensor::into_dispatch);
    let form = Form { sight: sight.clone(), scale, drop };
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attention(query, key, value, form))
}

/// What an attention is, its inputs aside.
#[derive(Debug, Clone)]
pub struct Form {
    sight: Sight,
    scale: f64,
    drop: Option<Drop>,
}

/// The extension behind [`attention`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait AttentionOps: Backend {
    /// The result alone.
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        Self::attention_forward(query, key, value, form).0
    }

    /// The result, and ln Σ e^score `[B, N, S]`. Not differentiable.
    fn attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        portable::<Self>([query, key, value].map(Float), &form)
    }

    /// The gradients of query, key and value.
    fn attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        result: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [query, key, value] = portable_backward::<Self>([query, key, value, result, lse, grad].map(Float), &form);
        (query, key, value)
    }
}

/// The most scores that exist at once in the portable form (64 MiB of f32).
const SCORES: usize = 16 << 20;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    heads: usize,
    features: usize,
    keys: usize,
    shared: usize,
}

impl Sizes {
    fn of<B: Backend>(query: &FloatTensor<B>, key: &FloatTensor<B>) -> Self {
        let (q, k) = (query.shape(), key.shape());
        Self { batch: q[0], queries: q[1], heads: q[2], features: q[3], keys: k[1], shared: k[2] }
    }

    /// The blocks of queries in the portable form.
    fn blocks(&self, scores: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = (scores / (self.batch * self.heads * self.keys).max(1)).clamp(1, self.queries.max(1));
        let queries = self.queries;
        (0..queries).step_by(size).map(move |start| start..queries.min(start + size))
    }

    /// `[B, block, N, H]` as `[B, K, N/K·block, H]`.
    fn grouped<B: Backend>(&self, x: Float<B>) -> Float<B> {
        let block = x.shape()[1];
        x.swap(1, 2).reshape(&[self.batch, self.shared, self.heads / self.shared * block, self.features])
    }

    /// The way back.
    fn ungrouped<B: Backend>(&self, x: Float<B>, block: usize) -> Float<B> {
        x.reshape(&[self.batch, self.heads, block, self.features]).swap(1, 2)
    }
}

/// `scale · q kᵀ` of a block, `[B, N, block, keys in sight]`, with the lowest f32 added out of sight.
fn scores<B: Backend>(
    query: Float<B>,
    key: Float<B>,
    sizes: Sizes,
    form: &Form,
    block: &Range<usize>,
    keys: &Range<usize>,
) -> Float<B> {
    let device = query.0.device();
    let dtype = query.0.dtype();
    let shape = [sizes.batch, sizes.heads, block.len(), keys.len()];
    let products = query.matmul(key.transpose()).reshape(&shape).scale(form.scale);
    let rows = form.sight.rows();
    let mut mask = vec![f32::MIN; rows * block.len() * keys.len()];
    let ranges = (0..rows).flat_map(|row| form.sight.of(row, block.clone()));
    for (mask, range) in mask.chunks_mut(keys.len()).zip(ranges) {
        if !range.is_empty() {
            mask[range.start as usize - keys.start..range.end as usize - keys.start].fill(0.0);
        }
    }
    if mask.iter().all(|value| *value == 0.0) {
        return products;
    }
    let data = TensorData::new(mask, [rows, 1, block.len(), keys.len()]).convert_dtype(dtype);
    products + Float(B::float_from_data(data, &device))
}

/// The factors of dropout for a block, if there is any.
fn factors<B: Backend>(
    like: &Float<B>,
    sizes: Sizes,
    form: &Form,
    block: &Range<usize>,
    keys: &Range<usize>,
) -> Option<Float<B>> {
    let drop = form.drop?;
    let mut values = Vec::with_capacity(sizes.batch * sizes.heads * block.len() * keys.len());
    for head in 0..sizes.batch * sizes.heads {
        for query in block.clone() {
            let first = (head * sizes.queries + query) * sizes.keys;
            values.extend(keys.clone().map(|key| drop.factor((first + key) as u32)));
        }
    }
    let shape = [sizes.batch, sizes.heads, block.len(), keys.len()];
    let data = TensorData::new(values, shape).convert_dtype(like.0.dtype());
    Some(Float(B::float_from_data(data, &like.0.device())))
}

fn portable<B: Backend>(inputs: [Float<B>; 3], form: &Form) -> (FloatTensor<B>, FloatTensor<B>) {
    portable_by(inputs, form, SCORES)
}

fn portable_by<B: Backend>(
    [query, key, value]: [Float<B>; 3],
    form: &Form,
    most: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sizes = Sizes::of::<B>(&query.0, &key.0);
    let (mut results, mut sums) = (Vec::new(), Vec::new());
    for block in sizes.blocks(most) {
        let keys = form.sight.union(&block);
        let keys = if keys.is_empty() { 0..1 } else { keys };
        let part = |x: &Float<B>| x.clone().narrow(1, keys.start, keys.len()).swap(1, 2);
        let queries = sizes.grouped(query.clone().narrow(1, block.start, block.len()));
        let scores = scores(queries, part(&key), sizes, form, &block, &keys);
        let max = scores.clone().max_last();
        let exp = (scores - max.clone()).exp();
        let sum = exp.clone().sum(3);
        let weights = exp * sum.clone().recip();
        let weights = match factors(&weights, sizes, form, &block, &keys) {
            None => weights,
            Some(factors) => weights * factors,
        };
        let grouped = [sizes.batch, sizes.shared, sizes.heads / sizes.shared * block.len(), keys.len()];
        let mixed = weights.reshape(&grouped).matmul(part(&value));
        results.push(sizes.ungrouped(mixed, block.len()));
        sums.push((sum.log() + max).reshape(&[sizes.batch, sizes.heads, block.len()]));
    }
    (Float::cat(results, 1).0, Float::cat(sums, 2).0)
}

fn portable_backward<B: Backend>(inputs: [Float<B>; 6], form: &Form) -> [FloatTensor<B>; 3] {
    portable_backward_by(inputs, form, SCORES)
}

fn portable_backward_by<B: Backend>(
    [query, key, value, result, lse, grad]: [Float<B>; 6],
    form: &Form,
    most: usize,
) -> [FloatTensor<B>; 3] {
    let sizes = Sizes::of::<B>(&query.0, &key.0);
    // [B, N, S, 1]: how much of each query's gradient its result carries.
    let along = (grad.clone() * result).sum(3).swap(1, 2);
    let (mut of_query, mut of_key, mut of_value) = (Vec::new(), key.zeros_like(), value.zeros_like());
    for block in sizes.blocks(most) {
        let keys = form.sight.union(&block);
        let keys = if keys.is_empty() { 0..1 } else { keys };
        let part = |x: &Float<B>| x.clone().narrow(1, keys.start, keys.len()).swap(1, 2);
        let queries = sizes.grouped(query.clone().narrow(1, block.start, block.len()));
        let grads = sizes.grouped(grad.clone().narrow(1, block.start, block.len()));
        let flat = [sizes.batch, sizes.heads, block.len(), keys.len()];
        let grouped = [sizes.batch, sizes.shared, sizes.heads / sizes.shared * block.len(), keys.len()];
        let row = |x: &Float<B>| x.clone().narrow(2, block.start, block.len()).reshape(&[flat[0], flat[1], flat[2], 1]);

        let weights = (scores(queries.clone(), part(&key), sizes, form, &block, &keys) - row(&lse)).exp();
        let factors = factors(&weights, sizes, form, &block, &keys);
        let dropped = |x: Float<B>| match &factors {
            None => x,
            Some(factors) => x * factors.clone(),
        };
        let of_weights = dropped(grads.clone().matmul(part(&value).transpose()).reshape(&flat));
        let of_scores = (weights.clone() * (of_weights - row(&along))).scale(form.scale).reshape(&grouped);
        let weights = dropped(weights).reshape(&grouped);

        let add = |all: Float<B>, new: Float<B>| {
            let sum = all.clone().narrow(1, keys.start, keys.len()) + new.swap(1, 2);
            all.replaced(1, keys.start, sum)
        };
        of_value = add(of_value, weights.transpose().matmul(grads));
        of_key = add(of_key, of_scores.clone().transpose().matmul(queries));
        of_query.push(sizes.ungrouped(of_scores.matmul(part(&key)), block.len()));
    }
    [Float::cat(of_query, 1).0, of_key.0, of_value.0]
}

#[cfg(feature = "cube")]
impl AttentionOps for burn::backend::Cube {}

impl<B: AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: AttentionOps> Backward<B, 3> for Step {
            /// Query, key, value, result, ln Σ e^score.
            type State = ([B::FloatTensorPrimitive; 5], Form);
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let ([query, key, value, result, lse], form) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let of = B::attention_backward(query, key, value, result, lse, grad, form);
                for (parent, grad) in ops.parents.into_iter().zip([of.0, of.1, of.2]) {
                    if let Some(parent) = parent {
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let [(query, of_query), (key, of_key), (value, of_value)] = [query, key, value].map(|x| x.into_parts());
        let (result, lse) = B::attention_forward(query.clone(), key.clone(), value.clone(), form.clone());
        match Step.prepare::<C>([of_query, of_key, of_value]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([query, key, value, result.clone(), lse], form), result),
            OpsKind::UnTracked(prep) => prep.finish(result),
        }
    }
}

mod lane;

#[cfg(test)]
mod tests;
