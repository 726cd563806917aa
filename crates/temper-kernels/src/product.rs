//! Matrix products: plain, with what a low-rank adapter adds, and the bias after them.

use std::sync::atomic::{AtomicU8, Ordering};

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};

use crate::portable::Float;
use crate::quantized::{Matrix, Quantized, QuantizedOps};
use crate::sum::{Place, SumOps};

/// How f32 matrices are multiplied: those of layers, and on GPUs those within [`attention`](crate::attention()), which stay
/// f32 on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    F32,
    /// Rounded to bfloat16 (8 bits of precision, the range of f32) and added up in f32.
    Bf16,
    /// Rounded to IEEE half precision (11 bits, up to 65,504) and added up in f32.
    F16,
}

static PRECISION: AtomicU8 = AtomicU8::new(Precision::F32 as u8);

/// Sets how this process multiplies. At the start, f32.
pub fn set_precision(precision: Precision) {
    PRECISION.store(precision as u8, Ordering::Relaxed);
}

pub(crate) fn precision() -> Precision {
    match PRECISION.load(Ordering::Relaxed) {
        x if x == Precision::Bf16 as u8 => Precision::Bf16,
        x if x == Precision::F16 as u8 => Precision::F16,
        _ => Precision::F32,
    }
}

/// Whether this processor multiplies bfloat16, so that [`Format::Bf16Packed`](crate::Format::Bf16Packed) gains something.
pub fn has_bf16_products() -> bool {
    crate::cpu::bf16::Engine::best() != crate::cpu::bf16::Engine::Rounded
}

/// The matrix product. Both operands must have one dtype: some backends of burn would otherwise read the bits of one as
/// the other's. Of two matrices, keeps what their gradients need: nothing for those that are not tracked.
///
/// # Panics
///
/// When they have not.
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    assert_eq!(lhs.dtype(), rhs.dtype(), "matrix product of two dtypes, shapes {} and {}", lhs.shape(), rhs.shape());
    if D != 2 {
        return lhs.matmul(rhs);
    }
    Tensor::from_dispatch(<Dispatch as ProductOps>::product(lhs.into_dispatch(), rhs.into_dispatch(), 1.0))
}

/// W `[out, in]` of a linear layer, as the layer holds it.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum Weight {
    /// As it is.
    Dense(Tensor<2>),
    /// In few bits, frozen.
    Quantized(Quantized),
}

impl Weight {
    /// Its values.
    pub fn dense(self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight,
            Self::Quantized(weight) => weight.decode(),
        }
    }

    /// For a product with something of that dtype.
    fn into_dispatch(self, dtype: DType) -> Matrix<Dispatch> {
        match self {
            Self::Dense(weight) => {
                assert_eq!(weight.dtype(), dtype, "matrix product of two dtypes");
                Matrix::Dense(weight.into_dispatch())
            }
            Self::Quantized(weight) => weight.into_dispatch(),
        }
    }
}

/// `x Wᵀ`. A weight in few bits is kept as it is, and decoded again for the gradient of `x`.
///
/// # Shapes
///
/// - x: `[T, in]`, weight: `[out, in]`
/// - result: `[T, out]`
///
/// # Panics
///
/// When they have different dtypes.
pub fn linear(x: Tensor<2>, weight: Weight) -> Tensor<2> {
    let weight = weight.into_dispatch(x.dtype());
    Tensor::from_dispatch(<Dispatch as ProductOps>::weighted(x.into_dispatch(), weight))
}

/// `x Wᵀ + b`.
///
/// # Shapes
///
/// - x: `[T, in]`, weight: `[out, in]`, bias: `[out]`
/// - result: `[T, out]`
///
/// # Panics
///
/// When they have different dtypes.
pub fn biased(x: Tensor<2>, weight: Weight, bias: Tensor<1>) -> Tensor<2> {
    let weight = weight.into_dispatch(x.dtype());
    Tensor::from_dispatch(<Dispatch as ProductOps>::biased(x.into_dispatch(), weight, bias.into_dispatch()))
}

/// `x Wᵀ + s·(x Aᵀ) Bᵀ`, a linear layer with LoRA (Hu et al. 2021, arXiv:2106.09685), added up where it is computed. The
/// product with W keeps nothing for the backward pass unless W is tracked; A and B keep `x` and `x Aᵀ`.
///
/// # Shapes
///
/// - x: `[T, in]`, weight: `[out, in]`, a: `[r, in]`, b: `[out, r]`
/// - result: `[T, out]`
///
/// # Panics
///
/// When they have different dtypes.
pub fn lora_product(x: Tensor<2>, weight: Weight, [a, b]: [Tensor<2>; 2], scaling: f64) -> Tensor<2> {
    let dtype = x.dtype();
    assert!([&a, &b].iter().all(|y| y.dtype() == dtype), "matrix product of several dtypes");
    let weight = weight.into_dispatch(dtype);
    let [x, a, b] = [x, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as ProductOps>::lora(x, weight, a, b, scaling))
}

/// `x` as products round it, where that once is less work than in each of several products; else `x`. For operands of
/// [`matmul`] alone, both of them, and tensors without autodiff.
pub fn rounded(x: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as ProductOps>::rounded(x.into_dispatch()))
}

/// Adds `row` to each row of `x`, in place where nobody else holds `x`.
///
/// # Shapes
///
/// - x, result: `[T, D]`
/// - row: `[D]`
pub fn add_rows(x: Tensor<2>, row: Tensor<1>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as ProductOps>::add_rows(x.into_dispatch(), row.into_dispatch()))
}

/// The extension behind this file.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait ProductOps: QuantizedOps + SumOps {
    /// `alpha · lhs · rhs` of matrices.
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, alpha: f64) -> FloatTensor<Self> {
        portable::<Self>(None, Float(lhs), Float(rhs), alpha).0
    }

    /// `sum + lhs · rhs` of matrices. Not differentiable.
    fn add_product(sum: FloatTensor<Self>, lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        portable::<Self>(Some(Float(sum)), Float(lhs), Float(rhs), 1.0).0
    }

    /// An operand as [`rounded`] makes it.
    fn rounded(x: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }

    /// The same of what one product after the other takes: the last one is remembered.
    fn shared(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::rounded(x)
    }

    /// `alpha · lhs · rhs` as an operand of another product.
    fn operand(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, alpha: f64) -> FloatTensor<Self> {
        Self::rounded(Self::product(lhs, rhs, alpha))
    }

    /// `x Wᵀ`.
    fn weighted(x: FloatTensor<Self>, #[extension_type] weight: Matrix<Self>) -> FloatTensor<Self> {
        Self::product(x, transposed::<Self>(weight.dense()), 1.0)
    }

    /// `x Wᵀ + b`.
    fn biased(
        x: FloatTensor<Self>,
        #[extension_type] weight: Matrix<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::add_rows(Self::weighted(x, weight), bias)
    }

    /// `g W`, the gradient of x in `x Wᵀ`.
    fn through(grad: FloatTensor<Self>, #[extension_type] weight: Matrix<Self>) -> FloatTensor<Self> {
        Self::product(grad, weight.dense(), 1.0)
    }

    /// `sum + g W`. Not differentiable.
    fn add_through(
        sum: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        #[extension_type] weight: Matrix<Self>,
    ) -> FloatTensor<Self> {
        Self::add_product(sum, grad, weight.dense())
    }

    /// `x Wᵀ + s·(x Aᵀ) Bᵀ`.
    fn lora(
        x: FloatTensor<Self>,
        #[extension_type] weight: Matrix<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f64,
    ) -> FloatTensor<Self> {
        adapted::<Self>(Self::shared(x), weight, a, b, scaling).0
    }

    /// `x + row`.
    fn add_rows(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self> {
        (Float::<Self>(x) + Float(row).along_last(2)).0
    }

    /// The sum of all rows. Not differentiable.
    fn sum_rows(x: FloatTensor<Self>) -> FloatTensor<Self> {
        portable_sum_rows::<Self>(x)
    }
}

fn portable<B: Backend>(sum: Option<Float<B>>, lhs: Float<B>, rhs: Float<B>, alpha: f64) -> Float<B> {
    let product = match precision() {
        Precision::F32 => lhs.matmul(rhs),
        Precision::Bf16 => lhs.cast(FloatDType::BF16).matmul(rhs.cast(FloatDType::BF16)).cast(FloatDType::F32),
        Precision::F16 => lhs.cast(FloatDType::F16).matmul(rhs.cast(FloatDType::F16)).cast(FloatDType::F32),
    };
    let product = if alpha == 1.0 { product } else { product.scale(alpha) };
    match sum {
        None => product,
        Some(sum) => sum + product,
    }
}

/// `x Wᵀ + s·(x Aᵀ) Bᵀ`, and `s·x Aᵀ`.
fn adapted<B: ProductOps>(
    x: FloatTensor<B>,
    weight: Matrix<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    scaling: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let thin = B::operand(x.clone(), transposed::<B>(a), scaling);
    let base = B::weighted(x, weight);
    (B::add_product(base, thin.clone(), transposed::<B>(b)), thin)
}

/// `g W`, added to what there is.
fn through<B: ProductOps>(sum: Option<FloatTensor<B>>, grad: FloatTensor<B>, weight: Matrix<B>) -> FloatTensor<B> {
    match sum {
        Some(sum) => B::add_through(sum, grad, weight),
        None => B::through(grad, weight),
    }
}

/// The sum of all rows.
fn portable_sum_rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = Float::<B>(x);
    let width = x.shape()[1];
    x.sum(0).reshape(&[width]).0
}

fn transposed<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    Float::<B>(x).transpose().0
}

impl<B: ProductOps, C: CheckpointStrategy> ProductOps for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, alpha: f64) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 2> for Step {
            /// The left operand if the right one is tracked, the right one if the left is, alpha.
            type State = ([Option<B::FloatTensorPrimitive>; 2], f64);
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = B::rounded(grads.consume::<B>(&ops.node));
                let of_lhs = Place::<B>::of(&ops, 0, grads);
                let ([lhs, rhs], alpha) = ops.state;
                let [_, of_rhs] = ops.parents;
                if let (Some(place), Some(rhs)) = (of_lhs, rhs) {
                    let (grad, rhs) = (grad.clone(), transposed::<B>(rhs));
                    place.fill_from(grads, |before| match before {
                        Some(before) if alpha == 1.0 => B::add_product(before, grad, rhs),
                        Some(before) => B::plus(before, B::product(grad, rhs, alpha)),
                        None => B::product(grad, rhs, alpha),
                    });
                }
                if let (Some(node), Some(lhs)) = (of_rhs, lhs) {
                    grads.register::<B>(node.id, B::product(transposed::<B>(lhs), grad, alpha));
                }
            }
        }
        let tracked = [&lhs, &rhs].map(|x| x.is_tracked());
        let [(lhs, of_lhs), (rhs, of_rhs)] = [lhs, rhs].map(|x| x.into_parts());
        // Kept as it is multiplied; the right one is a weight, which is there anyway.
        let lhs = B::shared(lhs);
        let kept = [(tracked[1], &lhs), (tracked[0], &rhs)].map(|(needed, x)| needed.then(|| x.clone()));
        let y = B::product(lhs, rhs, alpha);
        match Step.prepare::<C>([of_lhs, of_rhs]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((kept, alpha), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn weighted(x: FloatTensor<Self>, weight: Matrix<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 2> for Step {
            type State = Multiplied<B>;
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                multiplied::<B, 2>(ops, grad, grads);
            }
        }
        let values = values(&weight);
        let tracked = values.is_tracked();
        let ((x, of_x), (_, of_weight), weight) = (x.into_parts(), values.into_parts(), untracked(weight));
        let x = B::shared(x);
        let y = B::weighted(x.clone(), weight.clone());
        match Step.prepare::<C>([of_x, of_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, tracked.then_some(x)), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn biased(x: FloatTensor<Self>, weight: Matrix<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 3> for Step {
            type State = Multiplied<B>;
            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                if let Some(node) = &ops.parents[2] {
                    grads.register::<B>(node.id, B::sum_rows(grad.clone()));
                }
                multiplied::<B, 3>(ops, grad, grads);
            }
        }
        let values = values(&weight);
        let tracked = values.is_tracked();
        let ((x, of_x), (_, of_weight), weight) = (x.into_parts(), values.into_parts(), untracked(weight));
        let (x, (bias, of_bias)) = (B::shared(x), bias.into_parts());
        let y = B::biased(x.clone(), weight.clone(), bias);
        match Step.prepare::<C>([of_x, of_weight, of_bias]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, tracked.then_some(x)), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn lora(
        x: FloatTensor<Self>,
        weight: Matrix<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 4> for Step {
            /// W, x, A, B, s·x Aᵀ, s.
            type State = (Matrix<B>, [B::FloatTensorPrimitive; 4], f64);
            fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = B::rounded(grads.consume::<B>(&ops.node));
                let of_x = Place::<B>::of(&ops, 0, grads);
                let (weight, [x, a, b, thin], scaling) = ops.state;
                let [_, of_weight, of_a, of_b] = ops.parents;
                let of_thin = B::operand(grad.clone(), b, scaling);
                if let Some(node) = of_b {
                    grads.register::<B>(node.id, B::product(transposed::<B>(grad.clone()), thin, 1.0));
                }
                if let Some(node) = of_a {
                    let gradient = B::product(transposed::<B>(of_thin.clone()), x.clone(), 1.0);
                    grads.register::<B>(node.id, gradient);
                }
                if let Some(node) = of_weight {
                    grads.register::<B>(node.id, B::product(transposed::<B>(grad.clone()), x, 1.0));
                }
                if let Some(place) = of_x {
                    place.fill_from(grads, |before| B::add_product(through::<B>(before, grad, weight), of_thin, a));
                }
            }
        }
        let ((_, of_weight), weight) = (values(&weight).into_parts(), untracked(weight));
        let [(x, of_x), (a, of_a), (b, of_b)] = [x, a, b].map(|x| x.into_parts());
        let (x, [a, b]) = (B::shared(x), [a, b].map(B::rounded));
        let (y, thin) = adapted::<B>(x.clone(), weight.clone(), a.clone(), b.clone(), scaling);
        match Step.prepare::<C>([of_x, of_weight, of_a, of_b]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weight, [x, a, b, thin], scaling), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn add_rows(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: ProductOps> Backward<B, 2> for Step {
            type State = ();
            fn backward(self, ops: Ops<(), 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let [of_x, of_row] = ops.parents;
                if let Some(node) = of_row {
                    grads.register::<B>(node.id, B::sum_rows(grad.clone()));
                }
                if let Some(node) = of_x {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
        let ((x, of_x), (row, of_row)) = (x.into_parts(), row.into_parts());
        Step.prepare::<C>([of_x, of_row]).compute_bound().stateless(B::add_rows(x, row))
    }
}

/// W of `x Wᵀ`, and x if W is tracked.
type Multiplied<B> = (Matrix<B>, Option<FloatTensor<B>>);

/// Sends the gradient of `x Wᵀ` to x and W, the first two parents.
fn multiplied<B: ProductOps, const N: usize>(ops: Ops<Multiplied<B>, N>, grad: FloatTensor<B>, grads: &mut Gradients) {
    let (grad, of_x) = (B::rounded(grad), Place::<B>::of(&ops, 0, grads));
    let (weight, x) = ops.state;
    if let (Some(node), Some(x)) = (&ops.parents[1], x) {
        grads.register::<B>(node.id, B::product(transposed::<B>(grad.clone()), x, 1.0));
    }
    if let Some(place) = of_x {
        place.fill_from(grads, |before| through::<B>(before, grad, weight));
    }
}

/// What of a matrix may be tracked: nothing tracks the magnitudes of a weight in few bits.
fn values<B: Backend>(matrix: &Matrix<B>) -> FloatTensor<B> {
    let (Matrix::Dense(values) | Matrix::Quantized { scales: values, .. }) = matrix;
    values.clone()
}

/// A matrix without its graph.
fn untracked<B: Backend, C: CheckpointStrategy>(matrix: Matrix<Autodiff<B, C>>) -> Matrix<B> {
    match matrix {
        Matrix::Dense(matrix) => Matrix::Dense(matrix.into_parts().0),
        Matrix::Quantized { words, scales, layout } => {
            Matrix::Quantized { words, scales: scales.into_parts().0, layout }
        }
    }
}

mod lane {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::Shape;
    use rayon::iter::ParallelIterator;
    use rayon::slice::ParallelSliceMut;

    use super::*;
    use crate::cpu::bf16::{self, Begin};
    use crate::cpu::gemm::{self, Matrix as Slices, Target};
    use crate::cpu::math;
    use crate::cpu::{all_f32, group, own, rows, slice, tensor, vectorised, written};
    use crate::quantized::Layout;
    use crate::quantized::lane::panels;

    fn multiply(sum: Option<FlexTensor>, lhs: FlexTensor, rhs: FlexTensor, alpha: f64) -> FlexTensor {
        let ([m, k], [_, n]): ([usize; 2], [usize; 2]) = (lhs.layout().shape().dims(), rhs.layout().shape().dims());
        if !all_f32([&lhs, &rhs].into_iter().chain(&sum)) || m * n * k == 0 {
            return portable::<Flex>(sum.map(Float), Float(lhs), Float(rhs), alpha).0;
        }
        let (a, b, alpha) = (Slices::tensor(&lhs), Slices::tensor(&rhs), alpha as f32);
        // SAFETY: room for m·n values, which are there if they are added to.
        placed(sum, m, n, |out, add| unsafe { into(Target::new(out, n), add, alpha, a, b) })
    }

    /// A matrix that `write` adds to `sum` or, where there is none, writes.
    fn placed(sum: Option<FlexTensor>, rows: usize, columns: usize, write: impl FnOnce(*mut f32, bool)) -> FlexTensor {
        let Some(sum) = sum else {
            let mut out = Vec::with_capacity(rows * columns);
            write(out.as_mut_ptr(), false);
            // SAFETY: all of them were written.
            unsafe { out.set_len(rows * columns) };
            return tensor(out, Shape::from(vec![rows, columns]));
        };
        let mut sum = own(sum);
        let values = sum.storage_mut::<f32>();
        assert_eq!(values.len(), rows * columns);
        write(values.as_mut_ptr(), true);
        sum
    }

    /// Whether products of `x` go by the processor's own in bf16, and there is something to multiply.
    fn by_engine(x: &FlexTensor) -> bool {
        let engine = precision() == Precision::Bf16 && has_bf16_products();
        engine && all_f32([x]) && x.layout().num_elements() > 0
    }

    /// `x` by Wᵀ (side 0) or by W (1), added to `sum`: with panels that are packed already, where there are some.
    fn by_weight(sum: Option<FlexTensor>, x: FlexTensor, weight: Matrix<Flex>, side: usize) -> FlexTensor {
        match &weight {
            Matrix::Quantized { words, layout, .. } if layout.is_packed() && by_engine(&x) => {
                let ([rows, _], columns): ([usize; 2], _) = (x.layout().shape().dims(), layout.shape()[side]);
                placed(sum, rows, columns, |out, add| {
                    let begin = if add { Begin::Sum } else { Begin::Nothing };
                    // SAFETY: room for all values, which are there if they are added to.
                    unsafe { by_panels(Target::new(out, columns), begin, &x, words, *layout, side) };
                })
            }
            _ if side == 0 => multiply(sum, x, transposed::<Flex>(weight.dense()), 1.0),
            _ => multiply(sum, x, weight.dense(), 1.0),
        }
    }

    /// The product with panels of W.
    ///
    /// # Safety
    ///
    /// As for [`gemm::product`].
    unsafe fn by_panels(out: Target, begin: Begin, x: &FlexTensor, words: &FlexTensor, layout: Layout, side: usize) {
        let words: &[i32] = words.as_slice().expect("contiguous words");
        let (columns, panels) = (layout.shape()[side], panels(words, layout)[side]);
        // SAFETY: the caller's.
        unsafe { bf16::product_with(bf16::Engine::best(), out, begin, 1.0, Slices::tensor(x), panels, columns) };
    }

    /// The product in the precision that was set.
    ///
    /// # Safety
    ///
    /// As for [`gemm::product`].
    unsafe fn into(out: Target, add: bool, alpha: f32, a: Slices, b: Slices) {
        // SAFETY: the caller's.
        unsafe {
            match precision() {
                Precision::F32 => gemm::product(out, add, alpha, a, b, true),
                Precision::Bf16 => {
                    let begin = if add { Begin::Sum } else { Begin::Nothing };
                    bf16::product(bf16::Engine::best(), out, begin, alpha, a, b);
                }
                Precision::F16 => gemm::rounded(out, add, alpha, a, b, math::to_f16),
            }
        }
    }

    impl ProductOps for Flex {
        fn product(lhs: FlexTensor, rhs: FlexTensor, alpha: f64) -> FlexTensor {
            multiply(None, lhs, rhs, alpha)
        }

        fn weighted(x: FlexTensor, weight: Matrix<Flex>) -> FlexTensor {
            by_weight(None, x, weight, 0)
        }

        /// The bias is there before the product is added, while that is in a cache.
        fn biased(x: FlexTensor, weight: Matrix<Flex>, bias: FlexTensor) -> FlexTensor {
            if !(by_engine(&x) && by_engine(&bias)) {
                return Self::add_rows(Self::weighted(x, weight), bias);
            }
            let ([rows, _], bias): ([usize; 2], _) = (x.layout().shape().dims(), bias.to_contiguous());
            let (columns, begin) = (slice(&bias).len(), Begin::Row(slice(&bias)));
            placed(None, rows, columns, |out, _| {
                let out = Target::new(out, columns);
                // SAFETY: room for all values.
                unsafe {
                    match weight {
                        Matrix::Quantized { words, layout, .. } if layout.is_packed() => {
                            by_panels(out, begin, &x, &words, layout, 0);
                        }
                        weight => {
                            let (x, weight) = (Slices::tensor(&x), weight.dense());
                            bf16::product(
                                bf16::Engine::best(),
                                out,
                                begin,
                                1.0,
                                x,
                                Slices::tensor(&weight).transposed(),
                            );
                        }
                    }
                }
            })
        }

        fn through(grad: FlexTensor, weight: Matrix<Flex>) -> FlexTensor {
            by_weight(None, grad, weight, 1)
        }

        fn add_through(sum: FlexTensor, grad: FlexTensor, weight: Matrix<Flex>) -> FlexTensor {
            by_weight(Some(sum), grad, weight, 1)
        }

        fn add_product(sum: FlexTensor, lhs: FlexTensor, rhs: FlexTensor) -> FlexTensor {
            multiply(Some(sum), lhs, rhs, 1.0)
        }

        fn add_rows(x: FlexTensor, row: FlexTensor) -> FlexTensor {
            if !all_f32([&x, &row]) {
                return (Float::<Self>(x) + Float(row).along_last(2)).0;
            }
            let (mut x, row) = (own(x), row.to_contiguous());
            let [_, width]: [usize; 2] = x.layout().shape().dims();
            let (row, size) = (slice(&row), group(width) * width);
            x.storage_mut::<f32>().par_chunks_mut(size.max(1)).for_each(|piece| {
                vectorised(
                    #[inline(always)]
                    || {
                        for x in piece.chunks_exact_mut(width) {
                            for (x, row) in x.iter_mut().zip(row) {
                                *x += row;
                            }
                        }
                    },
                );
            });
            x
        }

        fn sum_rows(x: FlexTensor) -> FlexTensor {
            if !all_f32([&x]) {
                return portable_sum_rows::<Self>(x);
            }
            let x = x.to_contiguous();
            let [height, width]: [usize; 2] = x.layout().shape().dims();
            let values = slice(&x);
            // One partial sum for each group of rows, in a fixed order: the same on any number of threads.
            let size = group(width).max(16);
            let [partial] = rows(
                height.div_ceil(size),
                1,
                [width],
                #[inline(always)]
                |range, [partial]| {
                    for value in partial.iter_mut() {
                        value.write(0.0);
                    }
                    // SAFETY: just written.
                    let partial = unsafe { written(partial) };
                    let first = range.start * size;
                    for row in first..height.min(first + size) {
                        for (sum, x) in partial.iter_mut().zip(&values[row * width..(row + 1) * width]) {
                            *sum += x;
                        }
                    }
                },
            );
            let at = |i: usize| partial.iter().skip(i).step_by(width).sum::<f32>();
            tensor((0..width).map(at).collect(), Shape::from(vec![width]))
        }
    }
}

#[cfg(feature = "cube")]
pub(crate) mod gpu {
    use std::cell::RefCell;

    use burn::backend::Cube;
    use burn::backend::ops::FloatTensorOps;
    use burn::tensor::DType;
    use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
    use burn_cubecl::tensor::CubeTensor;

    use super::*;
    use crate::cube::cubecl::ir::{ElemType, FloatKind};
    #[cfg(feature = "cuda")]
    use crate::cuda::gemm;

    #[cfg(not(feature = "cuda"))]
    fn gemm(_: &mut Option<CubeTensor>, _: &CubeTensor, _: &CubeTensor, _: f32, _: DType) -> Option<CubeTensor> {
        None
    }

    /// What f32 operands are rounded to, as burn and as CubeCL call it.
    pub(crate) fn operands() -> (DType, ElemType) {
        let (dtype, kind) = match precision() {
            Precision::F32 => (DType::F32, FloatKind::F32),
            Precision::Bf16 => (DType::BF16, FloatKind::BF16),
            Precision::F16 => (DType::F16, FloatKind::F16),
        };
        (dtype, ElemType::Float(kind))
    }

    /// `alpha · lhs · rhs + sum` of matrices, or of stacks of them, in the precision that was set.
    pub(crate) fn multiply(sum: Option<CubeTensor>, lhs: CubeTensor, rhs: CubeTensor, alpha: f64) -> CubeTensor {
        let output = if precision() == Precision::F32 { lhs.dtype } else { DType::F32 };
        multiply_to(output, sum, lhs, rhs, alpha)
    }

    /// The same, written as `output`.
    fn multiply_to(
        output: DType,
        mut sum: Option<CubeTensor>,
        lhs: CubeTensor,
        rhs: CubeTensor,
        alpha: f64,
    ) -> CubeTensor {
        if lhs.meta.num_elements() * rhs.meta.num_elements() == 0 {
            let mut shape = lhs.meta.shape().clone();
            shape[rhs.meta.num_dims() - 1] = rhs.meta.shape()[rhs.meta.num_dims() - 1];
            return sum.unwrap_or_else(|| Cube::float_zeros(shape, &lhs.device, output.into()));
        }
        let [lhs, rhs] = [lhs, rhs].map(Cube::rounded);
        if let Some(product) = gemm(&mut sum, &lhs, &rhs, alpha as f32, output) {
            return product;
        }
        let product = match matmul(lhs.clone(), rhs.clone(), None, MatmulStrategy::default(), output) {
            Ok(product) => Float::<Cube>(product),
            // Where a device has no product of these two dtypes: the sum is rounded, too.
            Err(_) => Float::<Cube>(lhs).matmul(Float(rhs)).cast(output.into()),
        };
        let product = if alpha == 1.0 { product } else { product.scale(alpha) };
        match sum {
            None => product.0,
            Some(sum) => (Float(sum) + product).0,
        }
    }

    /// W as it is multiplied: values that are stored in bf16 are not decoded for a product that rounds them again.
    fn operand(weight: Matrix<Cube>) -> CubeTensor {
        match weight {
            Matrix::Quantized { scales, layout, .. } if layout.is_bf16() && precision() == Precision::Bf16 => {
                Float::<Cube>(scales).reshape(&layout.shape()).0
            }
            weight => weight.dense(),
        }
    }

    /// `x` as another dtype, which is remembered until another tensor comes.
    fn remembered(x: CubeTensor, dtype: DType) -> CubeTensor {
        thread_local! {
            /// A tensor, and what it became. Nobody writes into what is held here.
            static LAST: RefCell<Option<[CubeTensor; 2]>> = const { RefCell::new(None) };
        }
        if x.dtype == dtype {
            return x;
        }
        LAST.with_borrow_mut(|last| match last {
            Some([plain, rounded]) if is_same(plain, &x) && rounded.dtype == dtype => rounded.clone(),
            _ => {
                let rounded = Float::<Cube>(x.clone()).cast(dtype.into()).0;
                last.insert([x, rounded])[1].clone()
            }
        })
    }

    /// Whether both are the same values of the same memory.
    fn is_same(a: &CubeTensor, b: &CubeTensor) -> bool {
        let place = |x: &CubeTensor| (x.handle.memory.descriptor().id, x.handle.offset_start, x.handle.offset_end);
        place(a) == place(b) && a.meta == b.meta && a.dtype == b.dtype && a.client.service_id() == b.client.service_id()
    }

    impl ProductOps for Cube {
        fn product(lhs: CubeTensor, rhs: CubeTensor, alpha: f64) -> CubeTensor {
            multiply(None, lhs, rhs, alpha)
        }

        fn add_product(sum: CubeTensor, lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
            multiply(Some(sum), lhs, rhs, 1.0)
        }

        fn rounded(x: CubeTensor) -> CubeTensor {
            match precision() {
                Precision::F32 => x,
                _ => Float::<Self>(x).cast(operands().0.into()).0,
            }
        }

        fn shared(x: CubeTensor) -> CubeTensor {
            if precision() == Precision::F32 { x } else { remembered(x, operands().0) }
        }

        fn operand(lhs: CubeTensor, rhs: CubeTensor, alpha: f64) -> CubeTensor {
            let output = if precision() == Precision::F32 { lhs.dtype } else { operands().0 };
            multiply_to(output, None, lhs, rhs, alpha)
        }

        fn weighted(x: CubeTensor, weight: Matrix<Self>) -> CubeTensor {
            multiply(None, x, transposed::<Self>(operand(weight)), 1.0)
        }

        fn through(grad: CubeTensor, weight: Matrix<Self>) -> CubeTensor {
            multiply(None, grad, operand(weight), 1.0)
        }

        fn add_through(sum: CubeTensor, grad: CubeTensor, weight: Matrix<Self>) -> CubeTensor {
            multiply(Some(sum), grad, operand(weight), 1.0)
        }
    }

    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    mod tests {
        use super::*;
        use crate::testing::{device, values, vec_of};

        #[test]
        fn the_same_tensor_is_rounded_once_and_no_other_is_taken_for_it() {
            let make = |seed| values(seed, [6, 8], 1.0).tensor(&device()).try_into_primitive::<Cube>();
            let Ok(x) = make(1) else { return }; // of a device of CubeCL
            let place = |x: &CubeTensor| x.handle.memory.descriptor().id;
            let values = |x: &CubeTensor| vec_of(Tensor::<2>::from_primitive::<Cube>(x.clone()).cast(FloatDType::F32));
            let plain = |x: &CubeTensor| values(&Float::<Cube>(x.clone()).cast(FloatDType::F16).0);
            let once = remembered(x.clone(), DType::F16);
            assert_eq!((once.dtype, values(&once)), (DType::F16, plain(&x)));
            assert_eq!(place(&remembered(x.clone(), DType::F16)), place(&once));
            assert_eq!(place(&remembered(once.clone(), DType::F16)), place(&once));
            let others = [
                make(2).unwrap(),
                Float::<Cube>(x.clone()).narrow(0, 2, 4).0,
                Float::<Cube>(x.clone()).reshape(&[8, 6]).0,
                Float::<Cube>(x).scale(2.0).0,
            ];
            for other in others {
                assert_eq!(values(&remembered(other.clone(), DType::F16)), plain(&other));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{backward, close, device, product, values, vec_of};

    #[test]
    fn values_and_gradients_equal_the_steps() {
        for [rows, inputs, outputs, rank] in [[1, 1, 1, 1], [7, 5, 3, 2], [200, 130, 170, 16]] {
            let data = || {
                [[rows, inputs], [outputs, inputs], [rank, inputs], [outputs, rank]]
                    .map(|shape| values(shape[0] as u64, shape, 1.0))
            };
            let own = backward(data(), |[x, w, a, b]| lora_product(x, Weight::Dense(w), [a, b], 1.5));
            let steps = backward(data(), |[x, w, a, b]| {
                let thin = product(x.clone(), a.transpose()) * 1.5;
                product(x, w.transpose()) + product(thin, b.transpose())
            });
            close(&own, &steps, 3e-6);
        }
    }

    #[test]
    fn a_weight_that_is_stored_the_other_way_is_no_difference() {
        let data = || [values(1, [9, 6], 1.0), values(2, [6, 4], 1.0), values(3, [2, 6], 1.0), values(4, [4, 2], 1.0)];
        let own = backward(data(), |[x, w, a, b]| lora_product(x, Weight::Dense(w.transpose()), [a, b], 1.0));
        let steps =
            backward(data(), |[x, w, a, b]| product(x.clone(), w) + product(product(x, a.transpose()), b.transpose()));
        close(&own, &steps, 3e-6);
    }

    #[test]
    fn rows_are_added_and_nothing_else_changes() {
        for [rows, width] in [[1, 1], [3, 5], [300, 170]] {
            let data = || [values(1, [rows, width], 1.0), values(2, [1, width], 1.0)];
            let own = backward(data(), |[x, row]| {
                let y = add_rows(x.clone(), row.reshape([width]));
                y + x // x is still what it was
            });
            let steps = backward(data(), |[x, row]| (x.clone() + row) + x);
            close(&own, &steps, 1e-6);
        }
    }

    #[test]
    fn a_product_is_added_to_its_sum_alone() {
        for [m, k, n] in [[1, 1, 1], [3, 7, 5], [64, 130, 577], [130, 64, 3]] {
            let [sum, lhs, rhs] = [[m, n], [m, k], [k, n]].map(|shape| values(4, shape, 1.0).tensor(&device()));
            let steps = vec_of(sum.clone() + product(lhs.clone(), rhs.clone()));
            let before = vec_of(sum.clone());
            let added = |sum: Tensor<2>| {
                let [sum, lhs, rhs] = [sum, lhs.clone(), rhs.clone()].map(Tensor::into_dispatch);
                Tensor::<2>::from_dispatch(<Dispatch as ProductOps>::add_product(sum, lhs, rhs))
            };
            // Twice: the second goes another way where the first one learns how.
            for _ in 0..2 {
                close(&[vec_of(added(sum.clone()))], std::slice::from_ref(&steps), 3e-6);
                assert_eq!(vec_of(sum.clone()), before);
                // Nobody else holds this one.
                close(&[vec_of(added(sum.clone() * 1.0))], std::slice::from_ref(&steps), 3e-6);
                close(&[vec_of(added(sum.clone().transpose().transpose()))], std::slice::from_ref(&steps), 3e-6);
            }
            let [lhs, rhs] = [lhs.clone(), rhs.clone()].map(Tensor::into_dispatch);
            let scaled = Tensor::<2>::from_dispatch(<Dispatch as ProductOps>::product(lhs, rhs, -0.25));
            let steps: Vec<f32> = steps.iter().zip(&before).map(|(all, sum)| -0.25 * (all - sum)).collect();
            close(&[vec_of(scaled)], &[steps], 1e-5);
        }
    }

    #[test]
    #[should_panic(expected = "two dtypes")]
    fn products_of_two_dtypes_are_refused() {
        use burn::tensor::{DType, FloatDType};
        let x = Tensor::<2>::zeros([2, 2], (&device(), DType::F32));
        let _ = matmul(x.clone(), x.cast(FloatDType::F16));
    }
}
