//! Matrix products on slices, with strides.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Element;
use bytemuck::Pod;
use gemm::Parallelism;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::vectorised;

/// A product is shared by all threads from this many multiplications on.
const SHARED: usize = 1 << 22;

/// A matrix in memory: where its first value is, and the distance between its rows and between its columns, in values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<T = f32> {
    first: *const T,
    rows: usize,
    columns: usize,
    strides: [isize; 2],
}

// SAFETY: a matrix is only read.
unsafe impl<T: Sync> Sync for Matrix<T> {}

impl<T: Element + Pod> Matrix<T> {
    /// Rows of `columns` values, `stride` values apart, from `values[0]` on.
    ///
    /// # Panics
    ///
    /// When the slice is shorter.
    pub fn of(values: &[T], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * stride + columns <= values.len());
        Self { first: values.as_ptr(), rows, columns, strides: [stride as isize, 1] }
    }

    /// A tensor of two dimensions, whatever its strides.
    pub fn tensor(x: &FlexTensor) -> Self {
        let layout = x.layout();
        let [rows, columns] = layout.shape().dims();
        let strides = layout.strides();
        let first = x.storage::<T>()[layout.start_offset()..].as_ptr();
        Self { first, rows, columns, strides: [strides[0], strides[1]] }
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns it has.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the values of a row lie side by side.
    pub fn row_is_contiguous(&self) -> bool {
        self.strides[1] == 1 || self.columns == 1
    }

    /// Whether the values of a column lie side by side.
    pub fn column_is_contiguous(&self) -> bool {
        self.strides[0] == 1 || self.rows == 1
    }

    /// Some of its rows and columns.
    ///
    /// # Panics
    ///
    /// When it has fewer.
    pub fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let first = self.place(rows.start, columns.start);
        Self { first, rows: rows.len(), columns: columns.len(), ..self }
    }

    /// Where a value is.
    pub fn place(&self, row: usize, column: usize) -> *const T {
        self.first.wrapping_offset(row as isize * self.strides[0] + column as isize * self.strides[1])
    }

    /// The distance between rows and between columns, in values.
    pub fn strides(&self) -> [isize; 2] {
        self.strides
    }

    /// The values of a row that lies in one piece.
    ///
    /// # Panics
    ///
    /// When there is no such row, or not in one piece.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[T] {
        assert!(row < self.rows && self.row_is_contiguous());
        // SAFETY: the constructors have checked that the matrix lies in memory that outlives this use.
        unsafe { std::slice::from_raw_parts(self.place(row, 0), self.columns) }
    }

    /// One value.
    #[inline(always)]
    pub fn at(&self, row: usize, column: usize) -> T {
        debug_assert!(row < self.rows && column < self.columns);
        // SAFETY: as above.
        unsafe { *self.place(row, column) }
    }

    /// Rows for columns.
    pub fn transposed(self) -> Self {
        let [row, column] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [column, row], ..self }
    }
}

/// A matrix to write to, whose rows are `stride` values apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    first: *mut f32,
    stride: usize,
}

// SAFETY: whoever shares a target writes to places of its own; see `Target::at`.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

impl Target {
    /// The values behind `first`, in rows that are `stride` values apart.
    pub fn new(first: *mut f32, stride: usize) -> Self {
        Self { first, stride }
    }

    /// The same from the value at `offset` on.
    ///
    /// # Safety
    ///
    /// It must lie in the same memory, and no other thread may touch what is written through it.
    pub unsafe fn at(self, offset: usize) -> Self {
        // SAFETY: the caller's.
        Self { first: unsafe { self.first.add(offset) }, ..self }
    }

    /// The same from a row on.
    ///
    /// # Safety
    ///
    /// As for [`Target::at`].
    pub unsafe fn row(self, row: usize) -> Self {
        // SAFETY: the caller's.
        unsafe { self.at(row * self.stride) }
    }

    /// Where it begins.
    pub fn first(self) -> *mut f32 {
        self.first
    }

    /// The distance between rows, in values.
    pub fn stride(self) -> usize {
        self.stride
    }
}

/// `out = alpha · a · b`, or `out += alpha · a · b` if `add`.
///
/// # Safety
///
/// `out` has room for the rows and columns of the product, nobody else uses them, and with `add` they are initialised.
pub(crate) unsafe fn product(out: Target, add: bool, alpha: f32, a: Matrix, b: Matrix, shared: bool) {
    assert_eq!(a.columns, b.rows);
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let parallel = if shared && m * n * k >= SHARED { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: `Matrix` checks its operands, the caller vouches for `out`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.first,
            1,
            out.stride as isize,
            add,
            a.first,
            a.strides[1],
            a.strides[0],
            b.first,
            b.strides[1],
            b.strides[0],
            1.0,
            alpha,
            false,
            false,
            false,
            parallel,
        );
    }
}

/// The same of values that `round` rounds.
///
/// # Safety
///
/// As for [`product`].
pub(crate) unsafe fn rounded(
    out: Target,
    add: bool,
    alpha: f32,
    a: Matrix,
    b: Matrix,
    round: impl Fn(f32) -> f32 + Sync,
) {
    // Where a matrix lies column by column, so do its rounded values.
    let all = |x: Matrix| {
        let across = !x.row_is_contiguous() && x.column_is_contiguous();
        let x = if across { x.transposed() } else { x };
        let mut all = vec![0.0; x.rows * x.columns];
        all.par_chunks_mut(x.columns).enumerate().for_each(|(row, all)| {
            vectorised(
                #[inline(always)]
                || {
                    if x.row_is_contiguous() {
                        for (value, x) in all.iter_mut().zip(x.row(row)) {
                            *value = round(*x);
                        }
                    } else {
                        for (column, value) in all.iter_mut().enumerate() {
                            *value = round(x.at(row, column));
                        }
                    }
                },
            );
        });
        (all, x, across)
    };
    let (left, right) = (all(a), all(b));
    let [a, b] = [&left, &right].map(|(values, x, across)| {
        let rounded = Matrix::of(values, x.rows, x.columns, x.columns);
        if *across { rounded.transposed() } else { rounded }
    });
    // SAFETY: the caller's.
    unsafe { product(out, add, alpha, a, b, true) };
}
