//! The inner loop with AVX-512 and how values become bfloat16 with AVX-512 BF16: 8 rows by 32 columns in 16 registers.

use std::arch::x86_64::{
    __cpuid, __m256bh, __m256i, __m512, __m512bh, __m512i, __mmask16, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256,
    _mm256_mask_storeu_epi16, _mm256_maskz_loadu_epi16, _mm512_and_si512, _mm512_castsi256_si512, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps,
    _mm512_inserti64x4, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_storeu_si512,
};

use burn::tensor::bf16;

use super::{PANEL, Piece, STEP};
use crate::cpu::turn::transposed;

/// Rows that are worked on at a time: half a tile.
const ROWS: usize = 8;
/// The bits of the second of two bfloat16.
const HIGH: i32 = -0x1_0000;

/// Works through pieces, with multiply-adds of f32 if the rows of A are `WIDE`, else with dot products of pairs.
///
/// # Safety
///
/// The processor has AVX-512 BF16; the pieces lie within memory that nobody else writes.
pub(super) unsafe fn run<const WIDE: bool>(pieces: impl Iterator<Item = Piece>) {
    for piece in pieces {
        let tile = if piece.columns > 16 { tile::<2, WIDE> } else { tile::<1, WIDE> };
        // The last rows are computed with some before them, or where there are none with packed ones of zeros.
        let last = piece.rows.saturating_sub(ROWS);
        for row in (0..piece.rows).step_by(ROWS) {
            // SAFETY: the caller's.
            unsafe { tile(&piece, row.min(last), row) };
        }
    }
}

/// The first `HALVES` halves of a panel, those that hold columns, of eight rows from `row` on; those from `from` on are written.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const HALVES: usize, const WIDE: bool>(piece: &Piece, row: usize, from: usize) {
    let mut sums = [[_mm512_setzero_ps(); HALVES]; ROWS];
    // SAFETY: within the packed operands.
    unsafe {
        let a = piece.a.add(row * piece.stride);
        for pair in 0..piece.depth / 2 {
            let b = piece.b.add(pair * PANEL);
            let b: [__m512i; HALVES] = std::array::from_fn(|half| _mm512_loadu_si512(b.add(16 * half).cast()));
            if WIDE {
                let a = a.add(4 * pair);
                let low = b.map(|b| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(a.add(i * piece.stride).cast::<f32>().read_unaligned());
                    for (sum, b) in sums.iter_mut().zip(low) {
                        *sum = _mm512_fmadd_ps(a, b, *sum);
                    }
                }
                let high = b.map(|b| _mm512_castsi512_ps(_mm512_and_si512(b, _mm512_set1_epi32(HIGH))));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(a.add(i * piece.stride + 2).cast::<f32>().read_unaligned());
                    for (sum, b) in sums.iter_mut().zip(high) {
                        *sum = _mm512_fmadd_ps(a, b, *sum);
                    }
                }
                continue;
            }
            let a = a.add(2 * pair);
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = a.add(i * piece.stride).cast::<i32>().read_unaligned();
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(a));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_dpbf16_ps(*sum, a, std::mem::transmute::<__m512i, __m512bh>(b));
                }
            }
        }
        // All of them by number, or they would lie in memory all the time.
        for (i, sums) in sums.iter().enumerate() {
            if row + i < from || row + i >= piece.rows {
                continue;
            }
            let out = piece.out.row(row + i);
            for (half, sum) in sums.iter().enumerate() {
                store(out.at(16 * half).first(), *sum, mask(piece.columns - 16 * half), piece);
            }
        }
    }
}

/// Whether a dot product, of 64 operations, does more in a time than multiply-adds, of 32. It does twice as much on an AMD EPYC, and half as
/// much on an Intel Xeon (both measured; Intel's processors that have it have AMX, unless a virtual machine hides it).
pub(super) fn dots_are_fast() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// The lanes of the first `columns`.
fn mask(columns: usize) -> __mmask16 {
    if columns >= 16 { u16::MAX } else { (1 << columns) - 1 }
}

#[target_feature(enable = "avx512f")]
unsafe fn store(out: *mut f32, sum: __m512, mask: __mmask16, piece: &Piece) {
    let alpha = _mm512_set1_ps(piece.alpha);
    // SAFETY: the lanes of the mask are within the output.
    unsafe {
        let before = if piece.add { _mm512_maskz_loadu_ps(mask, out) } else { _mm512_setzero_ps() };
        _mm512_mask_storeu_ps(out, mask, _mm512_fmadd_ps(sum, alpha, before));
    }
}

/// How values become bfloat16.
///
/// # Safety
///
/// Of its functions: the processor has AVX-512 BF16, and so many values can be read.
pub(super) trait Load: Copy {
    /// Sixteen values from `low` on, and sixteen from `high` on.
    unsafe fn both(low: *const Self, high: *const Self) -> __m512i;

    /// The first sixteen values or fewer, and zeros.
    unsafe fn some(x: &[Self]) -> __m256i;
}

impl Load for f32 {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn both(low: *const Self, high: *const Self) -> __m512i {
        // SAFETY: the caller's; the same bits.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low))) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn some(x: &[Self]) -> __m256i {
        // SAFETY: lanes beyond the end are not read; the same bits.
        unsafe {
            let narrow: __m256bh = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask(x.len()), x.as_ptr()));
            std::mem::transmute(narrow)
        }
    }
}

impl Load for bf16 {
    #[target_feature(enable = "avx512f")]
    unsafe fn both(low: *const Self, high: *const Self) -> __m512i {
        // SAFETY: the caller's.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.cast()));
            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.cast()))
        }
    }

    #[target_feature(enable = "avx512bw,avx512vl")]
    unsafe fn some(x: &[Self]) -> __m256i {
        // SAFETY: lanes beyond the end are not read.
        unsafe { _mm256_maskz_loadu_epi16(mask(x.len()), x.as_ptr().cast()) }
    }
}

/// Rounds: [`STEP`] values side by side, the next ones `stride` values behind them.
///
/// # Safety
///
/// The processor has AVX-512 BF16; there is room for all values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn narrow<T: Load>(x: &[T], mut out: *mut u16, stride: usize) {
    let (whole, rest) = x.as_chunks::<STEP>();
    // SAFETY: lanes beyond the end are neither read nor written.
    unsafe {
        for x in whole {
            _mm512_storeu_si512(out.cast(), T::both(x.as_ptr(), x.as_ptr().add(16)));
            out = out.wrapping_add(stride);
        }
        for (part, x) in rest.chunks(16).enumerate() {
            _mm256_mask_storeu_epi16(out.add(16 * part).cast(), mask(x.len()), T::some(x));
        }
    }
}

/// Writes values as f32.
///
/// # Safety
///
/// The processor has AVX-512; there is room for all values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn widen(x: &[u16], mut out: *mut f32) {
    for x in x.chunks(16) {
        // SAFETY: lanes beyond the end are neither read nor written.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(x.len()), x.as_ptr().cast()));
            let wide = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves));
            _mm512_mask_storeu_ps(out, mask(x.len()), wide);
        }
        out = out.wrapping_add(16);
    }
}

/// Asks for the first [`STEP`] values, which are read soon.
pub(super) fn fetch<T>(x: &[T]) {
    for place in (0..STEP.min(x.len())).step_by(64 / size_of::<T>()) {
        // SAFETY: a hint, which every processor of 64 bits takes.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().add(place).cast()) };
    }
}

/// 0, 16, 1, 17, …: the halves of two rows side by side.
static PAIRS: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
        i += 1;
    }
    order
};

/// Sixteen values of two rows, rounded, side by side.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn paired<T: Load>(upper: *const T, lower: *const T) -> __m512i {
    // SAFETY: the caller's; the order has 32 places.
    unsafe {
        let order = _mm512_loadu_si512(PAIRS.as_ptr().cast());
        _mm512_permutexvar_epi16(order, T::both(upper, lower))
    }
}

/// Pairs of two rows of 32.
///
/// # Safety
///
/// The processor has AVX-512 BF16; all three have 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn interleave<T: Load>(upper: &[T], lower: &[T], out: &mut [u32]) {
    for half in [0, 16] {
        // SAFETY: the caller's.
        unsafe {
            let pairs = paired(upper.as_ptr().add(half), lower.as_ptr().add(half));
            _mm512_storeu_si512(out.as_mut_ptr().add(half).cast(), pairs);
        }
    }
}

/// Sixteen rows of 32 values, `stride` apart, rounded, of a matrix that lies by columns: sixteen values of each, from `column` on.
///
/// # Safety
///
/// The processor has AVX-512 BF16; these values can be read, and these rows be written.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn turned<T: Load>(column: impl Fn(usize) -> *const T, out: *mut u16, stride: usize) {
    // SAFETY: the caller's.
    unsafe {
        let pairs = std::array::from_fn(|pair| paired(column(2 * pair), column(2 * pair + 1)));
        for (i, row) in transposed(pairs).into_iter().enumerate() {
            _mm512_storeu_si512(out.add(i * stride).cast(), row);
        }
    }
}
