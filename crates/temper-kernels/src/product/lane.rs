//! Products on the processor.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, Shape};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::*;
use crate::cpu::bf16::{self, Engine, Operand, Right};
use crate::cpu::gemm::{self, Matrix as Slices, Target};
use crate::cpu::{CHUNK, Stored, all_f32, group, math, own, rows, slice, tensor, vectorised, written};
use crate::quantized::lane::panels;

fn multiply(sum: Option<FlexTensor>, lhs: FlexTensor, rhs: FlexTensor, alpha: f64) -> FlexTensor {
    let ([m, k], [_, n]): ([usize; 2], [usize; 2]) = (lhs.layout().shape().dims(), rhs.layout().shape().dims());
    let alpha32 = alpha as f32;
    if let Some(engine) = engine([&lhs, &rhs])
        && m * n * k > 0
    {
        let terms = [(Operand::tensor(&lhs), Right::Matrix(Operand::tensor(&rhs)))];
        return placed(sum, m, n, |out, add| {
            let begin = if add { bf16::Begin::Sum } else { bf16::Begin::Nothing };
            // SAFETY: room for m·n values, which are there if they are added to.
            unsafe { bf16::product(engine, Target::new(out, n), begin, alpha32, &terms, n) };
        });
    }
    if !all_f32([&lhs, &rhs].into_iter().chain(&sum)) || m * n * k == 0 {
        return portable::<Flex>(sum.map(Float), Float(lhs), Float(rhs), alpha).0;
    }
    let [a, b] = [&lhs, &rhs].map(Slices::tensor);
    placed(sum, m, n, |out, add| {
        let out = Target::new(out, n);
        // SAFETY: as above.
        unsafe {
            match precision() {
                Precision::F32 => gemm::product(out, add, alpha32, a, b, true),
                Precision::Bf16 => gemm::rounded(out, add, alpha32, a, b, bf16::round),
                Precision::F16 => gemm::rounded(out, add, alpha32, a, b, math::to_f16),
            }
        }
    })
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

/// What multiplies these, if that is the processor's own products in bf16.
pub(crate) fn engine<'a>(operands: impl IntoIterator<Item = &'a FlexTensor>) -> Option<Engine> {
    let mut dtypes = operands.into_iter().map(FlexTensor::dtype);
    let fits = precision() == Precision::Bf16 && dtypes.all(|dtype| matches!(dtype, DType::F32 | DType::BF16));
    if fits { Engine::best() } else { None }
}

/// Whether this reader takes bf16 on this processor.
pub(crate) fn narrows(reader: Reader) -> bool {
    reader == Reader::Products && engine([]).is_some()
}

/// `x` in bf16, as it lies.
fn narrowed(x: FlexTensor) -> FlexTensor {
    let across = x.layout().strides().first() == Some(&1);
    let x = if across { x.transpose(0, 1) } else { x };
    let x = x.to_contiguous();
    let (values, shape) = (slice(&x), x.layout().shape().clone());
    let mut narrow = Vec::with_capacity(values.len());
    let room = &mut narrow.spare_capacity_mut()[..values.len()];
    room.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, x)| {
        // SAFETY: bf16 needs no initialisation to be written.
        bf16::narrowed(x, unsafe { out.assume_init_mut() });
    });
    // SAFETY: all of them were written.
    unsafe { narrow.set_len(values.len()) };
    let narrow = <burn::tensor::bf16 as Stored>::tensor(narrow, shape);
    if across { narrow.transpose(0, 1) } else { narrow }
}

thread_local! {
    /// A tensor that [`ProductOps::shared`] got last, where it lies, and what it became.
    static LAST: RefCell<Option<(Weak<Bytes>, Layout, FlexTensor)>> = const { RefCell::new(None) };
}

impl ProductOps for Flex {
    fn product(lhs: FlexTensor, rhs: FlexTensor, alpha: f64) -> FlexTensor {
        multiply(None, lhs, rhs, alpha)
    }

    fn rounded(x: FlexTensor) -> FlexTensor {
        let rounds = x.dtype() == DType::F32 && engine([&x]).is_some();
        if rounds { narrowed(x) } else { x }
    }

    fn kept(x: FlexTensor) -> FlexTensor {
        Self::rounded(x)
    }

    fn shared(x: FlexTensor) -> FlexTensor {
        if x.dtype() != DType::F32 || engine([&x]).is_none() {
            return x;
        }
        LAST.with_borrow_mut(|last| {
            let known = last.take().filter(|(bytes, layout, _)| {
                // Nobody writes into what is alive twice.
                bytes.upgrade().is_some_and(|bytes| Arc::ptr_eq(&bytes, &x.data_arc())) && layout == x.layout()
            });
            let make = || (Arc::downgrade(&x.data_arc()), x.layout().clone(), narrowed(x.clone()));
            last.insert(known.unwrap_or_else(make)).2.clone()
        })
    }

    /// What is stored in bf16 is not decoded for a product that rounds it again.
    fn values(weight: Matrix<Flex>) -> FlexTensor {
        match weight {
            Matrix::Quantized { scales, layout, .. } if layout.is_bf16() && engine([&scales]).is_some() => {
                scales.reshape(Shape::from(layout.shape().to_vec()))
            }
            weight => weight.dense(),
        }
    }

    /// One product, to which that of the adapter and the bias are added while it is in a cache.
    fn by_weight(
        begin: Begin<Flex>,
        x: FlexTensor,
        weight: Matrix<Flex>,
        way: Way,
        thin: Thin<Flex>,
        _: Reader,
    ) -> FlexTensor {
        let shape = weight.shape();
        let ([rows, depth], columns): ([usize; 2], _) = (x.layout().shape().dims(), shape[way as usize]);
        let engine = engine([&x]).filter(|_| rows * depth * columns > 0);
        let Some(engine) = engine else {
            return one_by_one::<Self>(begin, x, weight, way, thin);
        };
        let values;
        let right = match &weight {
            Matrix::Quantized { words, layout, .. } if layout.is_packed() => {
                Right::Panels(panels(words.as_slice().expect("contiguous words"), *layout)[way as usize])
            }
            _ => {
                values = Self::values(weight);
                let weight = Operand::tensor(&values);
                Right::Matrix(if way == Way::Forward { weight.transposed() } else { weight })
            }
        };
        let mut terms = vec![(Operand::tensor(&x), right)];
        if let Thin::Product { lhs, rhs } = &thin {
            terms.push((Operand::tensor(lhs), Right::Matrix(Operand::tensor(rhs))));
        }
        let (sum, row) = match begin {
            Begin::Nothing => (None, None),
            Begin::Sum(sum) => (Some(sum), None),
            Begin::Row(row) => (None, Some(row.to_contiguous())),
        };
        placed(sum, rows, columns, |out, add| {
            let begin = match &row {
                Some(row) => bf16::Begin::Row(slice(row)),
                None if add => bf16::Begin::Sum,
                None => bf16::Begin::Nothing,
            };
            // SAFETY: room for all values, which are there if they are added to.
            unsafe { bf16::product(engine, Target::new(out, columns), begin, 1.0, &terms, columns) };
        })
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
