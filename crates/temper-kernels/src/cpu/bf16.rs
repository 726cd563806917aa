//! Products of matrices whose values are rounded to bfloat16, added up in f32.
//!
//! Both operands are packed as they are rounded: A as tiles of 16 rows by 32 values, one behind the other; columns of B in
//! panels of 32 in which two neighbours in depth share 32 bits. The inner loop is the processor's: AMX tiles, AVX-512 BF16 dot products, or, where
//! there is neither, f32 products of the rounded values, which differ in the order of additions alone.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::cell::Cell;
use std::sync::OnceLock;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::gemm::{self, Matrix, Target};
use super::turn::turn;

/// Columns of a panel of B.
const PANEL: usize = 32;
/// Depths are filled up with zeros to a multiple of this: one AMX tile.
const STEP: usize = 32;
/// Rows of a tile of A.
const ROWS: usize = 16;
/// What an engine may read behind the packed operands, in 32 bits: one step of a panel.
const SLACK: usize = STEP / 2 * PANEL;

/// What computes the inner loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Advanced Matrix Extensions.
    Amx,
    /// `vdpbf16ps`.
    Avx512,
    /// f32 products of rounded values.
    Rounded,
}

impl Engine {
    /// The most rows of A that a thread takes at a time, which stay in its second cache while panels of B pass, and how deep a
    /// panel is worked through at a time, at most, so that it stays in the first cache beside some of them. As measured.
    fn block(self) -> (usize, usize) {
        if self == Self::Amx { (256, 768) } else { (64, 288) }
    }

    /// The fastest that this machine has.
    pub fn best() -> Self {
        static BEST: OnceLock<Engine> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All that this machine has, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if amx::allowed() {
                all.push(Self::Amx);
            }
            if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw") {
                all.push(Self::Avx512);
            }
        }
        all.push(Self::Rounded);
        all
    }
}

/// The bits of the nearest bfloat16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

/// The nearest bfloat16.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    f32::from_bits(bits(x) << 16)
}

/// A work item of the inner loops: some rows of A against one panel of B, over some depth.
struct Piece {
    /// The first tile of A. The next 16 rows lie `stride` values behind it.
    a: *const u16,
    stride: usize,
    /// The panel's values at this depth.
    b: *const u32,
    depth: usize,
    /// What is written, and how much of it there is.
    out: Target,
    rows: usize,
    columns: usize,
    /// Whether `out` is added to.
    add: bool,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Begin<'a> {
    /// Nothing: what is there may be anything.
    Nothing,
    /// What is there.
    Sum,
    /// This, in each row.
    Row(&'a [f32]),
}

/// `out = begin + alpha · a · b` of rounded values.
///
/// # Safety
///
/// As for [`gemm::product`].
pub(crate) unsafe fn product(engine: Engine, out: Target, begin: Begin, alpha: f32, a: Matrix, b: Matrix) {
    let (columns, depth) = (b.columns(), a.columns());
    if engine == Engine::Rounded {
        if let Begin::Row(row) = begin {
            // SAFETY: the caller's.
            (0..a.rows()).for_each(|i| unsafe { fill(out.row(i), row) });
        }
        // SAFETY: the caller's.
        return unsafe { gemm::rounded(out, begin != Begin::Nothing, alpha, a, b, round) };
    }
    let mut room = PANELS.take();
    let packed = at_least(&mut room, panels_size(depth, columns));
    pack_panels(b, packed);
    // SAFETY: the caller's.
    unsafe { product_with(engine, out, begin, alpha, a, packed, columns) };
    PANELS.set(room);
}

/// Writes values side by side.
///
/// # Safety
///
/// There is room for them, which nobody else writes.
unsafe fn fill(out: Target, values: &[f32]) {
    // SAFETY: the caller's.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), out.first(), values.len()) };
}

/// How many words the panels of a matrix take.
pub(crate) fn panels_size(depth: usize, columns: usize) -> usize {
    columns.div_ceil(PANEL) * PANEL * depth.next_multiple_of(STEP) / 2 + SLACK
}

/// [`product`] with a matrix of so many columns that [`pack_panels`] has packed. Not for [`Engine::Rounded`].
///
/// # Safety
///
/// As for [`gemm::product`].
pub(crate) unsafe fn product_with(
    engine: Engine,
    out: Target,
    begin: Begin,
    alpha: f32,
    a: Matrix,
    packed_b: &[u32],
    columns: usize,
) {
    assert_ne!(engine, Engine::Rounded);
    let (rows, depth) = (a.rows(), a.columns());
    assert_eq!(packed_b.len(), panels_size(depth, columns));
    let padded = depth.next_multiple_of(STEP);
    let ((most, deepest), threads) = (engine.block(), rayon::current_num_threads());
    let height = rows.div_ceil(threads).next_multiple_of(32).min(most);
    let (blocks, panels) = (rows.div_ceil(height), columns.div_ceil(PANEL));
    let groups = (4 * threads).div_ceil(blocks).clamp(1, panels);
    let size = panels.div_ceil(groups);
    let deep = padded.div_ceil(padded.div_ceil(deepest)).next_multiple_of(STEP);
    // A tile of AMX is always whole.
    let end = if engine == Engine::Amx { padded } else { depth.next_multiple_of(2) };
    (0..blocks).into_par_iter().for_each(|block| {
        let own = block * height..rows.min((block + 1) * height);
        let mut room = ROWS_OF_A.take();
        let packed_a = at_least(&mut room, own.len().next_multiple_of(ROWS) * padded + SLACK);
        pack_rows(a.part(own.clone(), 0..depth), alpha, padded, packed_a);
        (0..groups).into_par_iter().for_each(|group| {
            let of_group = group * size..panels.min((group + 1) * size);
            if let Begin::Row(row) = begin {
                // The last groups may have no panels.
                let [at, end] = [of_group.start, of_group.end].map(|panel| columns.min(panel * PANEL));
                let part = &row[at..end.max(at)];
                // SAFETY: rows and columns of this task, which no other has.
                own.clone().for_each(|i| unsafe { fill(out.row(i).at(at), part) });
            }
            let pieces = of_group.flat_map(|panel| {
                let own = own.clone();
                let packed_a = &*packed_a;
                (0..end).step_by(deep).map(move |start| Piece {
                    a: packed_a[start * ROWS..].as_ptr(),
                    stride: padded * ROWS,
                    b: packed_b[(panel * padded + start) / 2 * PANEL..].as_ptr(),
                    depth: deep.min(end - start),
                    // SAFETY: rows and columns of this task, which no other has.
                    out: unsafe { out.row(own.start).at(panel * PANEL) },
                    rows: own.len(),
                    columns: PANEL.min(columns - panel * PANEL),
                    add: begin != Begin::Nothing || start > 0,
                })
            });
            // SAFETY: pieces lie within what was packed and what the caller gave; the engine is one that the machine has.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                match engine {
                    Engine::Amx => amx::run(pieces),
                    _ => avx512::run(pieces),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            drop(pieces);
        });
        ROWS_OF_A.set(room);
    });
}

// Packed operands: their memory is used again, which saves finding and clearing it.
thread_local! {
    static ROWS_OF_A: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
    static PANELS: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// So many of its values, whatever they are.
fn at_least<T: Clone + Default>(room: &mut Vec<T>, count: usize) -> &mut [T] {
    if room.len() < count {
        room.resize(count, T::default());
    }
    &mut room[..count]
}

/// A as tiles of bfloat16, those of the same 16 rows one behind the other, zeros at the edges.
fn pack_rows(x: Matrix, alpha: f32, padded: usize, out: &mut [u16]) {
    let (rows, depth) = (x.rows(), x.columns());
    let (by_row, by_column) = (x.row_is_contiguous(), x.transposed().row_is_contiguous());
    for (group, out) in out.chunks_exact_mut(ROWS * padded).take(rows.div_ceil(ROWS)).enumerate() {
        let (first, count) = (group * ROWS, ROWS.min(rows - group * ROWS));
        if count < ROWS || depth < padded {
            out.fill(0);
        }
        if by_row {
            for i in 0..count {
                narrow(x.row(first + i), alpha, &mut out[i * STEP..], ROWS * STEP);
            }
            continue;
        }
        for (number, tile) in out.chunks_exact_mut(ROWS * STEP).enumerate() {
            let start = number * STEP;
            let deep = STEP.min(depth - start);
            if by_column {
                let columns = x.transposed();
                #[cfg(target_arch = "x86_64")]
                if count == ROWS && deep == STEP && Engine::best() != Engine::Rounded {
                    let column = |k: usize| columns.row(start + k)[first..first + ROWS].as_ptr();
                    // SAFETY: both of the other engines come with AVX-512 BF16; the tile is whole.
                    unsafe { avx512::turned(column, alpha, tile.as_mut_ptr()) };
                    continue;
                }
                // Turned in a buffer that stays in the first cache.
                let mut buffer = [[0_u16; ROWS]; STEP];
                for (k, buffer) in buffer.iter_mut().take(deep).enumerate() {
                    narrow(&columns.row(start + k)[first..first + count], alpha, &mut buffer[..count], STEP);
                }
                for (i, tile) in tile.chunks_exact_mut(STEP).take(count).enumerate() {
                    for (tile, buffer) in tile.iter_mut().zip(&buffer) {
                        *tile = buffer[i];
                    }
                }
            } else {
                for (i, tile) in tile.chunks_exact_mut(STEP).take(count).enumerate() {
                    for (k, tile) in tile.iter_mut().take(deep).enumerate() {
                        *tile = bits(alpha * x.at(first + i, start + k)) as u16;
                    }
                }
            }
        }
    }
}

/// B as panels of 32 columns; in each, pairs of depths side by side, zeros at the edges. `out` has [`panels_size`] words.
pub(crate) fn pack_panels(x: Matrix, out: &mut [u32]) {
    let (depth, columns) = (x.rows(), x.columns());
    let padded = depth.next_multiple_of(STEP);
    let size = panels_size(depth, columns) - SLACK;
    let (by_row, by_column) = (x.row_is_contiguous(), x.transposed().row_is_contiguous());
    out[..size].par_chunks_mut(PANEL * padded / 2).enumerate().for_each(|(panel, out)| {
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
                    // SAFETY: sixteen pairs are thirty-two halves.
                    let halves = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u16>(), 32) };
                    narrow(&columns.row(first + j)[start..start + deep], 1.0, &mut halves[..deep], STEP);
                    halves[deep..].fill(0);
                }
                turn(&buffer, &mut out[start / 2 * PANEL..][..deep.div_ceil(2) * PANEL]);
            }
        } else {
            for k in 0..depth {
                for j in 0..count {
                    out[k / 2 * PANEL + j] |= bits(x.at(k, first + j)) << (16 * (k % 2));
                }
            }
        }
    });
}

/// The value of packed panels at a depth and a column.
#[inline(always)]
pub(crate) fn packed_value(panels: &[u32], total_depth: usize, depth: usize, column: usize) -> f32 {
    let panel = column / PANEL * PANEL * total_depth.next_multiple_of(STEP) / 2;
    let pair = panels[panel + depth / 2 * PANEL + column % PANEL];
    f32::from_bits(if depth.is_multiple_of(2) { pair << 16 } else { pair & 0xffff_0000 })
}

/// Rounds `alpha · x`: [`STEP`] values side by side, the next ones `stride` values behind them.
fn narrow(x: &[f32], alpha: f32, out: &mut [u16], stride: usize) {
    assert!(x.is_empty() || (x.len() - 1) / STEP * stride + (x.len() - 1) % STEP < out.len());
    #[cfg(target_arch = "x86_64")]
    if Engine::best() != Engine::Rounded {
        // SAFETY: both of the other engines come with AVX-512 BF16; there is room for all values.
        return unsafe { avx512::narrow(x, alpha, out.as_mut_ptr(), stride) };
    }
    for (x, out) in x.chunks(STEP).zip(out.chunks_mut(stride)) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = bits(alpha * x) as u16;
        }
    }
}

/// Pairs of two rows, of which the second may be missing.
fn interleave(upper: &[f32], lower: &[f32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if Engine::best() != Engine::Rounded && upper.len() == PANEL && lower.len() == PANEL {
        // SAFETY: as above; all are whole.
        return unsafe { avx512::interleave(upper, lower, out) };
    }
    for (j, (out, a)) in out.iter_mut().zip(upper).enumerate() {
        *out = bits(*a) | lower.get(j).map_or(0, |b| bits(*b) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let one_and = |bits: u32| f32::from_bits(0x3f80_0000 + bits);
        let cases = [(0x8000, 0), (0x8001, 0x1_0000), (0x1_8000, 0x2_0000), (0x1_7fff, 0x1_0000)];
        assert!(cases.iter().all(|(from, to)| round(one_and(*from)) == one_and(*to)));
        assert_eq!([round(f32::INFINITY), round(-0.0), round(f32::MAX)], [f32::INFINITY, 0.0, f32::INFINITY]);
        assert!(round(f32::NAN).is_nan() && round(f32::from_bits(0x7fff_ffff)).is_nan());
    }

    #[test]
    fn every_engine_gives_the_product_of_rounded_values() {
        for (case, [m, n, k]) in
            [[1, 1, 1], [3, 5, 7], [16, 384, 32], [70, 45, 600], [130, 33, 1100]].into_iter().enumerate()
        {
            for layout in 0..4 {
                let (a, b) = (numbers(m * k, 1 + case as u32), numbers(k * n, 9));
                let a_of = if layout & 1 == 0 { Matrix::of(&a, m, k, k) } else { Matrix::of(&a, k, m, m).transposed() };
                let b_of = if layout & 2 == 0 { Matrix::of(&b, k, n, n) } else { Matrix::of(&b, n, k, k).transposed() };
                let exact = |i: usize, j: usize| -> f64 {
                    (0..k).map(|d| f64::from(round(0.5 * a_of.at(i, d))) * f64::from(round(b_of.at(d, j)))).sum()
                };
                let row = numbers(n, 5);
                for engine in Engine::available() {
                    for begin in [Begin::Nothing, Begin::Sum, Begin::Row(&row)] {
                        let mut out = vec![if begin == Begin::Sum { 2.0 } else { f32::NAN }; m * n];
                        let target = Target::new(out.as_mut_ptr(), n);
                        // SAFETY: m·n values.
                        unsafe { product(engine, target, begin, 0.5, a_of, b_of) };
                        if engine != Engine::Rounded && begin == Begin::Nothing {
                            let mut panels = vec![0; panels_size(k, n)];
                            pack_panels(b_of, &mut panels);
                            let mut again = vec![f32::NAN; m * n];
                            let target = Target::new(again.as_mut_ptr(), n);
                            // SAFETY: as above.
                            unsafe { product_with(engine, target, begin, 0.5, a_of, &panels, n) };
                            assert_eq!(again, out);
                            let same = |(d, j)| packed_value(&panels, k, d, j) == round(b_of.at(d, j));
                            assert!((0..k).flat_map(|d| (0..n).map(move |j| (d, j))).all(same));
                        }
                        let first = |place: usize| match begin {
                            Begin::Nothing => 0.0,
                            Begin::Sum => 2.0,
                            Begin::Row(row) => f64::from(row[place % n]),
                        };
                        for (place, found) in out.iter().enumerate() {
                            let expected = exact(place / n, place % n) + first(place);
                            let error = (f64::from(*found) - expected).abs();
                            assert!(error < 2e-4, "{engine:?} {m}x{n}x{k} layout {layout}: {found} for {expected}");
                        }
                    }
                }
            }
        }
    }
}
