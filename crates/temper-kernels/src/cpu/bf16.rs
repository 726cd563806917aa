//! Products of matrices whose values are rounded to bfloat16, added up in f32.
//!
//! Columns of B are packed in panels of 32, in which two neighbours in depth share 32 bits, and are rounded if they were not. Rows
//! of A are read where they are, if they are rounded and the engine can; else they are packed, too: for AMX as tiles of 16 rows by
//! 32 values, one behind the other, for multiply-adds in f32. The inner loop is the processor's: AMX tiles, AVX-512 BF16 dot
//! products, or, where these are slower, AVX-512 multiply-adds of values that are widened again.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, bf16};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::gemm::{Matrix, Target};
pub(crate) use pack::{narrowed, pack_panels, pack_panels_here, packed_value, panels_size};
use pack::{pack_rows_of, rows_of, widened_rows};

/// Columns of a panel of B.
const PANEL: usize = 32;
/// Depths are filled up with zeros to a multiple of this: one AMX tile.
const STEP: usize = 32;
/// Rows of a tile of A. Packed rows are a multiple of it; what is missing is zero.
const ROWS: usize = 16;
/// Rows from which on an engine that can reads A where it is.
const FEW: usize = 8;
/// What an engine may read behind the packed operands, in 32 bits: one step of a panel.
const SLACK: usize = STEP / 2 * PANEL;

/// What computes the inner loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Advanced Matrix Extensions.
    Amx,
    /// `vdpbf16ps`.
    Dot,
    /// `vfmadd231ps`.
    Fma,
}

impl Engine {
    /// The most rows of A that a thread takes at a time, which stay in its second cache while panels of B pass, and how deep a
    /// panel is worked through at a time, at most, so that it stays in the first cache beside some of them. As measured.
    fn block(self) -> (usize, usize) {
        if self == Self::Amx { (256, 768) } else { (64, 288) }
    }

    /// How far apart two depths of packed rows of A are, in 16 bits.
    fn apart(self) -> usize {
        match self {
            Self::Amx => ROWS,
            Self::Dot => 1,
            Self::Fma => 2,
        }
    }

    /// The fastest that this machine has, if any.
    pub fn best() -> Option<Self> {
        static BEST: OnceLock<Option<Engine>> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().first().copied())
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
                all.extend(if avx512::dots_are_fast() { [Self::Dot, Self::Fma] } else { [Self::Fma, Self::Dot] });
            }
        }
        all
    }
}

/// The bits of the nearest bfloat16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded as u16 }
}

/// The nearest bfloat16.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    f32::from_bits(u32::from(bits(x)) << 16)
}

/// A matrix of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operand {
    /// Of values that are rounded when they are packed.
    Plain(Matrix),
    /// Of those that were rounded before.
    Rounded(Matrix<bf16>),
}

impl Operand {
    /// A tensor of two dimensions, of f32 or bf16, whatever its strides.
    pub fn tensor(x: &FlexTensor) -> Self {
        if x.dtype() == DType::BF16 { Self::Rounded(Matrix::tensor(x)) } else { Self::Plain(Matrix::tensor(x)) }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Plain(x) => [x.rows(), x.columns()],
            Self::Rounded(x) => [x.rows(), x.columns()],
        }
    }

    /// Rows for columns.
    pub fn transposed(self) -> Self {
        match self {
            Self::Plain(x) => Self::Plain(x.transposed()),
            Self::Rounded(x) => Self::Rounded(x.transposed()),
        }
    }
}

/// The right-hand side of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a> {
    /// To be packed.
    Matrix(Operand),
    /// What [`pack_panels`] made of one.
    Panels(&'a [u32]),
}

/// A work item of the inner loops: some rows of A against one panel of B, over some depth.
struct Piece {
    /// The first values of A, and how far apart its rows are, or for AMX its rows of tiles.
    a: *const u16,
    stride: usize,
    /// The panel's values at this depth.
    b: *const u32,
    depth: usize,
    /// What is written, and how much of it there is.
    out: Target,
    rows: usize,
    columns: usize,
    /// What the product is multiplied by.
    alpha: f32,
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

/// `out = begin + alpha · Σ a · b` over the terms, of rounded values. All of them have as many rows and columns as the first.
///
/// # Safety
///
/// `out` has room for so many rows and columns, nobody else uses them, and with [`Begin::Sum`] they are initialised.
pub(crate) unsafe fn product(
    engine: Engine,
    out: Target,
    begin: Begin,
    alpha: f32,
    terms: &[(Operand, Right)],
    columns: usize,
) {
    let size = |(a, b): &(Operand, Right)| match b {
        Right::Matrix(_) => panels_size(a.shape()[1], columns),
        Right::Panels(_) => 0,
    };
    let mut room = PANELS.take();
    let mut free = at_least(&mut room, terms.iter().map(size).sum());
    let terms: Vec<(Operand, &[u32])> = terms
        .iter()
        .map(|term| {
            let (own, rest) = std::mem::take(&mut free).split_at_mut(size(term));
            free = rest;
            match term.1 {
                Right::Matrix(b) => {
                    assert_eq!(b.shape(), [term.0.shape()[1], columns]);
                    pack_panels(b, own);
                    (term.0, &*own)
                }
                Right::Panels(panels) => (term.0, panels),
            }
        })
        .collect();
    // SAFETY: the caller's.
    unsafe { product_of_panels(engine, out, begin, alpha, &terms, columns) };
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

/// A term, of some rows of A.
struct Term<'a> {
    a: &'a [u16],
    rows: usize,
    /// As in a [`Piece`].
    stride: usize,
    b: &'a [u32],
    /// How deep the panels are.
    height: usize,
    /// How deep the term is, and filled up.
    depth: usize,
    padded: usize,
}

impl<'a> Term<'a> {
    /// The room that packed rows take.
    fn room(engine: Engine, a: &Operand, rows: usize) -> usize {
        let each = if engine == Engine::Fma { 3 } else { 1 };
        each * rows.next_multiple_of(ROWS) * a.shape()[1].next_multiple_of(STEP)
    }

    /// Rows of A where they are, or in `room`, with panels of which a column has `height` values.
    fn new(engine: Engine, a: Operand, rows: Range<usize>, room: &'a mut [u16], b: &'a [u32], height: usize) -> Self {
        let (depth, count) = (a.shape()[1], rows.len());
        let padded = depth.next_multiple_of(STEP);
        let stride = engine.apart() * padded;
        let (a, stride) = match (engine, a) {
            (Engine::Fma, a) => (widened_rows(a, rows, padded, room), stride),
            (Engine::Dot, Operand::Rounded(a)) if count >= FEW && depth % 2 == 0 && a.row_is_contiguous() => {
                (rows_of(a, rows), a.strides()[0] as usize)
            }
            (_, a) => (pack_rows_of(a, rows, engine == Engine::Amx, padded, room), stride),
        };
        Self { a, rows: count, stride, b, height: height.next_multiple_of(STEP), depth, padded }
    }
}

/// Adds the terms up in some panels, on this thread.
///
/// # Safety
///
/// As for [`product`], of the terms' rows and of the columns of these panels.
unsafe fn add_up(
    engine: Engine,
    out: Target,
    add: bool,
    alpha: f32,
    terms: &[Term],
    panels: Range<usize>,
    columns: usize,
) {
    let (tiles, (_, deepest)) = (engine == Engine::Amx, engine.block());
    let pieces = panels.flat_map(|panel| {
        terms.iter().enumerate().flat_map(move |(number, &Term { a, rows, stride, b, height, depth, padded })| {
            // A tile of AMX is always whole.
            let end = if tiles { padded } else { depth.next_multiple_of(2) };
            let deep = padded.div_ceil(padded.div_ceil(deepest)).next_multiple_of(STEP);
            (0..end).step_by(deep).map(move |start| Piece {
                a: a[start * engine.apart()..].as_ptr(),
                stride,
                b: b[(panel * height + start) / 2 * PANEL..].as_ptr(),
                depth: deep.min(end - start),
                // SAFETY: the caller's.
                out: unsafe { out.at(panel * PANEL) },
                rows,
                columns: PANEL.min(columns - panel * PANEL),
                alpha,
                add: add || number > 0 || start > 0,
            })
        })
    });
    // SAFETY: pieces lie within what was packed and what the caller gave; the engine is one that the machine has.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match engine {
            #[cfg(test)]
            Engine::Amx if !amx::allowed() => amx::run_by_hand(pieces),
            Engine::Amx => amx::run(pieces),
            Engine::Dot => avx512::run::<false>(pieces),
            Engine::Fma => avx512::run::<true>(pieces),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    drop(pieces);
}

/// [`product`] of panels, on all threads.
///
/// # Safety
///
/// As for [`product`].
unsafe fn product_of_panels(
    engine: Engine,
    out: Target,
    begin: Begin,
    alpha: f32,
    terms: &[(Operand, &[u32])],
    columns: usize,
) {
    let rows = terms[0].0.shape()[0];
    let ((most, _), threads) = (engine.block(), rayon::current_num_threads());
    let height = rows.div_ceil(threads).next_multiple_of(32).min(most);
    let (blocks, panels) = (rows.div_ceil(height), columns.div_ceil(PANEL));
    let groups = (4 * threads).div_ceil(blocks).clamp(1, panels);
    let group = panels.div_ceil(groups);
    for (a, b) in terms {
        assert_eq!((a.shape()[0], b.len()), (rows, panels_size(a.shape()[1], columns)));
    }
    (0..blocks).into_par_iter().for_each(|block| {
        let own = block * height..rows.min((block + 1) * height);
        let mut room = ROWS_OF_A.take();
        let mut free =
            at_least(&mut room, terms.iter().map(|(a, _)| Term::room(engine, a, own.len())).sum::<usize>() + SLACK);
        let mut of_rows = Vec::with_capacity(terms.len());
        for (a, b) in terms {
            let (packed, rest) = free.split_at_mut(Term::room(engine, a, own.len()));
            free = rest;
            of_rows.push(Term::new(engine, *a, own.clone(), packed, b, a.shape()[1]));
        }
        (0..groups).into_par_iter().for_each(|number| {
            let of_group = number * group..panels.min((number + 1) * group);
            if let Begin::Row(row) = begin {
                // The last groups may have no panels.
                let [at, end] = [of_group.start, of_group.end].map(|panel| columns.min(panel * PANEL));
                let part = &row[at..end.max(at)];
                // SAFETY: rows and columns of this task, which no other has.
                own.clone().for_each(|i| unsafe { fill(out.row(i).at(at), part) });
            }
            // SAFETY: as above.
            unsafe {
                let out = out.row(own.start);
                add_up(engine, out, begin != Begin::Nothing, alpha, &of_rows, of_group, columns);
            }
        });
        drop(of_rows);
        ROWS_OF_A.set(room);
    });
}

/// `out = alpha · a · b`, or `out += alpha · a · b` if `add`, on this thread: of a matrix b of `height` rows that is packed, some
/// rows and columns, which begin at multiples of 32.
///
/// # Safety
///
/// As for [`product`].
pub(crate) unsafe fn product_here(
    engine: Engine,
    out: Target,
    add: bool,
    alpha: f32,
    a: Matrix,
    (panels, height): (&[u32], usize),
    [rows, columns]: [Range<usize>; 2],
) {
    assert!(a.columns() == rows.len() && rows.end <= height && rows.start.is_multiple_of(STEP));
    assert!(columns.start.is_multiple_of(PANEL) && panels_size(height, columns.end) <= panels.len());
    let first = (columns.start * height.next_multiple_of(STEP) + rows.start * PANEL) / 2;
    let (count, mut room) = (a.rows(), ROWS_OF_A.take());
    let packed = at_least(&mut room, Term::room(engine, &Operand::Plain(a), count) + SLACK);
    let term = Term::new(engine, Operand::Plain(a), 0..count, packed, &panels[first..], height);
    // SAFETY: the caller's.
    unsafe { add_up(engine, out, add, alpha, &[term], 0..columns.len().div_ceil(PANEL), columns.len()) };
    ROWS_OF_A.set(room);
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
        let values = numbers(77, 3);
        let mut rounded = vec![bf16::ZERO; 77];
        narrowed(&values, &mut rounded);
        assert!(values.iter().zip(rounded).all(|(x, y)| round(*x) == y.to_f32()));
    }

    /// `rows` by `columns`, or the transpose of a matrix of so many columns and rows.
    fn matrix<T: burn::tensor::Element + bytemuck::Pod>(
        values: &[T],
        [rows, columns]: [usize; 2],
        across: bool,
    ) -> Matrix<T> {
        if across {
            Matrix::of(values, columns, rows, rows).transposed()
        } else {
            Matrix::of(values, rows, columns, columns)
        }
    }

    /// Those that this machine has, and AMX, by hand where it has not.
    fn engines() -> Vec<Engine> {
        let mut all = Engine::available();
        if cfg!(target_arch = "x86_64") && !all.contains(&Engine::Amx) {
            all.push(Engine::Amx);
        }
        all
    }

    #[test]
    fn every_engine_gives_the_product_of_rounded_values() {
        for (case, [m, n, k]) in
            [[1, 1, 1], [3, 5, 7], [16, 384, 32], [77, 50, 64], [70, 45, 600], [130, 33, 1100]].into_iter().enumerate()
        {
            for layout in 0..4 {
                let (values, row) = ([numbers(m * k, 1 + case as u32), numbers(k * n, 9)], numbers(n, 5));
                let halves = values.each_ref().map(|x| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>());
                let (of_a, of_b) = (([m, k], layout & 1 > 0), ([k, n], layout & 2 > 0));
                let [a, b] = [(0, of_a), (1, of_b)].map(|(i, (shape, across))| matrix(&values[i], shape, across));
                let [a_half, b_half] =
                    [(0, of_a), (1, of_b)].map(|(i, (shape, across))| matrix(&halves[i], shape, across));
                let exact: Vec<f64> = (0..m * n)
                    .map(|place| {
                        let (i, j) = (place / n, place % n);
                        (0..k).map(|d| f64::from(round(a.at(i, d))) * f64::from(round(b.at(d, j)))).sum()
                    })
                    .collect();
                let mut panels = vec![0; panels_size(k, n)];
                pack_panels(Operand::Plain(b), &mut panels);
                let same = |(d, j)| packed_value(&panels, k, d, j) == round(b.at(d, j));
                assert!((0..k).flat_map(|d| (0..n).map(move |j| (d, j))).all(same));
                let [plain, rounded] = [
                    (Operand::Plain(a), Right::Matrix(Operand::Plain(b))),
                    (Operand::Rounded(a_half), Right::Matrix(Operand::Rounded(b_half))),
                ];
                let packed = (Operand::Plain(a), Right::Panels(&panels));
                for engine in engines() {
                    for begin in [Begin::Nothing, Begin::Sum, Begin::Row(&row)] {
                        let run = |terms: &[(Operand, Right)]| {
                            let mut out = vec![if begin == Begin::Sum { 2.0 } else { f32::NAN }; m * n];
                            // SAFETY: m·n values.
                            unsafe { product(engine, Target::new(out.as_mut_ptr(), n), begin, 0.5, terms, n) };
                            out
                        };
                        let once = run(&[plain]);
                        assert!([rounded, packed].into_iter().all(|term| run(&[term]) == once));
                        let first = |place: usize| match begin {
                            Begin::Nothing => 0.0,
                            Begin::Sum => 2.0,
                            Begin::Row(row) => f64::from(row[place % n]),
                        };
                        for (out, times) in [(once, 0.5), (run(&[rounded, packed]), 1.0)] {
                            for (place, found) in out.iter().enumerate() {
                                let expected = times * exact[place] + first(place);
                                let error = (f64::from(*found) - expected).abs();
                                assert!(error < 4e-4, "{engine:?} {m}x{n}x{k} layout {layout}: {found} for {expected}");
                            }
                        }
                    }
                }
            }
        }
    }
}
