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
use burn::tensor::{DType, FloatDType, Tensor};

use blocks::Steps;

use crate::dropout::Drop;
use crate::portable::Float;
use crate::product::ProductOps;

/// Queries that share an entry of [`Sight::spans`].
#[cfg(feature = "cube")]
pub(crate) const SPAN: usize = 64;

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

    /// Whether rows of the batch have ranges of their own.
    #[cfg(feature = "cube")]
    pub(crate) fn is_apart(&self) -> bool {
        self.rows() > 1
    }

    /// Of each [`SPAN`] neighbouring queries that see something the first key that one sees, the one after the last, the first
    /// that all see, and the one after the last. All see nothing where one sees nothing, or fewer are left.
    #[cfg(feature = "cube")]
    pub(crate) fn spans(&self) -> Vec<[u32; 4]> {
        let of = |span: &[Range<u32>]| {
            let seen = union(span.iter());
            let whole = span.len() == SPAN && span.iter().all(|range| !range.is_empty());
            let from = span.iter().map(|range| range.start).max().unwrap_or(0);
            let to = span.iter().map(|range| range.end).min().filter(|_| whole).unwrap_or(0);
            [seen.start as u32, seen.end as u32, from, to]
        };
        self.ranges.chunks(self.queries).flat_map(|row| row.chunks(SPAN).map(of)).collect()
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
/// arXiv:2305.13245). Query, key and value may be for `Kernels`, the result is for `Products` (see [`Reader`](crate::Reader)). Keeps
/// query, key, value, the result and one number per query and head for the backward pass. Weights are numbered by 32 bits for
/// dropout: where B·N·S·keys is more than 2³², some have the masks of others.
///
/// # Shapes
///
/// - query: `[B, S, N, H]`
/// - key, value: `[B, keys, K, H]`
/// - result: `[B, S, N, H]`
///
/// # Panics
///
/// When they have not these shapes, or `sight` is not of them: S queries in each of B rows or in all, and no key that is not there.
pub fn attention([query, key, value]: [Tensor<4>; 3], sight: &Sight, scale: f64, drop: Option<Drop>) -> Tensor<4> {
    let ([rows, queries, heads, width], [_, keys, shared, _]) = (query.dims(), key.dims());
    assert!([key.dims(), value.dims()].iter().all(|dims| *dims == [rows, keys, shared, width]), "keys and values");
    assert!(shared > 0 && heads.is_multiple_of(shared), "{heads} heads share {shared}");
    let seen = sight.ranges.iter().filter(|range| !range.is_empty()).map(|range| range.end as usize).max();
    assert!(
        seen.unwrap_or(0) <= keys && sight.queries == queries && [1, rows].contains(&sight.rows()),
        "a sight of others"
    );
    let [query, key, value] = [query, key, value].map(Tensor::into_dispatch);
    let form = Form { sight: sight.clone(), scale, drop };
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attention(query, key, value, form))
}

/// What an attention is, its inputs aside.
#[derive(Debug, Clone)]
pub struct Form {
    pub(crate) sight: Sight,
    pub(crate) scale: f64,
    pub(crate) drop: Option<Drop>,
}

/// The extension behind [`attention`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait AttentionOps: ProductOps {
    /// The result alone.
    fn attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        form: Form,
    ) -> FloatTensor<Self> {
        let [query, key, value] = [query, key, value].map(Self::laid_out);
        Self::rounded(Self::attention_forward(query, key, value, form).0)
    }

    /// A query, key or value as the products within take it: what this gives is what the other two are given, and what is kept
    /// in between. Of the same shape, not differentiable.
    fn laid_out(x: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }

    /// The result, and ln Σ e^score `[B, N, S]`. Not differentiable.
    fn attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        blocks::forward::<Self>([query, key, value].map(Float), &form, &Steps::portable())
    }

    /// The gradients of query, key and value, f32 or of their dtype.
    fn attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        result: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        form: Form,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let inputs = [query, key, value, result, lse, grad].map(Float);
        blocks::backward::<Self>(inputs, &form, &Steps::portable())
    }
}

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
}

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
            /// Query, key, value, result, ln Σ e^score; what the first three were.
            type State = ([B::FloatTensorPrimitive; 5], [DType; 3], Form);
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let ([query, key, value, result, lse], dtypes, form) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let of = B::attention_backward(query, key, value, result, lse, grad, form);
                for ((parent, dtype), grad) in ops.parents.into_iter().zip(dtypes).zip([of.0, of.1, of.2]) {
                    if let Some(parent) = parent {
                        let grad = if dtype == DType::F32 { Float::<B>(grad).cast(FloatDType::F32).0 } else { grad };
                        grads.register::<B>(parent.id, grad);
                    }
                }
            }
        }
        let [(query, of_query), (key, of_key), (value, of_value)] = [query, key, value].map(|x| x.into_parts());
        let dtypes = [&query, &key, &value].map(|x| x.dtype());
        let [query, key, value] = [query, key, value].map(B::laid_out);
        let (result, lse) = B::attention_forward(query.clone(), key.clone(), value.clone(), form.clone());
        let result = B::rounded(result);
        match Step.prepare::<C>([of_query, of_key, of_value]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let [query, key, value] = [query, key, value].map(B::kept);
                prep.finish(([query, key, value, result.clone(), lse], dtypes, form), result)
            }
            OpsKind::UnTracked(prep) => prep.finish(result),
        }
    }
}

mod blocks;
#[cfg(feature = "cube")]
pub(crate) mod gpu;
mod lane;

#[cfg(test)]
mod tests;
