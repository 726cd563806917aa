//! Rows for columns.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// How many columns are turned at a time.
const WIDTH: usize = 32;

/// `out[i][j] = columns[j][i]` of values of 32 bits, in rows of [`WIDTH`], for as many i as there is room.
pub(crate) fn turn<T: Copy>(columns: &[[T; 16]; WIDTH], out: &mut [T]) {
    const { assert!(size_of::<T>() == 4) };
    #[cfg(target_arch = "x86_64")]
    if out.len() == 16 * WIDTH && is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512, and all sixteen rows are there.
        return unsafe { all(columns, out) };
    }
    for (i, out) in out.chunks_exact_mut(WIDTH).enumerate() {
        for (out, column) in out.iter_mut().zip(columns) {
            *out = column[i];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn all<T>(columns: &[[T; 16]; WIDTH], out: &mut [T]) {
    for half in [0, 16] {
        // SAFETY: sixteen rows of sixteen on both sides.
        unsafe {
            let mut rows = [_mm512_set1_epi32(0); 16];
            for (row, values) in rows.iter_mut().zip(&columns[half..half + 16]) {
                *row = _mm512_loadu_si512(values.as_ptr().cast());
            }
            for (i, row) in transposed(rows).iter().enumerate() {
                _mm512_storeu_si512(out.as_mut_ptr().add(i * WIDTH + half).cast(), *row);
            }
        }
    }
}

/// The transpose of 16 x 16 values, by pairs, quadruples, and quarters of registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(r: [__m512i; 16]) -> [__m512i; 16] {
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
