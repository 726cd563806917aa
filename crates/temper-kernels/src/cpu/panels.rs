//! Products of one thread whose right-hand side is used by many of them, such as the keys of a head.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::bf16::{self, Operand};
use super::gemm::{self, Matrix, Target};
use super::turn::turn;

/// How many columns lie side by side: a multiple of what any processor multiplies at once.
const WIDTH: usize = 32;
/// How many rows of the left-hand side share what was read of the right-hand side.
const ROWS: usize = 6;
/// How many steps of a sum are taken before the next panel: what is read again and again stays in the first cache.
const DEPTH: usize = 256;
/// Left-hand sides of fewer rows do not pay for panels.
const FEW: usize = 4;

/// The right-hand side of products.
#[derive(Debug)]
pub(crate) enum Right {
    /// Where it was.
    Plain(Matrix),
    /// Copied: for each [`WIDTH`] columns, row by row, as many values, the last of them followed by zeros.
    Panels { values: Vec<f32>, rows: usize, columns: usize },
    /// Rounded to bfloat16, in the panels of [`bf16`].
    Rounded { engine: bf16::Engine, panels: Vec<u32>, rows: usize, columns: usize },
}

impl Right {
    /// A matrix, whose rows or columns lie in one piece each, that is going to be multiplied by others of so many rows; in
    /// bfloat16, if there is an engine for it.
    pub fn new(x: Matrix, rows_of_left: usize, engine: Option<bf16::Engine>) -> Self {
        let (rows, columns) = (x.rows(), x.columns());
        if rows_of_left < FEW || rows * columns == 0 {
            return Self::Plain(x);
        }
        if let Some(engine) = engine {
            let mut panels = vec![0; bf16::panels_size(rows, columns)];
            bf16::pack_panels_here(Operand::Plain(x), &mut panels);
            return Self::Rounded { engine, panels, rows, columns };
        }
        let mut values = vec![0.0; rows * columns.next_multiple_of(WIDTH)];
        for (panel, values) in values.chunks_exact_mut(rows.max(1) * WIDTH).enumerate() {
            let columns = panel * WIDTH..columns.min((panel + 1) * WIDTH);
            if x.row_is_contiguous() {
                for (row, values) in values.chunks_exact_mut(WIDTH).enumerate() {
                    let row = &x.row(row)[columns.clone()];
                    match row.first_chunk::<WIDTH>() {
                        Some(all) => values.copy_from_slice(all),
                        None => values[..row.len()].copy_from_slice(row),
                    }
                }
            } else {
                // Sixteen values of each column at a time, turned in a buffer that stays in the first cache.
                let (across, mut buffer) = (x.transposed(), [[0.0; 16]; WIDTH]);
                for (number, values) in values.chunks_mut(16 * WIDTH).enumerate() {
                    let rows = 16 * number..x.rows().min(16 * (number + 1));
                    for (column, buffer) in columns.clone().zip(&mut buffer) {
                        let values = &across.row(column)[rows.clone()];
                        match values.first_chunk() {
                            Some(all) => *buffer = *all,
                            None => buffer[..values.len()].copy_from_slice(values),
                        }
                    }
                    turn(&buffer, values);
                }
            }
        }
        Self::Panels { values, rows, columns }
    }

    /// The columns that a product computes whose caller wants these.
    pub fn whole(columns: Range<usize>) -> Range<usize> {
        if columns.is_empty() { columns } else { columns.start / WIDTH * WIDTH..columns.end }
    }

    /// `out = alpha · a · b`, or `out += alpha · a · b` if `add`, of these rows and columns of `b`; the columns begin
    /// [where they can](Self::whole). The rows or the columns of `a` lie in one piece; none is empty.
    ///
    /// # Safety
    ///
    /// `out` has room for the rows and columns of the product, nobody else uses them, and with `add` they are initialised.
    pub unsafe fn product(&self, out: Target, add: bool, alpha: f32, a: Matrix, part: [Range<usize>; 2]) {
        // SAFETY: the caller's.
        unsafe { self.product_by(|work| Arch::new().dispatch(work), out, add, alpha, a, part) };
    }

    /// The same, of which `run` runs what is done with panels.
    unsafe fn product_by(
        &self,
        run: impl FnOnce(Work<'_>),
        out: Target,
        add: bool,
        alpha: f32,
        a: Matrix,
        [rows, columns]: [Range<usize>; 2],
    ) {
        match self {
            Self::Plain(b) => {
                // SAFETY: the caller's.
                unsafe { gemm::product(out, add, alpha, a, b.part(rows, columns), false) };
            }
            Self::Panels { values, rows: all, columns: count } => {
                assert!(a.columns() == rows.len() && !rows.is_empty() && rows.end <= *all && columns.end <= *count);
                assert!(columns.start.is_multiple_of(WIDTH) || columns.is_empty());
                let panels = &values[(columns.start * all).min(values.len())..];
                run(Work { out, add, alpha, a, panels, all: *all, rows, columns: columns.len() });
            }
            Self::Rounded { engine, panels, rows: height, columns: count } => {
                assert!(columns.end <= *count);
                // SAFETY: the caller's.
                unsafe { bf16::product_here(*engine, out, add, alpha, a, (panels, *height), [rows, columns]) };
            }
        }
    }
}

/// A product with panels.
struct Work<'a> {
    out: Target,
    add: bool,
    alpha: f32,
    a: Matrix,
    panels: &'a [f32],
    /// How many rows a panel has.
    all: usize,
    rows: Range<usize>,
    columns: usize,
}

impl WithSimd for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.a.row_is_contiguous() { self.run::<S, true>(simd) } else { self.run::<S, false>(simd) }
    }
}

impl Work<'_> {
    #[inline(always)]
    fn run<S: Simd, const BY_ROW: bool>(&self, simd: S) {
        let (height, wide) = (self.a.rows(), 2 * S::F32_LANES);
        assert!(WIDTH.is_multiple_of(wide) && (BY_ROW || self.a.column_is_contiguous()));
        for start in (0..self.rows.len()).step_by(DEPTH) {
            let depth = start..self.rows.len().min(start + DEPTH);
            // What is larger is walked once.
            if self.columns > height {
                for column in (0..self.columns).step_by(wide) {
                    for row in (0..height).step_by(ROWS) {
                        self.tiles::<S, BY_ROW>(simd, row, column, depth.clone());
                    }
                }
            } else {
                for row in (0..height).step_by(ROWS) {
                    for column in (0..self.columns).step_by(wide) {
                        self.tiles::<S, BY_ROW>(simd, row, column, depth.clone());
                    }
                }
            }
        }
    }

    /// Up to [`ROWS`] rows.
    #[inline(always)]
    fn tiles<S: Simd, const BY_ROW: bool>(&self, simd: S, row: usize, column: usize, depth: Range<usize>) {
        match self.a.rows() - row {
            1 => self.tile::<S, 1, BY_ROW>(simd, row, column, depth),
            2 => self.tile::<S, 2, BY_ROW>(simd, row, column, depth),
            3 => self.tile::<S, 3, BY_ROW>(simd, row, column, depth),
            4 => self.tile::<S, 4, BY_ROW>(simd, row, column, depth),
            5 => self.tile::<S, 5, BY_ROW>(simd, row, column, depth),
            _ => self.tile::<S, ROWS, BY_ROW>(simd, row, column, depth),
        }
    }

    /// `M` rows and two vectors of columns of the result, summed over some of the depth.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const BY_ROW: bool>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        depth: Range<usize>,
    ) {
        let (lanes, add) = (S::F32_LANES, self.add || depth.start > 0);
        let (a, stride) = (self.a.place(row, depth.start), self.a.strides()[if BY_ROW { 0 } else { 1 }]);
        let from = (column / WIDTH * self.all + self.rows.start + depth.start) * WIDTH + column % WIDTH;
        let panel = self.panels[from..].as_ptr();
        let mut sums = [[simd.splat_f32s(0.0); 2]; M];
        for step in 0..depth.len() {
            // SAFETY: the panel has as many rows, and what lies in `a` was checked when it was made.
            unsafe {
                let b = [0, lanes].map(|at| panel.add(step * WIDTH + at).cast::<S::f32s>().read_unaligned());
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = simd.splat_f32s(*a.offset(if BY_ROW {
                        i as isize * stride + step as isize
                    } else {
                        step as isize * stride + i as isize
                    }));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = simd.mul_add_f32s(x, b, *sum);
                    }
                }
            }
        }
        let alpha = simd.splat_f32s(self.alpha);
        let count = self.columns - column;
        // SAFETY: within the rows and columns that the caller vouches for.
        unsafe {
            let out = self.out.row(row).at(column);
            if count >= 2 * lanes {
                for (i, sums) in sums.into_iter().enumerate() {
                    for (j, sum) in sums.into_iter().enumerate() {
                        let place = out.row(i).at(j * lanes).first().cast::<S::f32s>();
                        let before = if add { place.read_unaligned() } else { simd.splat_f32s(0.0) };
                        place.write_unaligned(simd.mul_add_f32s(sum, alpha, before));
                    }
                }
            } else {
                for (i, sums) in sums.iter().enumerate() {
                    let (sums, place) = (sums.as_ptr().cast::<f32>(), out.row(i).first());
                    for j in 0..count {
                        let before = if add { place.add(j).read() } else { 0.0 };
                        place.add(j).write(sums.add(j).read().mul_add(self.alpha, before));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Scalar, Scalar128b, Scalar512b};

    use super::*;
    use crate::testing::{close, values};

    /// A matrix, or the transpose of one, in rows that are longer than it.
    fn matrix(data: &[f32], [rows, columns]: [usize; 2], across: bool) -> Matrix {
        if across {
            Matrix::of(data, columns, rows, rows + 3).transposed()
        } else {
            Matrix::of(data, rows, columns, columns + 3)
        }
    }

    #[test]
    fn panels_and_gemm_give_the_same() {
        let cases = [
            ([1, 5, 40], [0..5, 0..40]),
            ([4, 1, 1], [0..1, 0..1]),
            ([5, 70, 33], [7..70, 32..33]),
            ([13, 300, 97], [0..300, 32..97]),
            ([66, 600, 31], [5..599, 0..31]),
            ([7, 64, 200], [0..64, 64..170]),
        ];
        let numbers = |seed, count| values(seed, [count], 1.0).data().try_into_vec_as::<f32>().expect("f32");
        for ([m, k, n], [rows, columns]) in cases {
            for form in 0..8 {
                let [left, right, add] = [1, 2, 4].map(|bit| form & bit > 0);
                let (width, stride) = (columns.len(), columns.len() + 2);
                let a = numbers(1, (m + 3) * (rows.len() + 3));
                let b = numbers(2, (k + 3) * (n + 3));
                let (a, b) = (matrix(&a, [m, rows.len()], left), matrix(&b, [k, n], right));
                let before = numbers(3, m * stride);
                let run = |with: &dyn Fn(Target)| {
                    let mut out = before.clone();
                    with(Target::new(out.as_mut_ptr(), stride));
                    out
                };
                let part = [rows.clone(), columns.clone()];
                // SAFETY: rows of `stride` values for `width` columns, all initialised.
                let expected = run(&|out| unsafe {
                    gemm::product(out, add, 0.7, a, b.part(rows.clone(), columns.clone()), false);
                });
                // This processor, and those whose vectors have 1, 4 and 16 numbers.
                let engines: [fn(Work<'_>); 4] = [
                    |work| Arch::new().dispatch(work),
                    |work| Scalar.vectorize(work),
                    |work| Scalar128b.vectorize(work),
                    |work| Scalar512b.vectorize(work),
                ];
                for engine in engines {
                    // SAFETY: as above.
                    let own = run(&|out| unsafe {
                        Right::new(b, m, None).product_by(engine, out, add, 0.7, a, part.clone());
                    });
                    close(std::slice::from_ref(&own), std::slice::from_ref(&expected), 2e-6);
                    // What lies between rows is nobody's.
                    let rows = own.chunks(stride).zip(before.chunks(stride));
                    rows.for_each(|(own, before)| assert_eq!(own[width..], before[width..]));
                }
            }
        }
    }

    #[test]
    fn panels_are_walked_from_where_they_begin() {
        assert_eq!([0..0, 5..40, 64..65, 70..70].map(Right::whole), [0..0, 0..40, 64..65, 70..70]);
    }
}
