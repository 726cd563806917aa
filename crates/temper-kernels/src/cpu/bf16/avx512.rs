//! The inner loop with AVX-512 BF16: 8 rows by 32 columns in 16 registers.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, __mmask16, _mm256_mask_storeu_epi16, _mm512_cvtne2ps_pbh,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_add_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_permutexvar_epi16, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{PANEL, Piece, STEP};

/// Rows that are worked on at a time: half a tile.
const ROWS: usize = 8;

/// Works through pieces.
///
/// # Safety
///
/// The processor has AVX-512 BF16; the pieces lie within memory that nobody else writes.
pub(super) unsafe fn run(pieces: impl Iterator<Item = Piece>) {
    for piece in pieces {
        for row in (0..piece.rows).step_by(ROWS) {
            // SAFETY: the caller's. Rows beyond the last are packed too, as zeros, and not written.
            unsafe { tile(&piece, row) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile(piece: &Piece, row: usize) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: within the packed operands.
    unsafe {
        let a = piece.a.add(row / 16 * piece.stride + row % 16 * STEP);
        for pair in 0..piece.depth / 2 {
            let b = piece.b.add(pair * PANEL);
            let b = [bh(b), bh(b.add(16))];
            let a = a.add(pair / 16 * (16 * STEP) + pair % 16 * 2);
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = a.add(i * STEP).cast::<i32>().read_unaligned();
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(a));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
            }
        }
        for (i, sums) in sums.iter().enumerate().take(piece.rows - row) {
            let out = piece.out.row(row + i);
            store(out.first(), sums[0], mask(piece.columns), piece.add);
            if piece.columns > 16 {
                store(out.at(16).first(), sums[1], mask(piece.columns - 16), piece.add);
            }
        }
    }
}

/// The lanes of the first `columns`.
fn mask(columns: usize) -> __mmask16 {
    if columns >= 16 { u16::MAX } else { (1 << columns) - 1 }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bh(b: *const u32) -> __m512bh {
    // SAFETY: sixteen pairs of a panel.
    unsafe { std::mem::transmute(_mm512_loadu_si512(b.cast())) }
}

#[target_feature(enable = "avx512f")]
unsafe fn store(out: *mut f32, sum: __m512, mask: __mmask16, add: bool) {
    // SAFETY: the lanes of the mask are within the output.
    unsafe {
        let sum = if add { _mm512_mask_add_ps(sum, mask, sum, _mm512_maskz_loadu_ps(mask, out)) } else { sum };
        _mm512_mask_storeu_ps(out, mask, sum);
    }
}

/// Rounds `alpha · x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn narrow(x: &[f32], alpha: f32, out: &mut [u16]) {
    let (count, alpha) = (x.len().min(out.len()), _mm512_set1_ps(alpha));
    let mut start = 0;
    // SAFETY: lanes beyond the end are neither read nor written.
    unsafe {
        while start + 32 <= count {
            let x = x.as_ptr().add(start);
            let low = _mm512_mul_ps(_mm512_loadu_ps(x), alpha);
            let high = _mm512_mul_ps(_mm512_loadu_ps(x.add(16)), alpha);
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out.as_mut_ptr().add(start).cast(), both);
            start += 32;
        }
        while start < count {
            let mask = mask(count - start);
            let values = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x.as_ptr().add(start)), alpha);
            let narrowed = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
            _mm256_mask_storeu_epi16(out.as_mut_ptr().add(start).cast(), mask, narrowed);
            start += 16;
        }
    }
}

/// 0, 32, 1, 33, …: the halves of two rows side by side.
static PAIRS: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16);
        i += 1;
    }
    order
};

/// Pairs of two rows of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn interleave(upper: &[f32], lower: &[f32], out: &mut [u32]) {
    // SAFETY: the caller's: 32 values each.
    unsafe {
        let order = _mm512_loadu_si512(PAIRS.as_ptr().cast());
        for half in [0, 16] {
            let (a, b) = (_mm512_loadu_ps(upper.as_ptr().add(half)), _mm512_loadu_ps(lower.as_ptr().add(half)));
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
            let pairs = _mm512_permutexvar_epi16(order, both);
            _mm512_storeu_si512(out.as_mut_ptr().add(half).cast(), pairs);
        }
    }
}

/// 32 rows of 16 as 16 rows of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn turn(buffer: &[[u32; 16]; PANEL], out: &mut [u32]) {
    for half in [0, 16] {
        // SAFETY: sixteen rows of sixteen on both sides.
        unsafe {
            let mut rows = [_mm512_set1_epi32(0); 16];
            for (row, values) in rows.iter_mut().zip(&buffer[half..half + 16]) {
                *row = _mm512_loadu_si512(values.as_ptr().cast());
            }
            for (i, row) in transposed(rows).iter().enumerate() {
                _mm512_storeu_si512(out.as_mut_ptr().add(i * PANEL + half).cast(), *row);
            }
        }
    }
}

/// The transpose of 16 x 16 values, by pairs, quadruples, and quarters of registers.
#[target_feature(enable = "avx512f")]
fn transposed(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = r;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    // u[4g + c] holds in its quarter q the values (rows 4g..4g+4, column 4q + c).
    let mut u = t;
    for g in (0..16).step_by(4) {
        u[g] = _mm512_unpacklo_epi64(t[g], t[g + 2]);
        u[g + 1] = _mm512_unpackhi_epi64(t[g], t[g + 2]);
        u[g + 2] = _mm512_unpacklo_epi64(t[g + 1], t[g + 3]);
        u[g + 3] = _mm512_unpackhi_epi64(t[g + 1], t[g + 3]);
    }
    let mut out = u;
    for c in 0..4 {
        let (a, b, d, e) = (u[c], u[4 + c], u[8 + c], u[12 + c]);
        // Quarters 0 and 2, then 1 and 3, of two groups each.
        let (ab02, ab13) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (de02, de13) = (_mm512_shuffle_i32x4::<0x88>(d, e), _mm512_shuffle_i32x4::<0xdd>(d, e));
        out[c] = _mm512_shuffle_i32x4::<0x88>(ab02, de02);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(ab02, de02);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(ab13, de13);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(ab13, de13);
    }
    out
}
