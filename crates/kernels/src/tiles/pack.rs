//! Operands as bf16 in the order in which tiles read them. The bits are the same on every path.

use super::lanes::{DEPTH, Job, Lanes, Line, PAIRS, ROW_LINES, WIDTH};
use super::matrix::Matrix;
use super::{Refused, Split, Tiles};
use rayon::prelude::*;
use std::ops::Range;

/// Panels of B that one task packs: reading along 256 columns keeps to few pages.
const TASK_PANELS: usize = 8;
/// Elements below which packing stays on this thread.
const SERIAL_ELEMENTS: usize = 1 << 16;

/// Blocks of the inner dimension, in lines of [`DEPTH`] values. They depend on the sizes alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depth {
    len: usize,
    lines: usize,
    block: usize,
}

impl Depth {
    pub(super) fn new(len: usize, split: Split) -> Self {
        let lines = len.div_ceil(DEPTH);
        let most = (ROW_LINES - 1) / split.parts();
        let block = lines.div_ceil(lines.div_ceil(most).max(1));
        Self { len, lines, block }
    }

    /// Blocks of lines, in order; the last may be shorter.
    pub(super) fn blocks(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.lines).step_by(self.block.max(1)).map(move |start| start..self.lines.min(start + self.block))
    }

    /// Lines of all blocks.
    pub(super) fn lines(self) -> usize {
        self.lines
    }

    /// Elements of a block, without padding.
    pub(super) fn values(self, lines: &Range<usize>) -> usize {
        self.len.min(lines.end * DEPTH) - lines.start * DEPTH
    }

    /// Lines of one packed panel of B.
    pub(super) fn panel(self, split: Split) -> usize {
        self.lines * DEPTH * split.parts()
    }
}

/// B, rounded and in panels of 32 columns: made once, used in many products and on every path.
#[derive(Clone, Debug)]
pub struct PackedB {
    lines: Vec<Line>,
    rows: usize,
    columns: usize,
    split: Split,
}

impl PackedB {
    pub(super) fn empty(split: Split) -> Self {
        Self::with_memory(split, Vec::new())
    }

    pub(super) fn with_memory(split: Split, lines: Vec<Line>) -> Self {
        Self { lines, rows: 0, columns: 0, split }
    }

    /// Its memory, unless it is longer than `most`.
    pub(super) fn into_memory(self, most: usize) -> Vec<Line> {
        if self.lines.capacity() <= most { self.lines } else { Vec::new() }
    }

    /// Rows and columns of the matrix.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Packs another matrix into the same memory.
    pub fn refill(&mut self, tiles: Tiles, b: Matrix<'_>) -> Result<(), Refused> {
        if tiles.split() != self.split {
            return Err(Refused::Packed);
        }
        self.fill(tiles, b);
        Ok(())
    }

    pub(super) fn fill(&mut self, tiles: Tiles, b: Matrix<'_>) {
        (self.rows, self.columns) = b.shape();
        let panel = self.depth().panel(self.split);
        self.lines.resize(self.panels() * panel, Line::ZERO);
        let task = |(i, lines): (usize, &mut [Line])| tiles.pack_panels(b, i * TASK_PANELS, lines);
        let size = (TASK_PANELS * panel).max(1);
        if self.rows * self.columns < SERIAL_ELEMENTS {
            self.lines.chunks_mut(size).enumerate().for_each(task);
        } else {
            self.lines.par_chunks_mut(size).enumerate().for_each(task);
        }
    }

    #[cfg(test)]
    pub(super) fn same_bits(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.split == other.split && self.lines == other.lines
    }

    pub(super) fn split(&self) -> Split {
        self.split
    }

    pub(super) fn depth(&self) -> Depth {
        Depth::new(self.rows, self.split)
    }

    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(WIDTH)
    }

    /// A panel's block of the inner dimension: its parts, one after the other.
    pub(super) fn block(&self, panel: usize, lines: &Range<usize>) -> &[Line] {
        let (depth, parts) = (self.depth(), self.split.parts());
        let start = panel * depth.panel(self.split) + lines.start * DEPTH * parts;
        &self.lines[start..start + lines.len() * DEPTH * parts]
    }
}

/// Whole panels of B, from panel `first` on, to be packed into `to`.
pub(super) struct Panels<'a, L> {
    pub(super) lanes: L,
    pub(super) b: Matrix<'a>,
    pub(super) split: Split,
    pub(super) first: usize,
    pub(super) to: &'a mut [Line],
}

impl<L: Lanes> Job for Panels<'_, L> {
    #[inline(always)]
    fn run(self) {
        let (depth, parts) = (Depth::new(self.b.shape().0, self.split), self.split.parts());
        let panel = depth.panel(self.split);
        for block in depth.blocks() {
            for line in block.clone() {
                for (i, to) in self.to.chunks_exact_mut(panel).enumerate() {
                    for part in 0..parts {
                        let at = block.start * DEPTH * parts + (part * block.len() + line - block.start) * DEPTH;
                        let to = &mut to[at..at + DEPTH];
                        panel_lines(self.lanes, self.b.t(), (self.first + i) * WIDTH, line * DEPTH, part, to);
                    }
                }
            }
        }
    }
}

/// 16 pairs of a panel: two lines each. `x` is the transpose of B.
#[inline(always)]
fn panel_lines<L: Lanes>(lanes: L, x: Matrix<'_>, column: usize, start: usize, part: usize, to: &mut [Line]) {
    for half in 0..2 {
        let mut square = square(lanes, x, column + half * PAIRS, start, part);
        if x.has_rows() {
            lanes.transpose(&mut square);
        }
        for (pair, line) in square.into_iter().enumerate() {
            to[2 * pair + half] = line;
        }
    }
}

/// Packs rows of A, over one block of the inner dimension, [`ROW_LINES`] apart.
#[inline(always)]
pub(super) fn rows<L: Lanes>(
    lanes: L,
    a: Matrix<'_>,
    rows: Range<usize>,
    block: &Range<usize>,
    parts: usize,
    to: &mut [Line],
) {
    if a.has_rows() {
        for (row, to) in rows.zip(to.chunks_mut(ROW_LINES)) {
            for part in 0..parts {
                for (line, to) in block.clone().zip(&mut to[part * block.len()..]) {
                    *to = along(lanes, a, row, line * DEPTH, part);
                }
            }
        }
        return;
    }
    for line in block.clone() {
        for top in rows.clone().step_by(PAIRS) {
            for part in 0..parts {
                let mut square = square(lanes, a, top, line * DEPTH, part);
                lanes.transpose(&mut square);
                let at = part * block.len() + line - block.start;
                let to = to[(top - rows.start) * ROW_LINES..].chunks_mut(ROW_LINES);
                for (to, line) in to.zip(square).take(rows.end - top) {
                    to[at] = line;
                }
            }
        }
    }
}

/// 16 rows from `top`, 16 pairs from column `start`, zeros beyond the edges. If rows are contiguous, a line is a row;
/// otherwise it is a pair of columns.
#[inline(always)]
fn square<L: Lanes>(lanes: L, x: Matrix<'_>, top: usize, start: usize, part: usize) -> [Line; PAIRS] {
    let mut square = [Line::ZERO; PAIRS];
    for (i, line) in square.iter_mut().enumerate() {
        *line = if x.has_rows() {
            along(lanes, x, top + i, start, part)
        } else {
            let column = |column| shifted(lanes, x.column(column, top..top + PAIRS), part);
            lanes.zipped(column(start + 2 * i), column(start + 2 * i + 1))
        };
    }
    square
}

/// 32 consecutive values of a row.
#[inline(always)]
fn along<L: Lanes>(lanes: L, x: Matrix<'_>, row: usize, start: usize, part: usize) -> Line {
    let middle = start + PAIRS;
    let low = shifted(lanes, x.row(row, start..middle), part);
    lanes.in_order(low, shifted(lanes, x.row(row, middle..middle + PAIRS), part))
}

/// What is left of the values after their first `part` parts.
#[inline(always)]
fn shifted<L: Lanes>(lanes: L, values: &[f32], part: usize) -> L::Vector {
    (0..part).fold(lanes.load(values), |x, _| lanes.rest(x))
}
