//! Matrices in few bits: what stays frozen, and what an optimizer remembers.
//!
//! A value is an entry of a table times the largest magnitude of its block, as in bitsandbytes:
//!
//! | format | table | block | bits a value |
//! |---|---|---|---|
//! | NF4 | 16 quantiles of the normal distribution (Dettmers et al. 2023, arXiv:2305.14314, appendix E) | 64 values, whose magnitudes are `Dynamic` of their own less their mean (double quantisation) | 4.127 |
//! | Int8 | k/127 | a row | 8 and 32 a row |
//! | Dynamic | 256 values, dense around zero (Dettmers et al. 2022, arXiv:2110.02861) | 256 values | 8.125 |
//! | Bf16 | the value itself | | 16 |
//! | Bf16Packed | the same, as the CPU's products in bf16 read it, forward and backward | | 32 |
//!
//! A product decodes its matrix into memory that is gone with the product, forward and backward: nothing keeps it.

pub(crate) mod lane;

use std::sync::OnceLock;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, TensorMetadata, backend_extension};
use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Int, IntDType, Shape, Slice, Tensor, TensorData};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::cpu::bf16::{self, Operand};
use crate::cpu::gemm::Matrix as Slices;
use crate::portable::Float;

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The upper half of each f32, rounded to the nearest.
    Bf16,
    /// The same as panels of W and of Wᵀ, so that products in bf16 on the CPU pack nothing.
    Bf16Packed,
    /// Whole numbers from -127 to 127 times the largest magnitude of each row over 127.
    Int8,
    /// 4-bit NormalFloat with double quantisation.
    Nf4,
    /// 8 bits for values of both signs.
    Dynamic,
    /// 8 bits for values that are not negative.
    DynamicUnsigned,
}

/// Values that share a magnitude.
const NF4_BLOCK: usize = 64;
const DYNAMIC_BLOCK: usize = 256;

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl Format {
    /// Bytes that a matrix takes.
    pub fn bytes(self, [rows, columns]: [usize; 2]) -> u64 {
        let count = rows * columns;
        let bytes = match self {
            Self::Bf16 => 2 * count,
            Self::Bf16Packed => 4 * (bf16::panels_size(columns, rows) + bf16::panels_size(rows, columns)),
            Self::Int8 => count.next_multiple_of(4) + 4 * rows,
            Self::Nf4 => {
                let blocks = count.div_ceil(NF4_BLOCK);
                blocks * NF4_BLOCK / 2 + blocks.next_multiple_of(DYNAMIC_BLOCK) + 4 * blocks.div_ceil(DYNAMIC_BLOCK) + 4
            }
            Self::Dynamic | Self::DynamicUnsigned => {
                count.next_multiple_of(DYNAMIC_BLOCK) + 4 * count.div_ceil(DYNAMIC_BLOCK)
            }
        };
        bytes as u64
    }

    fn table(self) -> &'static [f32] {
        static TABLES: OnceLock<[Vec<f32>; 3]> = OnceLock::new();
        let [int8, signed, unsigned] = TABLES.get_or_init(|| {
            let int8 = (0..=255_u8).map(|code| f32::from(code as i8) / 127.0).collect();
            [int8, dynamic(true), dynamic(false)]
        });
        match self {
            Self::Bf16 | Self::Bf16Packed => &[],
            Self::Int8 => int8,
            Self::Nf4 => &NF4,
            Self::Dynamic => signed,
            Self::DynamicUnsigned => unsigned,
        }
    }
}

/// The dynamic data type: of each power of ten from 10⁻⁷ to 1 twice as many values as of the one below it, in equal steps.
fn dynamic(signed: bool) -> Vec<f32> {
    let mut table = vec![0.0, 1.0];
    for exponent in 0..7 {
        let count = 1_usize << if signed { exponent } else { exponent + 1 };
        let bound = |i: usize| 0.1 + 0.9 * i as f64 / count as f64;
        for i in 0..count {
            let value = (10_f64.powi(exponent - 6) * (bound(i) + bound(i + 1)) / 2.0) as f32;
            table.push(value);
            if signed {
                table.push(-value);
            }
        }
    }
    table.sort_by(f32::total_cmp);
    table
}

/// What says how words and magnitudes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    format: Format,
    shape: [usize; 2],
}

impl Layout {
    /// Rows and columns.
    pub(crate) fn shape(self) -> [usize; 2] {
        self.shape
    }

    /// Whether it is [`Format::Bf16`].
    pub(crate) fn is_bf16(self) -> bool {
        self.format == Format::Bf16
    }

    /// Whether it is [`Format::Bf16Packed`].
    pub(crate) fn is_packed(self) -> bool {
        self.format == Format::Bf16Packed
    }

    fn count(self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// How many values share a magnitude.
    fn block(self) -> usize {
        match self.format {
            Format::Nf4 => NF4_BLOCK,
            Format::Int8 => self.shape[1],
            _ => DYNAMIC_BLOCK,
        }
    }
}

/// A matrix in few bits, a constant.
#[derive(Module, Debug)]
pub struct Quantized {
    /// Codes, from the lowest bits of a word on; behind NF4's those of its magnitudes. Panels of packed bf16, nothing of bf16.
    words: Tensor<1, Int>,
    /// Magnitudes: one for each block; of NF4 those of the magnitudes, and their mean. The values themselves of bf16.
    scales: Tensor<1>,
    #[module(skip)]
    layout: Layout,
}

impl Quantized {
    /// Stores a matrix, row by row in `values`.
    ///
    /// # Panics
    ///
    /// When there are not as many values as `shape` says.
    pub fn encode(values: &[f32], shape: [usize; 2], format: Format, device: &Device) -> Self {
        let layout = Layout { format, shape };
        assert_eq!(values.len(), layout.count());
        let (words, scales) = encode(values, layout);
        let (all, magnitudes) = (words.len(), scales.len());
        let words = Tensor::from_data(TensorData::new(words, [all]), (device, DType::I32));
        let dtype = if format == Format::Bf16 { DType::BF16 } else { DType::F32 };
        let scales = TensorData::new(scales, [magnitudes]).convert_dtype(dtype);
        Self { words, scales: Tensor::from_data(scales, (device, dtype)), layout }
    }

    /// Stores a vector of f32 where it is, as `Dynamic` or `DynamicUnsigned`.
    ///
    /// # Panics
    ///
    /// When `format` is another.
    pub fn of(x: Tensor<1>, format: Format) -> Self {
        assert!(matches!(format, Format::Dynamic | Format::DynamicUnsigned));
        let layout = Layout { format, shape: [1, x.dims()[0]] };
        let (words, scales) = <Dispatch as QuantizedOps>::encode(x.into_dispatch(), layout);
        Self { words: Tensor::from_dispatch(words), scales: Tensor::from_dispatch(scales), layout }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.layout.shape
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.scales.device()
    }

    /// The matrix, f32, without a graph.
    pub fn decode(&self) -> Tensor<2> {
        let Self { words, scales, layout } = self.clone();
        Tensor::from_dispatch(<Dispatch as QuantizedOps>::decode(words.into_dispatch(), scales.into_dispatch(), layout))
    }

    /// For an operation.
    pub(crate) fn into_dispatch(self) -> Matrix<Dispatch> {
        Matrix::Quantized {
            words: self.words.into_dispatch(),
            scales: self.scales.into_dispatch(),
            layout: self.layout,
        }
    }

    /// Codes and magnitudes, to be kept in a file.
    pub fn parts(&self) -> (Tensor<1, Int>, Tensor<1>) {
        (self.words.clone(), self.scales.clone())
    }

    /// What [`parts`](Self::parts) gave of a vector of `count` values; `None` if these are not such parts.
    pub fn from_parts([words, scales]: [TensorData; 2], count: usize, format: Format, device: &Device) -> Option<Self> {
        let blocks = count.div_ceil(DYNAMIC_BLOCK);
        let fits = words.dtype() == DType::I32
            && scales.dtype() == DType::F32
            && words.shape().to_vec() == [blocks * DYNAMIC_BLOCK / 4]
            && scales.shape().to_vec() == [blocks];
        fits.then(|| Self {
            words: Tensor::from_data(words, (device, DType::I32)),
            scales: Tensor::from_data(scales, (device, DType::F32)),
            layout: Layout { format, shape: [1, count] },
        })
    }
}

/// A matrix as an operation is given it.
#[derive(Debug, Clone, ExtensionType)]
pub enum Matrix<B: Backend> {
    /// As it is.
    Dense(FloatTensor<B>),
    /// In few bits.
    Quantized {
        /// Codes.
        words: IntTensor<B>,
        /// Magnitudes.
        scales: FloatTensor<B>,
        /// How to read them.
        layout: Layout,
    },
}

impl<B: QuantizedOps> Matrix<B> {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(matrix) => matrix.shape().dims(),
            Self::Quantized { layout, .. } => layout.shape(),
        }
    }

    /// Its values.
    pub(crate) fn dense(self) -> FloatTensor<B> {
        match self {
            Self::Dense(matrix) => matrix,
            Self::Quantized { words, scales, layout } => B::decode(words, scales, layout),
        }
    }
}

/// The extension behind this file. Nothing of it is differentiable.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait QuantizedOps: Backend {
    /// The matrix.
    fn decode(words: IntTensor<Self>, scales: FloatTensor<Self>, layout: Layout) -> FloatTensor<Self> {
        portable_decode::<Self>(words, scales, layout)
    }

    /// A vector in 8 bits.
    fn encode(x: FloatTensor<Self>, layout: Layout) -> (IntTensor<Self>, FloatTensor<Self>) {
        portable_encode::<Self>(x, layout)
    }
}

#[cfg(feature = "cube")]
impl QuantizedOps for burn::backend::Cube {}

impl<B: QuantizedOps, C: CheckpointStrategy> QuantizedOps for Autodiff<B, C> {
    fn decode(words: IntTensor<Self>, scales: FloatTensor<Self>, layout: Layout) -> FloatTensor<Self> {
        Self::from_inner(B::decode(words, scales.into_parts().0, layout))
    }

    fn encode(x: FloatTensor<Self>, layout: Layout) -> (IntTensor<Self>, FloatTensor<Self>) {
        let (words, scales) = B::encode(x.into_parts().0, layout);
        (words, Self::from_inner(scales))
    }
}

fn portable_decode<B: Backend>(words: IntTensor<B>, scales: FloatTensor<B>, layout: Layout) -> FloatTensor<B> {
    let (count, block) = (layout.count(), layout.block());
    let blocks = count.div_ceil(block);
    let shape = Shape::from(layout.shape.to_vec());
    let cut = |x: Float<B>, count: usize| x.narrow(0, 0, count);
    let (values, magnitudes) = match layout.format {
        Format::Bf16Packed => unreachable!("on the CPU alone"),
        Format::Bf16 => return B::float_reshape(B::float_cast(scales, FloatDType::F32), shape),
        Format::Nf4 => {
            let (own, all) = (blocks * NF4_BLOCK / 8, words.shape()[0]);
            let outer = blocks.div_ceil(DYNAMIC_BLOCK);
            let codes = B::int_slice(words.clone(), &[Slice::from(0..own)]);
            let of_scales = B::int_slice(words, &[Slice::from(own..all)]);
            let scales = Float::<B>(scales);
            let mean = scales.clone().narrow(0, outer, 1);
            let inner = looked_up::<B>(of_scales, 8, Format::Dynamic).reshape(&[outer, DYNAMIC_BLOCK]);
            let inner = (inner * scales.narrow(0, 0, outer).reshape(&[outer, 1])).reshape(&[outer * DYNAMIC_BLOCK]);
            (looked_up::<B>(codes, 4, Format::Nf4), cut(inner + mean, blocks))
        }
        format => (looked_up::<B>(words, 8, format), Float(scales)),
    };
    let values = cut(values, blocks * block).reshape(&[blocks, block]) * magnitudes.reshape(&[blocks, 1]);
    Float::<B>(B::float_reshape(cut(values.reshape(&[blocks * block]), count).0, shape)).0
}

/// The entries of the format's table for all codes in `words`.
fn looked_up<B: Backend>(words: IntTensor<B>, bits: usize, format: Format) -> Float<B> {
    let (count, device) = (words.shape()[0], words.device());
    let codes = (0..32 / bits).map(|place| {
        let code = B::bitwise_right_shift_scalar(words.clone(), ((place * bits) as i32).into());
        B::int_reshape(B::bitwise_and_scalar(code, ((1 << bits) - 1_i32).into()), Shape::new([count, 1]))
    });
    let codes = B::int_reshape(B::int_cat(codes.collect(), 1), Shape::new([count * 32 / bits]));
    let table = TensorData::new(format.table().to_vec(), [format.table().len()]);
    Float(B::float_select(B::float_from_data(table, &device), 0, codes))
}

fn portable_encode<B: Backend>(x: FloatTensor<B>, layout: Layout) -> (IntTensor<B>, FloatTensor<B>) {
    let (table, device) = (layout.format.table(), x.device());
    let blocks = layout.count().div_ceil(DYNAMIC_BLOCK);
    let size = blocks * DYNAMIC_BLOCK;
    let padding = B::float_zeros(Shape::new([size - layout.count()]), &device, FloatDType::F32);
    let x = B::float_reshape(x, Shape::new([layout.count()]));
    let x = if size == layout.count() { x } else { B::float_cat(vec![x, padding], 0) };
    let x = Float::<B>(B::float_reshape(x, Shape::new([blocks, DYNAMIC_BLOCK])));
    let magnitudes = Float::<B>(B::float_max_abs_dim(x.0.clone(), 1));
    let divisor = Float::<B>(B::float_clamp_min(magnitudes.0.clone(), SMALLEST.into()));
    let x = (x * divisor.recip()).reshape(&[size]);
    // How many of the bounds between entries lie below, from the highest bit on.
    let bounds: Vec<f32> = bounds(table);
    let bounds = B::float_from_data(TensorData::new(bounds, [table.len() - 1]), &device);
    let mut codes = B::int_zeros(Shape::new([size]), &device, IntDType::I32);
    for bit in (0..8).rev() {
        let further = B::float_select(bounds.clone(), 0, B::int_add_scalar(codes.clone(), ((1 << bit) - 1_i32).into()));
        // One where x lies above, else zero.
        let above = B::float_clamp_min(B::float_sign((x.clone() - Float(further)).0), 0.0.into());
        let step = B::int_mul_scalar(B::float_into_int(above, IntDType::I32), (1_i32 << bit).into());
        codes = B::int_add(codes, step);
    }
    let codes = B::int_reshape(codes, Shape::new([size / 4, 4]));
    let word = |place: usize| {
        let code = B::int_slice(codes.clone(), &[Slice::from(0..size / 4), Slice::from(place..place + 1)]);
        B::bitwise_left_shift_scalar(B::int_reshape(code, Shape::new([size / 4])), (8 * place as i32).into())
    };
    let words = (1..4).fold(word(0), |words, place| B::bitwise_or(words, word(place)));
    (words, magnitudes.reshape(&[blocks]).0)
}

/// Magnitudes below this count as this, so that blocks of zeros stay zeros.
const SMALLEST: f32 = 1e-38;

/// Halfway between neighbours of a table.
fn bounds(table: &[f32]) -> Vec<f32> {
    table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect()
}

/// Codes of the nearest entries, and magnitudes, of blocks.
fn blocks(values: &[f32], block: usize, format: Format) -> (Vec<u8>, Vec<f32>) {
    let bounds = bounds(format.table());
    let mut codes = vec![0; values.len().next_multiple_of(block)];
    // What is filled up decodes to zero.
    let zero = bounds.partition_point(|bound| *bound < 0.0) as u8;
    let magnitude = |(codes, values): (&mut [u8], &[f32])| {
        let magnitude = values.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
        let factor = 1.0 / magnitude.max(SMALLEST);
        codes.fill(zero);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = match format {
                Format::Int8 => (value * 127.0 * factor).round_ties_even() as i8 as u8,
                _ => bounds.partition_point(|bound| *bound < value * factor) as u8,
            };
        }
        magnitude
    };
    let pairs = codes.par_chunks_mut(block).zip(values.par_chunks(block));
    let magnitudes = pairs.map(magnitude).collect();
    (codes, magnitudes)
}

/// Codes side by side, from the lowest bits of a word on.
fn pack(codes: &[u8], bits: usize) -> Vec<i32> {
    let word = |codes: &[u8]| codes.iter().rev().fold(0_u32, |word, code| (word << bits) | u32::from(*code));
    codes.par_chunks(32 / bits).map(|codes| word(codes) as i32).collect()
}

fn encode(values: &[f32], layout: Layout) -> (Vec<i32>, Vec<f32>) {
    let Layout { format, shape } = layout;
    match format {
        Format::Bf16 => (vec![0], values.to_vec()),
        Format::Bf16Packed => {
            let [rows, columns] = shape;
            let matrix = Operand::Plain(Slices::of(values, rows, columns, columns));
            let mut words = vec![0_u32; bf16::panels_size(columns, rows) + bf16::panels_size(rows, columns)];
            let (forward, backward) = words.split_at_mut(bf16::panels_size(columns, rows));
            bf16::pack_panels(matrix.transposed(), forward);
            bf16::pack_panels(matrix, backward);
            (words.into_iter().map(u32::cast_signed).collect(), vec![0.0])
        }
        Format::Nf4 => {
            let (codes, mut magnitudes) = blocks(values, NF4_BLOCK, format);
            let mean = (magnitudes.iter().map(|x| f64::from(*x)).sum::<f64>() / magnitudes.len().max(1) as f64) as f32;
            magnitudes.iter_mut().for_each(|magnitude| *magnitude -= mean);
            let (of_scales, mut outer) = blocks(&magnitudes, DYNAMIC_BLOCK, Format::Dynamic);
            outer.push(mean);
            ([pack(&codes, 4), pack(&of_scales, 8)].concat(), outer)
        }
        _ => {
            let (codes, magnitudes) = blocks(values, layout.block().max(1), format);
            (pack(&codes, 8), magnitudes)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{backward, close, device, product, values, vec_of};
    use crate::{Weight, linear, lora_product};

    /// Those that the device under test can keep.
    fn formats() -> Vec<Format> {
        let mut all = vec![Format::Int8, Format::Nf4, Format::Dynamic, Format::DynamicUnsigned];
        all.extend(device().supports_dtype(FloatDType::BF16).then_some(Format::Bf16));
        all.extend((device() == temper_device::cpu()).then_some(Format::Bf16Packed));
        all
    }

    /// A tensor of `fixtures/bitsandbytes.safetensors`, and its rows and columns.
    fn fixture(name: &str) -> (Vec<f32>, [usize; 2]) {
        let bytes = include_bytes!("../fixtures/bitsandbytes.safetensors");
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let read = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        (view.data().chunks_exact(4).map(read).collect(), view.shape().try_into().unwrap())
    }

    #[test]
    fn values_are_those_of_bitsandbytes() {
        let cases = [
            ("small", Format::Nf4, "nf4"),
            ("large", Format::Nf4, "nf4"),
            ("small", Format::Int8, "int8"),
            ("small", Format::Dynamic, "dynamic"),
            ("small", Format::DynamicUnsigned, "dynamic_unsigned"),
        ];
        for (matrix, format, name) in cases {
            let (mut values, shape) = fixture(matrix);
            if format == Format::DynamicUnsigned {
                values.iter_mut().for_each(|x| *x *= *x);
            }
            let found = vec_of(Quantized::encode(&values, shape, format, &device()).decode());
            let expected = fixture(&format!("{matrix}.{name}")).0;
            close(&[found], &[expected], 1e-6);
        }
    }

    #[test]
    fn a_device_stores_what_the_host_stores() {
        for count in [1, 255, 256, 1000] {
            for format in [Format::Dynamic, Format::DynamicUnsigned] {
                let mut x: Vec<f32> = vec_of(values(3, [count], 2.0).tensor(&device()));
                if format == Format::DynamicUnsigned {
                    x.iter_mut().for_each(|x| *x *= *x);
                }
                let host = vec_of(Quantized::encode(&x, [1, count], format, &device()).decode());
                let tensor = Tensor::from_data(TensorData::new(x, [count]), &device());
                let own = Quantized::of(tensor, format);
                let (words, scales) = own.parts();
                let parts = [words.into_data(), scales.into_data()];
                let read = Quantized::from_parts(parts.clone(), count, format, &device()).unwrap();
                assert_eq!(vec_of(own.decode()), vec_of(read.decode()));
                close(&[vec_of(read.decode())], &[host], 1e-6);
                assert!(Quantized::from_parts(parts, count + 256, format, &device()).is_none());
            }
        }
    }

    #[test]
    fn what_is_stored_is_as_large_as_it_is_said_to_be() {
        for format in formats() {
            for shape in [[1, 1], [7, 5], [64, 300]] {
                let matrix = Quantized::encode(&vec![0.0; shape[0] * shape[1]], shape, format, &device());
                assert_eq!(vec_of(matrix.clone().decode()), vec![0.0; shape[0] * shape[1]]);
                let (words, scales) = matrix.parts();
                let (words, scales) = (words.into_data().as_bytes().len(), scales.into_data().as_bytes().len());
                // One of the two may be a dummy.
                let bytes = match format {
                    Format::Bf16 => scales,
                    Format::Bf16Packed => words,
                    _ => words + scales,
                };
                assert_eq!(bytes as u64, format.bytes(shape), "{format:?} {shape:?}");
            }
        }
    }

    #[test]
    fn products_and_gradients_are_those_of_the_decoded_matrix() {
        for format in formats() {
            for [rows, inputs, outputs, rank] in [[1, 1, 1, 1], [7, 5, 3, 2], [70, 130, 90, 8]] {
                let weight = vec_of(values(2, [outputs, inputs], 1.0).tensor(&device()));
                let weight = Quantized::encode(&weight, [outputs, inputs], format, &device());
                let dense = || Tensor::from_inner(weight.clone().decode());
                let held = || Weight::Quantized(weight.clone());
                let data = || [[rows, inputs], [rank, inputs], [outputs, rank]].map(|shape| values(1, shape, 1.0));
                let own = backward(data(), |[x, a, b]| lora_product(x, held(), [a, b], 1.5));
                let steps = backward(data(), |[x, a, b]| lora_product(x, Weight::Dense(dense()), [a, b], 1.5));
                close(&own, &steps, 1e-6);
                let [x, ..] = data();
                let own = backward([x], |[x]| linear(x, held()));
                let [x, ..] = data();
                close(&own, &backward([x], |[x]| product(x, dense().transpose())), 1e-6);
            }
        }
    }
}
