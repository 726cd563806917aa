//! What the CPU lanes are written in: slices, all threads, the widest vectors.

pub(crate) mod bf16;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod panels;
mod turn;

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape, bf16 as Bf16};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// How many values a thread takes at a time: 64 KiB of f32.
pub(crate) const CHUNK: usize = 16 << 10;

/// Runs `f` compiled for the widest vectors that the processor has. `f` and what it calls must be `#[inline(always)]`: what the
/// compiler leaves out of line, as it likes to with closures, stays compiled for the oldest processor.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// The values of a tensor that is contiguous.
///
/// # Panics
///
/// When it is not, or not f32.
pub(crate) fn slice(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("a contiguous tensor of f32")
}

/// A tensor of these values.
pub(crate) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// The tensor itself if it is all of its memory, in order, and nobody else's; else a copy that is.
pub(crate) fn own(x: FlexTensor) -> FlexTensor {
    let whole = x.is_contiguous() && x.bytes().len() == 4 * x.layout().num_elements();
    if whole && x.is_unique() {
        return x;
    }
    let x = x.to_contiguous();
    tensor(slice(&x).to_vec(), x.layout().shape().clone())
}

/// A value that is read as f32.
pub(crate) trait Wide: Copy + Sync {
    fn wide(self) -> f32;
}

impl Wide for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Wide for Bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// A value that is written: rounded to this type while the f32 that it was is in a cache.
pub(crate) trait Stored: Copy + Send {
    /// A tensor of these values.
    fn tensor(values: Vec<Self>, shape: Shape) -> FlexTensor;

    /// Has `write` fill these places.
    fn fill<const O: usize>(
        places: [&mut [MaybeUninit<Self>]; O],
        write: impl FnOnce(&mut [&mut [MaybeUninit<f32>]; O]),
    );
}

impl Stored for f32 {
    fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
        tensor(values, shape)
    }

    #[inline(always)]
    fn fill<const O: usize>(
        mut places: [&mut [MaybeUninit<f32>]; O],
        write: impl FnOnce(&mut [&mut [MaybeUninit<f32>]; O]),
    ) {
        write(&mut places);
    }
}

impl Stored for Bf16 {
    fn tensor(values: Vec<Bf16>, shape: Shape) -> FlexTensor {
        FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::BF16)
    }

    #[inline(always)]
    fn fill<const O: usize>(
        places: [&mut [MaybeUninit<Bf16>]; O],
        write: impl FnOnce(&mut [&mut [MaybeUninit<f32>]; O]),
    ) {
        let mut room = places.each_ref().map(|places| Vec::<f32>::with_capacity(places.len()));
        let mut sizes = places.each_ref().map(|places| places.len()).into_iter();
        write(&mut room.each_mut().map(|room| &mut room.spare_capacity_mut()[..sizes.next().unwrap_or(0)]));
        for (room, places) in room.iter_mut().zip(places) {
            // SAFETY: `write` has written every value; bf16 needs no initialisation to be written.
            unsafe {
                room.set_len(places.len());
                bf16::narrowed(room, places.assume_init_mut());
            }
        }
    }
}

/// Values of a tensor that is contiguous, and in bf16.
pub(crate) fn slice_bf16(x: &FlexTensor) -> &[Bf16] {
    x.as_slice().expect("a contiguous tensor of bf16")
}

/// What is in bf16 as f32.
pub(crate) fn wide(values: &[Bf16]) -> Vec<f32> {
    let [wide] = rows(
        values.len(),
        CHUNK,
        [1],
        #[inline(always)]
        |range, [out]| {
            for (out, value) in out.iter_mut().zip(&values[range]) {
                out.write(value.wide());
            }
        },
    );
    wide
}

/// The same of a tensor.
pub(crate) fn widened(x: FlexTensor) -> FlexTensor {
    if x.dtype() != DType::BF16 {
        return x;
    }
    let x = x.to_contiguous();
    tensor(wide(slice_bf16(&x)), x.layout().shape().clone())
}

/// Whether the lane can take these: it computes in f32 alone.
pub(crate) fn all_f32<'a>(tensors: impl IntoIterator<Item = &'a FlexTensor>) -> bool {
    tensors.into_iter().all(|x| x.dtype() == DType::F32)
}

/// `outputs[o][i] = f(inputs[..][i])[o]`, on all threads, [vectorised].
pub(crate) fn map<T: Stored, const I: usize, const O: usize>(
    inputs: [&[f32]; I],
    f: impl Fn([f32; I]) -> [f32; O] + Sync,
) -> [Vec<T>; O] {
    let length = inputs[0].len();
    assert!(inputs.iter().all(|input| input.len() == length));
    rows(
        length,
        CHUNK,
        [1; O],
        #[inline(always)]
        |range, outputs| {
            let (count, inputs) = (range.len(), inputs.map(|input| &input[range.clone()]));
            for i in 0..count {
                // SAFETY: every slice has `count` elements.
                unsafe {
                    let values = f(inputs.map(|input| *input.get_unchecked(i)));
                    for o in 0..O {
                        outputs[o].get_unchecked_mut(i).write(values[o]);
                    }
                }
            }
        },
    )
}

/// How many rows of `width` values a thread takes at a time.
pub(crate) fn group(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Tables of `count` rows with these widths. `write` gets a range of at most `group` rows and their places in every table,
/// and writes them all, [vectorised].
pub(crate) fn rows<T: Stored, const O: usize>(
    count: usize,
    group: usize,
    widths: [usize; O],
    write: impl Fn(Range<usize>, &mut [&mut [MaybeUninit<f32>]; O]) + Sync,
) -> [Vec<T>; O] {
    let mut tables = widths.map(|width| Vec::with_capacity(count * width));
    let mut rests = tables.each_mut().map(|table: &mut Vec<T>| table.spare_capacity_mut());
    let starts = (0..count).step_by(group);
    let cut = |start: usize| {
        let range = start..count.min(start + group);
        let mut widths = widths.into_iter();
        let pieces = rests.each_mut().map(|rest| {
            let size = range.len() * widths.next().unwrap_or(0);
            let (head, tail) = std::mem::take(rest).split_at_mut(size);
            *rest = tail;
            head
        });
        (range, pieces)
    };
    let pieces: Vec<_> = starts.map(cut).collect();
    pieces.into_par_iter().for_each(|(range, pieces)| {
        T::fill(
            pieces,
            #[inline(always)]
            |pieces| {
                vectorised(
                    #[inline(always)]
                    || write(range, pieces),
                )
            },
        )
    });
    for (table, width) in tables.iter_mut().zip(widths) {
        // SAFETY: `write` has written every value.
        unsafe { table.set_len(count * width) };
    }
    tables
}

/// What was written into `places`.
///
/// # Safety
///
/// All of them were.
pub(crate) unsafe fn written(places: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    // SAFETY: the same layout, and initialised.
    unsafe { std::slice::from_raw_parts_mut(places.as_mut_ptr().cast(), places.len()) }
}
