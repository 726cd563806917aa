//! Matrix products: plain, with what a low-rank adapter adds, and the bias after them.

mod backward;
#[cfg(feature = "cube")]
pub(crate) mod gpu;
pub(crate) mod lane;
mod projection;

use std::sync::atomic::{AtomicU8, Ordering};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};

pub use projection::Projection;
pub(crate) use projection::{Addend, Kept};

use crate::portable::Float;
use crate::quantized::{Matrix, Quantized, QuantizedOps};
use crate::sum::SumOps;

/// How f32 matrices are multiplied: those of layers and those within [`attention`](crate::attention()). On a processor without
/// products of bfloat16, and there in IEEE half precision, those within attention stay f32.
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

/// Does some work with products in f32.
pub fn in_f32<R>(work: impl FnOnce() -> R) -> R {
    let before = precision();
    set_precision(Precision::F32);
    let result = work();
    set_precision(before);
    result
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
    crate::cpu::bf16::Engine::best().is_some()
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
                assert!(go_together(dtype, weight.dtype()), "matrix product of two dtypes");
                Matrix::Dense(weight.into_dispatch())
            }
            Self::Quantized(weight) => weight.into_dispatch(),
        }
    }
}

/// Whether products take `x` beside a weight: of its dtype, or as [`rounded()`] makes it.
fn go_together(x: DType, weight: DType) -> bool {
    let rounded = match precision() {
        Precision::F32 => None,
        Precision::Bf16 => Some(DType::BF16),
        Precision::F16 => Some(DType::F16),
    };
    x == weight || rounded == Some(x)
}

/// `x Wᵀ`; see [`LinearMap`].
pub fn linear(x: Tensor<2>, weight: Weight) -> Tensor<2> {
    LinearMap { weight, adapter: None }.forward(x, None)
}

/// `x Wᵀ + s·(x Aᵀ) Bᵀ`; see [`LinearMap`].
pub fn lora_product(x: Tensor<2>, weight: Weight, factors: [Tensor<2>; 2], scaling: f64) -> Tensor<2> {
    LinearMap { weight, adapter: Some((factors, scaling)) }.forward(x, None)
}

/// A linear layer: `x Wᵀ`, or with LoRA (Hu et al. 2021, arXiv:2106.09685) `x Wᵀ + s·(x Aᵀ) Bᵀ`, added up where it is computed. The
/// product with W keeps nothing for the backward pass unless W is tracked; A and B keep `x` and `x Aᵀ`. A weight in few bits is kept
/// as it is, and decoded again for the gradient of `x`.
///
/// # Shapes
///
/// - x: `[T, in]`, bias: `[out]`
/// - results: `[T, out]`
///
/// # Panics
///
/// When they have different dtypes, unless x is [rounded](rounded()).
#[derive(Debug, Clone)]
pub struct LinearMap {
    /// W `[out, in]`.
    pub weight: Weight,
    /// A `[r, in]`, B `[out, r]` and s, if it is adapted.
    pub adapter: Option<([Tensor<2>; 2], f64)>,
}

impl LinearMap {
    /// The layer, and its bias.
    pub fn forward(self, x: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        self.project(Begin::row(bias), x, Ends::default())
    }

    /// The same for [`Reader::Kernels`].
    pub fn kept(self, x: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        self.project(Begin::row(bias), x, Ends { result: Reader::Kernels, ..Ends::default() })
    }

    /// Without a bias, added to `sum` `[T, out]`. x comes from [attention](crate::attention()): its gradient is for [`Reader::Kernels`].
    pub fn onto(self, sum: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        self.project(Begin::Sum(sum.into_dispatch()), x, Ends { of_x: Reader::Kernels, ..Ends::default() })
    }

    fn project(self, begin: Begin<Dispatch>, x: Tensor<2>, ends: Ends) -> Tensor<2> {
        let projection = self.into_dispatch(x.dtype());
        Tensor::from_dispatch(<Dispatch as ProductOps>::projected(begin, x.into_dispatch(), projection, ends))
    }

    /// For a product with something of that dtype.
    pub(crate) fn into_dispatch(self, dtype: DType) -> Projection<Dispatch> {
        let weight = self.weight.into_dispatch(dtype);
        let Some((factors, scaling)) = self.adapter else { return Projection::Plain(weight) };
        assert!(factors.iter().all(|y| go_together(dtype, y.dtype())), "matrix product of several dtypes");
        let [a, b] = factors.map(Tensor::into_dispatch);
        Projection::Adapted { weight, a, b, scaling }
    }
}

/// `x` as products round it, of half the size, where they do; else `x`. For operands of [`matmul`] alone, both of them, and
/// tensors without autodiff.
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

/// Who reads what an operation gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reader {
    /// Whoever: f32.
    #[default]
    Anyone,
    /// Products alone: as they [round](rounded()) it.
    Products,
    /// Rotations, attention and gates: on GPUs in bf16 where products round to it, as in PyTorch. Else f32, for values may be
    /// beyond the range of f16.
    Kernels,
}

/// Who reads what a projection gives: its result, and the gradient of x.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ends {
    pub(crate) result: Reader,
    pub(crate) of_x: Reader,
}

impl Reader {
    /// What is in f32, for this reader.
    pub(crate) fn take<B: ProductOps>(self, x: FloatTensor<B>) -> FloatTensor<B> {
        if self == Self::Products { B::rounded(x) } else { x }
    }
}

/// What a product is added to.
#[derive(Debug, Clone, ExtensionType)]
pub enum Begin<B: Backend> {
    /// Nothing.
    Nothing,
    /// A matrix.
    Sum(FloatTensor<B>),
    /// The same in each row.
    Row(FloatTensor<B>),
}

impl<B: Backend> Begin<B> {
    /// The matrix, where a row is not known.
    pub(crate) fn sum(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Nothing => None,
            Self::Sum(sum) => Some(sum),
            Self::Row(_) => unreachable!("a row where a matrix is added to"),
        }
    }
}

impl Begin<Dispatch> {
    fn row(bias: Option<Tensor<1>>) -> Self {
        bias.map_or(Self::Nothing, |bias| Self::Row(bias.into_dispatch()))
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for Begin<B> {
    fn from(sum: Option<FloatTensor<B>>) -> Self {
        sum.map_or(Self::Nothing, Self::Sum)
    }
}

/// A second product that is added: that of an adapter, few values deep.
#[derive(Debug, Clone, ExtensionType)]
pub enum Thin<B: Backend> {
    /// None.
    Nothing,
    /// `lhs · rhs`.
    Product {
        /// As many rows as the first product.
        lhs: FloatTensor<B>,
        /// As many columns.
        rhs: FloatTensor<B>,
    },
}

/// Which way a product passes a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By Wᵀ, from inputs to outputs.
    Forward,
    /// By W, as gradients go.
    Back,
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

    /// An operand as [`rounded()`] makes it.
    fn rounded(x: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }

    /// [`rounded`](Self::rounded), for an input that several products take in turn: asked again for the same one, it gives what it made.
    fn shared(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::rounded(x)
    }

    /// A value as it is kept until the backward pass: of half the size where products round and the kernels that read it again
    /// take it so.
    fn kept(x: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }

    /// `alpha · lhs · rhs` as an operand of another product.
    fn operand(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, alpha: f64) -> FloatTensor<Self> {
        Self::rounded(Self::product(lhs, rhs, alpha))
    }

    /// W as products take it.
    fn values(#[extension_type] weight: Matrix<Self>) -> FloatTensor<Self> {
        weight.dense()
    }

    /// `begin + x Wᵀ + thin`, or `begin + x W + thin`, for a reader; a sum keeps its dtype. Not differentiable.
    fn by_weight(
        #[extension_type] begin: Begin<Self>,
        x: FloatTensor<Self>,
        #[extension_type] weight: Matrix<Self>,
        way: Way,
        #[extension_type] thin: Thin<Self>,
        _reader: Reader,
    ) -> FloatTensor<Self> {
        one_by_one::<Self>(begin, x, weight, way, thin)
    }

    /// What a projection makes of x, added to `begin`.
    fn projected(
        #[extension_type] begin: Begin<Self>,
        x: FloatTensor<Self>,
        #[extension_type] projection: Projection<Self>,
        ends: Ends,
    ) -> FloatTensor<Self> {
        projection.forward(Self::shared(x)).0.onto(begin, ends.result)
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

/// [`ProductOps::by_weight`], product after product.
fn one_by_one<B: ProductOps>(
    begin: Begin<B>,
    x: FloatTensor<B>,
    weight: Matrix<B>,
    way: Way,
    thin: Thin<B>,
) -> FloatTensor<B> {
    let weight = passed::<B>(weight, way);
    let y = match begin {
        Begin::Nothing => B::product(x, weight, 1.0),
        Begin::Sum(sum) => B::add_product(sum, x, weight),
        Begin::Row(row) => B::add_rows(B::product(x, weight, 1.0), row),
    };
    match thin {
        Thin::Nothing => y,
        Thin::Product { lhs, rhs } => B::add_product(y, lhs, rhs),
    }
}

/// A weight as the right side of a product.
fn passed<B: ProductOps>(weight: Matrix<B>, way: Way) -> FloatTensor<B> {
    let weight = B::values(weight);
    if way == Way::Forward { transposed::<B>(weight) } else { weight }
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
