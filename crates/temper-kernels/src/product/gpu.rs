//! Products on the devices of CubeCL.

use std::cell::RefCell;

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
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

/// What a kernel writes for this reader.
pub(crate) fn written_for(reader: Reader) -> (DType, ElemType) {
    match reader {
        Reader::Anyone => (DType::F32, ElemType::Float(FloatKind::F32)),
        Reader::Products => operands(),
        Reader::Kernels if precision() == Precision::Bf16 => operands(),
        Reader::Kernels => written_for(Reader::Anyone),
    }
}

/// `alpha · lhs · rhs + sum` of matrices, or of stacks of them, in the precision that was set.
pub(crate) fn multiply(sum: Option<CubeTensor>, lhs: CubeTensor, rhs: CubeTensor, alpha: f64) -> CubeTensor {
    let output = if precision() == Precision::F32 { lhs.dtype } else { DType::F32 };
    multiply_to(output, sum, lhs, rhs, alpha)
}

/// The same, written as `output`.
fn multiply_to(output: DType, mut sum: Option<CubeTensor>, lhs: CubeTensor, rhs: CubeTensor, alpha: f64) -> CubeTensor {
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

    /// The product with W comes last: it computes for longer than it takes to read what it is added to.
    fn by_weight(
        begin: Begin<Self>,
        x: CubeTensor,
        weight: Matrix<Self>,
        way: Way,
        thin: Thin<Self>,
        reader: Reader,
    ) -> CubeTensor {
        let output = match &begin {
            Begin::Sum(sum) => sum.dtype,
            _ if precision() == Precision::F32 => x.dtype,
            _ => written_for(reader).0,
        };
        let sum = match begin {
            Begin::Nothing => None,
            Begin::Sum(sum) => Some(sum),
            Begin::Row(row) => {
                let (rows, row) = (x.meta.shape()[0], Float::<Self>(row).cast(output.into()).along_last(2));
                let shape = Shape::from([rows, row.shape()[1]]);
                Some(Self::float_expand(row.0, shape))
            }
        };
        let sum = match thin {
            Thin::Nothing => sum,
            Thin::Product { lhs, rhs } => Some(multiply_to(output, sum, lhs, rhs, 1.0)),
        };
        multiply_to(output, sum, x, passed::<Self>(weight, way), 1.0)
    }

    /// What is stored in bf16 is not decoded for a product that rounds it again.
    fn values(weight: Matrix<Self>) -> CubeTensor {
        match weight {
            Matrix::Quantized { scales, layout, .. } if layout.is_bf16() && precision() == Precision::Bf16 => {
                Float::<Self>(scales).reshape(&layout.shape()).0
            }
            weight => weight.dense(),
        }
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
