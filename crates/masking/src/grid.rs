//! The patch grid of an image.

/// A grid of patches, numbered row-major: `index = row * cols + col`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Patches from top to bottom.
    pub rows: usize,
    /// Patches from left to right.
    pub cols: usize,
}

impl Grid {
    /// A grid of `rows` x `cols` patches.
    #[must_use]
    pub fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols }
    }

    /// How many patches the grid has.
    #[must_use]
    pub fn count(self) -> usize {
        self.rows * self.cols
    }
}
