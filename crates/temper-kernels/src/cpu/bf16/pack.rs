//! Operands as the inner loops take them: rounded, side by side, zeros at the edges.

use std::ops::Range;

use burn::tensor::{Element, bf16};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

#[cfg(target_arch = "x86_64")]
use super::avx512::{self, Load};
use super::{Engine, Operand, PANEL, ROWS, SLACK, STEP, bits};
use crate::cpu::gemm::Matrix;
use crate::cpu::turn::turn;

/// How far ahead of what is packed a column is fetched.
const AHEAD: usize = 8 * STEP;

/// What operands are made of.
trait Value: Load + Element + bytemuck::Pod {
    /// Its bits as bfloat16.
    fn bits(self) -> u16;
}

impl Value for f32 {
    #[inline(always)]
    fn bits(self) -> u16 {
        bits(self)
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

/// Nothing is loaded in any special way.
#[cfg(not(target_arch = "x86_64"))]
trait Load {}
#[cfg(not(target_arch = "x86_64"))]
impl<T> Load for T {}

/// How many words the panels of a matrix take.
pub(crate) fn panels_size(depth: usize, columns: usize) -> usize {
    columns.div_ceil(PANEL) * PANEL * depth.next_multiple_of(STEP) / 2 + SLACK
}

/// Some rows of A, each in one piece, where they are.
pub(super) fn rows_of<'a>(a: Matrix<bf16>, rows: Range<usize>) -> &'a [u16] {
    let stride = a.strides()[0];
    assert!(stride >= 0 && rows.end <= a.rows());
    let count = (rows.len() - 1) * stride as usize + a.columns();
    // SAFETY: the matrix has been made of memory that outlives the product; bfloat16 is its bits.
    unsafe { std::slice::from_raw_parts(a.place(rows.start, 0).cast(), count) }
}

/// Some rows of A, rounded and in f32 again, zeros behind them.
pub(super) fn widened_rows(a: Operand, rows: Range<usize>, padded: usize, room: &mut [u16]) -> &[u16] {
    let (depth, count) = (a.shape()[1], rows.len());
    let (wide, narrow) = room.split_at_mut(2 * count.next_multiple_of(ROWS) * padded);
    let (halves, stride) = match a {
        Operand::Rounded(a) if a.row_is_contiguous() => (rows_of(a, rows), a.strides()[0] as usize),
        a => (pack_rows_of(a, rows, false, padded, narrow), padded),
    };
    for (i, wide) in wide.chunks_exact_mut(2 * padded).take(count).enumerate() {
        widen(&halves[i * stride..][..depth], wide);
    }
    wide
}

/// [`pack_rows`] of some rows.
pub(super) fn pack_rows_of(a: Operand, rows: Range<usize>, tiles: bool, padded: usize, out: &mut [u16]) -> &[u16] {
    match a {
        Operand::Plain(a) => pack_rows(a.part(rows, 0..a.columns()), tiles, padded, out),
        Operand::Rounded(a) => pack_rows(a.part(rows, 0..a.columns()), tiles, padded, out),
    }
}

/// A in bfloat16, zeros at the edges: row by row, or as tiles, those of the same 16 rows one behind the other.
fn pack_rows<T: Value>(x: Matrix<T>, tiles: bool, padded: usize, out: &mut [u16]) -> &[u16] {
    let (rows, depth) = (x.rows(), x.columns());
    let (by_row, by_column) = (x.row_is_contiguous(), x.column_is_contiguous());
    // How far apart rows are, and tiles, or what would be one.
    let (row, next) = if tiles { (STEP, ROWS * STEP) } else { (padded, STEP) };
    for (group, out) in out.chunks_exact_mut(ROWS * padded).take(rows.div_ceil(ROWS)).enumerate() {
        let (first, count) = (group * ROWS, ROWS.min(rows - group * ROWS));
        if count < ROWS || depth < padded {
            out.fill(0);
        }
        if by_row {
            for i in 0..count {
                narrow(x.row(first + i), &mut out[i * row..], next);
            }
            continue;
        }
        for start in (0..padded).step_by(STEP) {
            let tile = &mut out[start / STEP * next..];
            let deep = STEP.min(depth - start);
            if by_column {
                let columns = x.transposed();
                #[cfg(target_arch = "x86_64")]
                if count == ROWS && deep == STEP && Engine::best().is_some() {
                    let column = |k: usize| columns.row(start + k)[first..first + ROWS].as_ptr();
                    // SAFETY: both engines come with AVX-512 BF16; the tile is whole.
                    unsafe { avx512::turned(column, tile.as_mut_ptr(), row) };
                    continue;
                }
                // Turned in a buffer that stays in the first cache.
                let mut buffer = [[0_u16; ROWS]; STEP];
                for (k, buffer) in buffer.iter_mut().take(deep).enumerate() {
                    narrow(&columns.row(start + k)[first..first + count], &mut buffer[..count], STEP);
                }
                for (i, tile) in tile.chunks_mut(row).take(count).enumerate() {
                    for (tile, buffer) in tile.iter_mut().zip(&buffer) {
                        *tile = buffer[i];
                    }
                }
            } else {
                for (i, tile) in tile.chunks_mut(row).take(count).enumerate() {
                    for (k, tile) in tile.iter_mut().take(deep).enumerate() {
                        *tile = x.at(first + i, start + k).bits();
                    }
                }
            }
        }
    }
    out
}

/// B as panels of 32 columns; in each, pairs of depths side by side, zeros at the edges. `out` has [`panels_size`] words.
pub(crate) fn pack_panels(x: Operand, out: &mut [u32]) {
    panels_of(x, out).into_par_iter().for_each(|(panel, out)| pack_panel(x, panel, out));
}

/// The same on this thread.
pub(crate) fn pack_panels_here(x: Operand, out: &mut [u32]) {
    panels_of(x, out).into_iter().for_each(|(panel, out)| pack_panel(x, panel, out));
}

/// The panels' places, numbered.
fn panels_of(x: Operand, out: &mut [u32]) -> Vec<(usize, &mut [u32])> {
    let [depth, columns] = x.shape();
    let size = panels_size(depth, columns) - SLACK;
    out[..size].chunks_mut((PANEL * depth.next_multiple_of(STEP) / 2).max(1)).enumerate().collect()
}

fn pack_panel(x: Operand, panel: usize, out: &mut [u32]) {
    match x {
        Operand::Plain(x) => pack(x, panel, out),
        Operand::Rounded(x) => pack(x, panel, out),
    }
}

fn pack<T: Value>(x: Matrix<T>, panel: usize, out: &mut [u32]) {
    let (depth, columns) = (x.rows(), x.columns());
    let (by_row, by_column) = (x.row_is_contiguous(), x.column_is_contiguous());
    let first = panel * PANEL;
    let count = PANEL.min(columns - first);
    let filled = if count < PANEL || !(by_row || by_column) { 0 } else { depth.div_ceil(2) };
    out[filled * PANEL..].fill(0);
    if by_row {
        for (pair, out) in out.chunks_exact_mut(PANEL).take(depth.div_ceil(2)).enumerate() {
            let row = |k: usize| if k < depth { &x.row(k)[first..first + count] } else { &[][..] };
            interleave(row(2 * pair), row(2 * pair + 1), out);
        }
    } else if by_column {
        // Sixteen pairs of each column at a time, turned in a buffer that stays in the first cache.
        let columns = x.transposed();
        let mut buffer = [[0_u32; 16]; PANEL];
        for start in (0..depth).step_by(32) {
            let deep = 32.min(depth - start);
            for (j, buffer) in buffer.iter_mut().take(count).enumerate() {
                let (column, halves): (_, &mut [u16]) = (columns.row(first + j), bytemuck::cast_slice_mut(buffer));
                // No processor foresees thirty-two ways through memory.
                #[cfg(target_arch = "x86_64")]
                avx512::fetch(&column[(start + AHEAD).min(depth)..]);
                narrow(&column[start..start + deep], &mut halves[..deep], STEP);
                halves[deep..].fill(0);
            }
            turn(&buffer, &mut out[start / 2 * PANEL..][..deep.div_ceil(2) * PANEL]);
        }
    } else {
        for k in 0..depth {
            for j in 0..count {
                out[k / 2 * PANEL + j] |= u32::from(x.at(k, first + j).bits()) << (16 * (k % 2));
            }
        }
    }
}

/// The value of packed panels at a depth and a column.
#[inline(always)]
pub(crate) fn packed_value(panels: &[u32], total_depth: usize, depth: usize, column: usize) -> f32 {
    let panel = column / PANEL * PANEL * total_depth.next_multiple_of(STEP) / 2;
    let pair = panels[panel + depth / 2 * PANEL + column % PANEL];
    f32::from_bits(if depth.is_multiple_of(2) { pair << 16 } else { pair & 0xffff_0000 })
}

/// Rounds values side by side.
pub(crate) fn narrowed(x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len());
    narrow(x, bytemuck::cast_slice_mut(out), STEP);
}

/// Rounds: [`STEP`] values side by side, the next ones `stride` values behind them.
fn narrow<T: Value>(x: &[T], out: &mut [u16], stride: usize) {
    assert!(x.is_empty() || (x.len() - 1) / STEP * stride + (x.len() - 1) % STEP < out.len());
    #[cfg(target_arch = "x86_64")]
    if Engine::best().is_some() {
        // SAFETY: both engines come with AVX-512 BF16; there is room for all values.
        return unsafe { avx512::narrow(x, out.as_mut_ptr(), stride) };
    }
    for (x, out) in x.chunks(STEP).zip(out.chunks_mut(stride)) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.bits();
        }
    }
}

/// Values in f32, of which each takes two places, and zeros behind them.
fn widen(x: &[u16], out: &mut [u16]) {
    assert!(2 * x.len() <= out.len());
    let (wide, rest) = out.split_at_mut(2 * x.len());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the one engine that asks for it comes with AVX-512; there is room for all values.
    unsafe {
        avx512::widen(x, wide.as_mut_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (x, out) in x.iter().zip(wide.as_chunks_mut().0) {
        *out = [0, *x];
    }
    rest.fill(0);
}

/// Pairs of two rows, of which the second may be missing.
fn interleave<T: Value>(upper: &[T], lower: &[T], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if Engine::best().is_some() && upper.len() == PANEL && lower.len() == PANEL {
        // SAFETY: as above; all are whole.
        return unsafe { avx512::interleave(upper, lower, out) };
    }
    for (j, (out, a)) in out.iter_mut().zip(upper).enumerate() {
        *out = u32::from(a.bits()) | lower.get(j).map_or(0, |b| u32::from(b.bits()) << 16);
    }
}
