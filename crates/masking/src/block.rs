//! A block of exactly `n` cells: the deterministic part of the block masks (CAPI's code; draws are handed in).

use crate::Grid;
use occlude_random::{RngCore, below, unit};

/// Range of the logarithm of height / width from which the shape of a block of `cells` cells is drawn: the wanted
/// aspects, cut to what the grid can hold.
#[must_use]
pub fn log_aspect_range(grid: Grid, cells: usize, min_aspect: f64) -> (f64, f64) {
    let (rows, cols, n) = (grid.rows as f64, grid.cols as f64, cells as f64);
    let low = min_aspect.ln().max((n / (cols * cols)).ln());
    // The small constant keeps a block as high as the grid from rounding up to one row more.
    let high = (1.0 / min_aspect).ln().min((rows * rows / (n + 1e-5)).ln());
    (low, high)
}

/// Height and width of a rectangle that holds a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl BlockShape {
    /// The smallest rectangle of this aspect that holds `cells` cells, kept inside the grid.
    ///
    /// The clamp is ours: the public code fails where `cells` is within rounding of the whole grid. A clamped side is made
    /// up for by the other, so that the rectangle always holds `min(cells, grid.count())` cells.
    #[must_use]
    pub fn from_log_aspect(grid: Grid, cells: usize, log_aspect: f64) -> Self {
        let cells = cells.min(grid.count());
        if cells == 0 {
            return Self { height: 0, width: 0 };
        }
        let aspect = log_aspect.exp();
        let side = |square: f64, most: usize| (square.sqrt().ceil() as usize).clamp(1, most);
        let (height, width) = (side(cells as f64 * aspect, grid.rows), side(cells as f64 / aspect, grid.cols));
        let width = width.max(cells.div_ceil(height)).min(grid.cols);
        let height = height.max(cells.div_ceil(width));
        Self { height, width }
    }
}

/// A cyclic shift of the grid. The cell at (r, c) moves to (r + rows, c + cols), modulo the grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    /// Rows downwards.
    pub rows: usize,
    /// Columns to the right.
    pub cols: usize,
}

/// Everything that is random about a block, in the order it is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockDraws {
    /// Logarithm of height / width, within [`log_aspect_range`].
    pub log_aspect: f64,
    /// First row of the rectangle, before the roll.
    pub top: usize,
    /// First column of the rectangle, before the roll.
    pub left: usize,
    /// Cyclic shift; zero without roll.
    pub roll: Roll,
}

impl BlockDraws {
    /// Draws a block: aspect, row, column, then the roll where asked for.
    pub fn draw<R: RngCore + ?Sized>(grid: Grid, cells: usize, min_aspect: f64, roll: bool, rng: &mut R) -> Self {
        if grid.count() == 0 || cells == 0 {
            return Self { log_aspect: 0.0, top: 0, left: 0, roll: Roll::default() };
        }
        let (low, high) = log_aspect_range(grid, cells, min_aspect);
        let log_aspect = low + (high - low) * unit(rng);
        let shape = BlockShape::from_log_aspect(grid, cells, log_aspect);
        let top = below(rng, grid.rows - shape.height + 1);
        let left = below(rng, grid.cols - shape.width + 1);
        let roll =
            if roll { Roll { rows: below(rng, grid.rows), cols: below(rng, grid.cols) } } else { Roll::default() };
        Self { log_aspect, top, left, roll }
    }

    /// The block these draws mean, as one flag a cell (row-major, `true` = in the block). Exactly
    /// `min(cells, grid.count())` flags are set: the rectangle loses its last cells in row-major order.
    #[must_use]
    pub fn block(&self, grid: Grid, cells: usize) -> Vec<bool> {
        let mut flags = vec![false; grid.count()];
        let shape = BlockShape::from_log_aspect(grid, cells, self.log_aspect);
        for cell in 0..cells.min(shape.height * shape.width) {
            let row = (self.top + cell / shape.width + self.roll.rows) % grid.rows;
            let col = (self.left + cell % shape.width + self.roll.cols) % grid.cols;
            flags[row * grid.cols + col] = true;
        }
        flags
    }
}
