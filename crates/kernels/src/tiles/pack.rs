//! Operands as bf16 in the order in which tiles read them. The bits are the same on every path.

use super::blocks::Hands;
use super::lanes::{BLOCK_LINES, DEPTH, Job, Lanes, Line, PAIRS, WIDTH};
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
        let most = BLOCK_LINES / split.parts();
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
        self.refill_with(tiles, b, Hands::Many)
    }

    /// [`PackedB::refill`] on this thread alone: inside a parallel loop.
    pub(crate) fn refill_here(&mut self, tiles: Tiles, b: Matrix<'_>) -> Result<(), Refused> {
        self.refill_with(tiles, b, Hands::One)
    }

    fn refill_with(&mut self, tiles: Tiles, b: Matrix<'_>, hands: Hands) -> Result<(), Refused> {
        if tiles.split() != self.split {
            return Err(Refused::Packed);
        }
        self.fill(tiles, b, hands);
        Ok(())
    }

    pub(super) fn fill(&mut self, tiles: Tiles, b: Matrix<'_>, hands: Hands) {
        (self.rows, self.columns) = b.shape();
        let panel = self.depth().panel(self.split);
        let used = self.panels() * panel;
        // Never shorter, so that memory that is used again is not cleared again: every line in use is written below.
        if self.lines.len() < used {
            self.lines.resize(used, Line::ZERO);
        }
        let lines = &mut self.lines[..used];
        let task = |(i, lines): (usize, &mut [Line])| tiles.pack_panels(b, i * TASK_PANELS, lines);
        let size = (TASK_PANELS * panel).max(1);
        if hands == Hands::One || self.rows * self.columns < SERIAL_ELEMENTS {
            lines.chunks_mut(size).enumerate().for_each(task);
        } else {
            lines.par_chunks_mut(size).enumerate().for_each(task);
        }
    }

    #[cfg(test)]
    pub(super) fn same_bits(&self, other: &Self) -> bool {
        let used = self.panels() * self.depth().panel(self.split);
        self.shape() == other.shape() && self.split == other.split && self.lines[..used] == other.lines[..used]
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
        match self.split {
            Split::One => self.pack::<1>(),
            Split::Two => self.pack::<2>(),
            Split::Three => self.pack::<3>(),
        }
    }
}

// Closures are not compiled for the instructions of the job around them, so there are none from here on.
impl<L: Lanes> Panels<'_, L> {
    #[inline(always)]
    fn pack<const P: usize>(self) {
        let depth = Depth::new(self.b.shape().0, self.split);
        let panel = depth.panel(self.split);
        if self.b.has_rows() {
            for block in depth.blocks() {
                for line in block.clone() {
                    by_rows::<L, P>(
                        self.lanes,
                        self.b,
                        (self.first, line),
                        self.to,
                        Place::new::<P>(panel, &block, line),
                    );
                }
            }
            return;
        }
        // One panel after the other: its columns lie together in memory.
        for (i, to) in self.to.chunks_exact_mut(panel).enumerate() {
            for block in depth.blocks() {
                for line in block.clone() {
                    by_columns::<L, P>(
                        self.lanes,
                        self.b.t(),
                        (self.first + i, line),
                        to,
                        Place::new::<P>(panel, &block, line),
                    );
                }
            }
        }
    }
}

/// Where 16 pairs of the inner dimension lie in every panel.
#[derive(Clone, Copy)]
struct Place {
    /// Lines from a panel to the next.
    panel: usize,
    /// The first line, within a panel.
    start: usize,
    /// Lines from a part to the next.
    part: usize,
}

impl Place {
    /// In panels of so many lines.
    #[inline(always)]
    fn new<const P: usize>(panel: usize, block: &Range<usize>, line: usize) -> Self {
        Self { panel, start: (block.start * P + line - block.start) * DEPTH, part: block.len() * DEPTH }
    }
}

/// Rows of B are contiguous: two of them are a pair of each column.
#[inline(always)]
fn by_rows<L: Lanes, const P: usize>(
    lanes: L,
    b: Matrix<'_>,
    (panel, line): (usize, usize),
    to: &mut [Line],
    at: Place,
) {
    let columns = panel * WIDTH..panel * WIDTH + to.len() / at.panel * WIDTH;
    for pair in 0..PAIRS {
        let row = line * DEPTH + 2 * pair;
        let (first, second) = (b.row(row, columns.clone()), b.row(row + 1, columns.clone()));
        for (i, to) in to.chunks_exact_mut(at.panel).enumerate() {
            for half in 0..2 {
                let column = i * WIDTH + half * PAIRS;
                let first = parts::<L, P>(lanes, load(lanes, first, column));
                let second = parts::<L, P>(lanes, load(lanes, second, column));
                for part in 0..P {
                    to[at.start + part * at.part + half * PAIRS + pair] = lanes.zipped(first[part], second[part]);
                }
            }
        }
    }
}

/// Columns of B are contiguous: lines of 16 of them are turned, in one panel. `x` is the transpose of B.
#[inline(always)]
fn by_columns<L: Lanes, const P: usize>(
    lanes: L,
    x: Matrix<'_>,
    (panel, line): (usize, usize),
    to: &mut [Line],
    at: Place,
) {
    for half in 0..2 {
        let mut squares = [[Line::ZERO; PAIRS]; P];
        for column in 0..PAIRS {
            let row = panel * WIDTH + half * PAIRS + column;
            let lines = along::<L, P>(lanes, x.row(row, line * DEPTH..(line + 1) * DEPTH), 0);
            for part in 0..P {
                squares[part][column] = lines[part];
            }
        }
        for part in 0..P {
            let first = at.start + part * at.part + half * PAIRS;
            lanes.transpose(&squares[part], &mut to[first..].as_chunks_mut().0[0]);
        }
    }
}

/// Packs rows of A, over one block of the inner dimension, in groups of `G`.
#[inline(always)]
pub(super) fn rows<L: Lanes, const P: usize, const G: usize>(
    lanes: L,
    a: Matrix<'_>,
    rows: Range<usize>,
    block: &Range<usize>,
    to: &mut [Line],
) {
    let count = block.len();
    if a.has_rows() {
        for row in rows.clone() {
            let values = a.row(row, block.start * DEPTH..block.end * DEPTH);
            let (group, place) = ((row - rows.start) / G, (row - rows.start) % G);
            let to = &mut to[group * P * count * G..][..P * count * G];
            for line in 0..count {
                let lines = along::<L, P>(lanes, values, line * DEPTH);
                for part in 0..P {
                    to[(part * count + line) * G + place] = lines[part];
                }
            }
        }
        return;
    }
    for line in 0..count {
        for top in rows.clone().step_by(PAIRS) {
            let mut squares = [[Line::ZERO; PAIRS]; P];
            for pair in 0..PAIRS {
                let column = (block.start + line) * DEPTH + 2 * pair;
                let first = a.column(column, top..top + PAIRS);
                let second = a.column(column + 1, top..top + PAIRS);
                let first = parts::<L, P>(lanes, lanes.load(first));
                let second = parts::<L, P>(lanes, lanes.load(second));
                for part in 0..P {
                    squares[part][pair] = lanes.zipped(first[part], second[part]);
                }
            }
            for part in 0..P {
                let place = part * count + line;
                if G == PAIRS {
                    // A whole group: tiles leave behind what they make of rows beyond the last.
                    let first = ((top - rows.start) / G * P * count + place) * G;
                    lanes.transpose(&squares[part], &mut to[first..].as_chunks_mut().0[0]);
                    continue;
                }
                let mut turned = [Line::ZERO; PAIRS];
                lanes.transpose(&squares[part], &mut turned);
                for row in 0..PAIRS.min(rows.end - top) {
                    let at = top - rows.start + row;
                    to[(at / G * P * count + place) * G + at % G] = turned[row];
                }
            }
        }
    }
}

/// 32 values from `start` on, then zeros: a line for each part.
#[inline(always)]
fn along<L: Lanes, const P: usize>(lanes: L, values: &[f32], start: usize) -> [Line; P] {
    let low = parts::<L, P>(lanes, load(lanes, values, start));
    let high = parts::<L, P>(lanes, load(lanes, values, start + PAIRS));
    let mut lines = [Line::ZERO; P];
    for part in 0..P {
        lines[part] = lanes.in_order(low[part], high[part]);
    }
    lines
}

/// 16 values from `start` on, then zeros.
#[inline(always)]
fn load<L: Lanes>(lanes: L, values: &[f32], start: usize) -> L::Vector {
    lanes.load(&values[start.min(values.len())..])
}

/// What is left of the values after none, one, ... of their parts.
#[inline(always)]
fn parts<L: Lanes, const P: usize>(lanes: L, x: L::Vector) -> [L::Vector; P] {
    let mut parts = [x; P];
    for part in 1..P {
        parts[part] = lanes.rest(parts[part - 1]);
    }
    parts
}
