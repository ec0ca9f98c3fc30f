//! The vocabulary of packing and multiplying: a line of 16 pairs of bf16, and what an instruction set does with it.
//! Implementations are tokens: a value of one proves that the processor has its instructions.

use super::Split;
use super::matrix::Matrix;
use std::marker::PhantomData;
use std::ops::Range;

/// Pairs in a line.
pub(super) const PAIRS: usize = 16;
/// Values of the inner dimension that a line of A holds.
pub(super) const DEPTH: usize = 2 * PAIRS;
/// Columns of a panel of B, in two lines per pair of the inner dimension.
pub(super) const WIDTH: usize = 2 * PAIRS;

/// One cache line. Of A: 16 pairs along the inner dimension, for one row. Of B: one pair, for 16 columns.
/// The low half of an element comes first along the inner dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; PAIRS]);

impl Line {
    pub(super) const ZERO: Self = Self([0; PAIRS]);
}

/// Code to be compiled for an instruction set. `run` and all it calls must be `inline(always)`, which no closure is.
pub(super) trait Job {
    fn run(self);
}

/// Rounding to bf16 and moving the halves into place. Every implementation gives the same bits.
pub(super) trait Lanes: Copy + Send + Sync {
    /// 16 f32.
    type Vector: Copy;

    /// Runs the job compiled for these instructions.
    fn enter(self, job: impl Job);
    /// Up to 16 values, then zeros.
    fn load(self, values: &[f32]) -> Self::Vector;
    /// What rounding to bf16 takes away; zero where the rounded value is not finite.
    fn rest(self, x: Self::Vector) -> Self::Vector;
    /// 32 consecutive values as pairs.
    fn in_order(self, low: Self::Vector, high: Self::Vector) -> Line;
    /// 16 pairs, the first halves from one vector and the second halves from the other.
    fn zipped(self, first: Self::Vector, second: Self::Vector) -> Line;
    /// Writes the rows of a square of pairs as columns.
    fn transpose(self, from: &[Line; PAIRS], to: &mut [Line; PAIRS]);
}

/// [`Lanes`] that multiply.
pub(super) trait Kernel: Lanes {
    /// Most rows of a tile of C. Its most columns are [`WIDTH`].
    const ROWS: usize;
    /// Rows of a group of packed A; divides [`Self::ROWS`].
    const GROUP: usize;

    /// Packs rows of A in groups of [`Self::GROUP`].
    fn pack<const P: usize>(self, a: Matrix<'_>, rows: Range<usize>, block: &Range<usize>, to: &mut [Line]);

    /// Runs the job with everything set up for [`tile`](Self::tile).
    fn session(self, job: impl Job) {
        self.enter(job);
    }

    /// Multiplies into one tile of C, inside a session.
    fn tile(self, operands: Operands<'_>, c: Tile<'_>);
}

/// Most lines of a block of the inner dimension, over all parts: 512 values of bf16.
pub(super) const BLOCK_LINES: usize = 16;

/// Packed rows and one packed panel, over one block of the inner dimension.
///
/// Rows of A lie in groups, as many as a tile register holds, and of a group first the lines with the same place along
/// the inner dimension, one a row: what is read together is together.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    /// Groups of [`Kernel::GROUP`] rows, [`Operands::group`] lines each. Part p begins at line `p * lines * GROUP`.
    pub(super) a: &'a [Line],
    /// Part p begins at line `p * lines * DEPTH`; of each line of A, pairs of the left columns, then of the right ones.
    pub(super) b: &'a [Line],
    /// Lines of A per part and row.
    pub(super) lines: usize,
    /// Pairs of the inner dimension that are not padding.
    pub(super) pairs: usize,
    /// How many bf16 stand for one f32, and which part of A meets which part of B, in order.
    pub(super) split: Split,
}

impl Operands<'_> {
    /// Lines from a group of `rows` rows of A to the next.
    pub(super) fn group(&self, rows: usize) -> usize {
        self.split.parts() * self.lines * rows
    }

    /// Panics unless all that `groups` groups of `rows` rows and every term touch is there.
    pub(super) fn check(&self, groups: usize, rows: usize) {
        assert!(self.a.len() >= groups * self.group(rows));
        assert!(self.b.len() >= self.split.parts() * self.lines * DEPTH);
        assert!(self.pairs <= self.lines * PAIRS);
    }
}

/// A rectangle of C that nobody else touches.
pub(super) struct Tile<'a> {
    start: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    /// Whether what C holds is added to, or replaced.
    pub(super) add: bool,
    owner: PhantomData<&'a mut f32>,
}

impl<'a> Tile<'a> {
    /// # Safety
    /// For r below `rows`, `columns` elements from `start + r * stride` are valid, and this value's alone.
    #[allow(unsafe_code)]
    pub(super) unsafe fn new(start: *mut f32, stride: usize, (rows, columns): (usize, usize), add: bool) -> Self {
        Self { start, stride, rows, columns, add, owner: PhantomData }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Elements from a row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Writes zeros to a row.
    pub(super) fn clear(&mut self, row: usize) {
        assert!(row < self.rows);
        // SAFETY: the row is inside the rectangle; nothing is read, so it need not be initialised.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::write_bytes(self.start.add(row * self.stride), 0, self.columns);
        }
    }

    /// Copies `values` to a row, from `column` on.
    pub(super) fn write(&mut self, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column <= self.columns && values.len() <= self.columns - column);
        // SAFETY: as for `clear`; what is borrowed lies elsewhere.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(row * self.stride + column), values.len());
        }
    }

    /// Where a row begins, to be written by instructions.
    pub(super) fn at(&mut self, row: usize) -> *mut f32 {
        assert!(row < self.rows);
        self.start.wrapping_add(row * self.stride)
    }

    /// A row that was written before.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the row is inside the rectangle, which is ours by the contract of `new`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns)
        }
    }
}
