//! The loops around a tile: which task makes which part of C, what stays in which cache.
//!
//! A task makes one block of C: it packs its rows of A once per block of the inner dimension (second cache) and runs
//! down them for each panel of B (first cache). Blocks depend on the shapes and the path, never on the number of threads,
//! and no sum is split between tasks.

use super::Split;
use super::epilogue::Epilogue;
use super::lanes::{BLOCK_LINES, Job, Kernel, Line, Operands, Tile, WIDTH};
use super::matrix::Matrix;
use super::pack::PackedB;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Most rows of a task: with 512 values each, 204 KiB of packed A.
const TASK_ROWS: usize = 192;
/// Most panels of a task; packing A again for the next ones costs a few percent.
const TASK_PANELS: usize = 24;
/// Panels after which an epilogue runs: its rows are up to 256 elements long, and in the second cache.
const STRIP_PANELS: usize = 8;
/// Large products have at least so many tasks, if their shape allows.
const TASKS: usize = 8;
/// Multiply-adds below which a product stays on this thread: some microseconds.
const SERIAL_WORK: usize = 1 << 20;

/// Whether the product replaces what C holds or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// C = A B
    Write,
    /// C += A B
    Add,
}

/// Who makes the tasks of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hands {
    /// All threads, where the product is worth it.
    Many,
    /// This thread: for products inside a parallel loop.
    One,
}

/// C, which tasks write in disjoint rectangles.
pub(super) struct Output<'a> {
    start: *mut f32,
    /// Elements that may be written.
    len: usize,
    /// From row to row.
    stride: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a mutable slice of floats that is only used through `tile`, whose callers keep to disjoint rectangles.
#[allow(unsafe_code)]
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub(super) fn new(c: &'a mut [f32], stride: usize) -> Self {
        Self { start: c.as_mut_ptr(), len: c.len(), stride, owner: std::marker::PhantomData }
    }

    /// Over memory for `rows` rows of `columns` elements in the empty vector `c`, which a product of [`Store::Write`]
    /// writes without reading it first; the owner sets the length after that.
    pub(super) fn spare(c: &'a mut Vec<f32>, (rows, columns): (usize, usize)) -> Self {
        c.reserve_exact(rows * columns);
        Self { start: c.as_mut_ptr(), len: rows * columns, stride: columns, owner: std::marker::PhantomData }
    }

    /// # Safety
    /// The rectangle lies inside C, and no other tile that is alive touches it.
    #[allow(unsafe_code)]
    unsafe fn tile(&self, row: usize, column: usize, size: (usize, usize), add: bool) -> Tile<'_> {
        // SAFETY: inside C by contract, so `start` plus this offset is, too.
        unsafe { Tile::new(self.start.add(row * self.stride + column), self.stride, size, add) }
    }
}

/// How C is cut into tasks.
struct Plan {
    rows: usize,
    panels: usize,
    task_rows: usize,
    task_panels: usize,
}

impl Plan {
    fn new((rows, panels): (usize, usize), tile_rows: usize, work: usize) -> Self {
        let down = rows.div_ceil(TASK_ROWS).max(1);
        let task_rows = rows.div_ceil(down).max(1).next_multiple_of(tile_rows);
        let wanted = if work < SERIAL_WORK { 1 } else { TASKS.div_ceil(down).min(panels) };
        let across = panels.div_ceil(TASK_PANELS).max(wanted).max(1);
        Self { rows, panels, task_rows, task_panels: panels.div_ceil(across).max(1) }
    }

    fn across(&self) -> usize {
        self.panels.div_ceil(self.task_panels)
    }

    fn tasks(&self) -> usize {
        self.rows.div_ceil(self.task_rows) * self.across()
    }

    /// Rows and panels of a task.
    fn task(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let (row, panel) = (i / self.across() * self.task_rows, i % self.across() * self.task_panels);
        (row..self.rows.min(row + self.task_rows), panel..self.panels.min(panel + self.task_panels))
    }
}

/// C = A B or C += A B; shapes were compared.
pub(super) fn product<K: Kernel>(
    kernel: K,
    a: Matrix<'_>,
    b: &PackedB,
    c: Output<'_>,
    store: Store,
    epilogue: &dyn Epilogue,
    hands: Hands,
) {
    let ((rows, depth), columns) = (a.shape(), b.shape().1);
    assert!(columns <= c.stride || rows <= 1);
    assert!(rows * columns == 0 || c.len >= (rows - 1) * c.stride + columns);
    const { assert!(TASK_ROWS.is_multiple_of(K::ROWS)) };
    let work = rows * columns * depth;
    let plan = Plan::new((rows, b.panels()), K::ROWS, work);
    let run = |i: usize| {
        let (rows, panels) = plan.task(i);
        kernel.session(Task { kernel, a, b, c: &c, rows, panels, store, epilogue });
    };
    if hands == Hands::One || work < SERIAL_WORK || plan.tasks() < 2 {
        (0..plan.tasks()).for_each(run);
    } else {
        (0..plan.tasks()).into_par_iter().for_each(run);
    }
}

thread_local! {
    /// Packed A of the task at hand: 204 KiB, kept from task to task.
    static ROWS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// One block of C.
struct Task<'a, K> {
    kernel: K,
    a: Matrix<'a>,
    b: &'a PackedB,
    c: &'a Output<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    store: Store,
    epilogue: &'a dyn Epilogue,
}

impl<K: Kernel> Job for Task<'_, K> {
    #[inline(always)]
    fn run(self) {
        let depth = self.b.depth();
        let mut packed = ROWS.take();
        packed.resize(packed.len().max(self.rows.len().next_multiple_of(K::ROWS) * BLOCK_LINES), Line::ZERO);
        if depth.lines() == 0 {
            self.empty_sums();
            self.finish(&self.panels);
        }
        for block in depth.blocks() {
            self.pack(&block, &mut packed);
            for first in self.panels.clone().step_by(STRIP_PANELS) {
                let strip = first..self.panels.end.min(first + STRIP_PANELS);
                for panel in strip.clone() {
                    self.multiply(&packed, panel, &block);
                }
                if block.end == depth.lines() {
                    self.finish(&strip);
                }
            }
        }
        ROWS.set(packed);
    }
}

impl<K: Kernel> Task<'_, K> {
    /// Packs all rows, over one block of the inner dimension.
    #[inline(always)]
    fn pack(&self, block: &Range<usize>, to: &mut [Line]) {
        match self.b.split() {
            Split::One => K::pack::<1>(self.kernel, self.a, self.rows.clone(), block, to),
            Split::Two => K::pack::<2>(self.kernel, self.a, self.rows.clone(), block, to),
            Split::Three => K::pack::<3>(self.kernel, self.a, self.rows.clone(), block, to),
        }
    }

    /// All rows by one panel, over one block of the inner dimension.
    #[inline(always)]
    fn multiply(&self, packed: &[Line], panel: usize, block: &Range<usize>) {
        let add = self.store == Store::Add || block.start > 0;
        let column = panel * WIDTH;
        let columns = WIDTH.min(self.b.shape().1 - column);
        let mut operands = Operands {
            a: packed,
            b: self.b.block(panel, block),
            lines: block.len(),
            pairs: self.b.depth().values(block).div_ceil(2),
            split: self.b.split(),
        };
        for row in self.rows.clone().step_by(K::ROWS) {
            operands.a = &packed[(row - self.rows.start) / K::GROUP * operands.group(K::GROUP)..];
            let size = (K::ROWS.min(self.rows.end - row), columns);
            // SAFETY: inside this task's rectangle of C, which no other task has; gone before the next tile.
            #[allow(unsafe_code)]
            self.kernel.tile(operands, unsafe { self.c.tile(row, column, size, add) });
        }
    }

    /// All rows, in the columns of these panels.
    fn rectangle(&self, panels: &Range<usize>) -> Tile<'_> {
        let (start, end) = (panels.start * WIDTH, self.b.shape().1.min(panels.end * WIDTH));
        // SAFETY: inside this task's rectangle of C; no tile is alive.
        #[allow(unsafe_code)]
        unsafe {
            self.c.tile(self.rows.start, start, (self.rows.len(), end - start), true)
        }
    }

    /// Sums over nothing.
    fn empty_sums(&self) {
        if self.store == Store::Write {
            let mut all = self.rectangle(&self.panels);
            (0..self.rows.len()).for_each(|row| all.clear(row));
        }
    }

    #[inline(always)]
    fn finish(&self, panels: &Range<usize>) {
        if self.epilogue.is_empty() {
            return;
        }
        let mut strip = self.rectangle(panels);
        for row in 0..self.rows.len() {
            self.epilogue.finish(self.rows.start + row, panels.start * WIDTH, strip.row(row));
        }
    }
}
