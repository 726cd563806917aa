//! Matrices in few bits on the processor.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;

use super::*;
use crate::cpu::{all_f32, group, rows, slice, slice_bf16, tensor, wide};

const _: () = assert!(cfg!(target_endian = "little"), "codes are read as the bytes of words");

/// The panels of Wᵀ and of W.
pub(crate) fn panels(words: &[i32], layout: Layout) -> [&[u32]; 2] {
    let [rows, columns] = layout.shape;
    // SAFETY: the same bits.
    let words = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u32>(), words.len()) };
    words.split_at(bf16::panels_size(columns, rows)).into()
}

impl QuantizedOps for Flex {
    fn decode(words: FlexTensor, scales: FlexTensor, layout: Layout) -> FlexTensor {
        let (words, scales) = (words.to_contiguous(), scales.to_contiguous());
        let words: &[i32] = words.as_slice().expect("contiguous words");
        // SAFETY: a word is four bytes.
        let codes = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), 4 * words.len()) };
        let (count, block, table) = (layout.count(), layout.block(), layout.format.table());
        let blocks = count.div_ceil(block.max(1));
        let decoded = match layout.format {
            Format::Bf16 => [wide(slice_bf16(&scales))],
            Format::Bf16Packed => {
                let [height, width] = layout.shape;
                let panels = panels(words, layout)[1];
                rows(
                    height,
                    group(width),
                    [width],
                    #[inline(always)]
                    |range, [out]| {
                        for (row, out) in range.zip(out.chunks_exact_mut(width)) {
                            for (column, out) in out.iter_mut().enumerate() {
                                out.write(bf16::packed_value(panels, height, row, column));
                            }
                        }
                    },
                )
            }
            Format::Nf4 => {
                let (codes, of_scales) = codes.split_at(blocks * NF4_BLOCK / 2);
                let (outer, mean) = slice(&scales).split_at(blocks.div_ceil(DYNAMIC_BLOCK));
                let dynamic = Format::Dynamic.table();
                rows(
                    blocks,
                    group(NF4_BLOCK),
                    [NF4_BLOCK],
                    #[inline(always)]
                    |range, [out]| {
                        for (number, out) in range.zip(out.chunks_exact_mut(NF4_BLOCK)) {
                            let inner = dynamic[usize::from(of_scales[number])] * outer[number / DYNAMIC_BLOCK];
                            let scale = inner + mean[0];
                            let scaled: [f32; 16] = std::array::from_fn(|code| NF4[code] * scale);
                            let codes = &codes[number * NF4_BLOCK / 2..][..NF4_BLOCK / 2];
                            for (out, codes) in out.chunks_exact_mut(2).zip(codes) {
                                out[0].write(scaled[usize::from(codes & 15)]);
                                out[1].write(scaled[usize::from(codes >> 4)]);
                            }
                        }
                    },
                )
            }
            Format::Int8 | Format::Dynamic | Format::DynamicUnsigned => {
                let scales = slice(&scales);
                rows(
                    blocks,
                    group(block),
                    [block],
                    #[inline(always)]
                    |range, [out]| {
                        for (number, out) in range.zip(out.chunks_exact_mut(block.max(1))) {
                            for (out, code) in out.iter_mut().zip(&codes[number * block..]) {
                                out.write(table[usize::from(*code)] * scales[number]);
                            }
                        }
                    },
                )
            }
        };
        let [mut values] = decoded;
        values.truncate(count);
        tensor(values, Shape::from(layout.shape.to_vec()))
    }

    fn encode(x: FlexTensor, layout: Layout) -> (FlexTensor, FlexTensor) {
        if !all_f32([&x]) {
            return portable_encode::<Self>(x, layout);
        }
        let x = x.to_contiguous();
        let (words, scales) = super::encode(slice(&x), layout);
        let (count, blocks) = (words.len(), scales.len());
        let words = FlexTensor::from_data(TensorData::new(words, [count]));
        (words, tensor(scales, Shape::new([blocks])))
    }
}
