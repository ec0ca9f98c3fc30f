//! One mask: which patches of a grid are hidden.

use crate::Grid;

/// The hidden and the visible patches of one image. Both lists are ascending, disjoint, and cover the grid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mask {
    grid: Grid,
    visible: Vec<u32>,
    hidden: Vec<u32>,
}

impl Mask {
    /// The mask that hides the patches for which `hidden(index)` is true.
    pub fn from_fn(grid: Grid, hidden: impl Fn(usize) -> bool) -> Self {
        let (hidden, visible) = (0..grid.count() as u32).partition(|index| hidden(*index as usize));
        Self { grid, visible, hidden }
    }

    /// The grid.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Patches the student sees, ascending.
    #[must_use]
    pub fn visible(&self) -> &[u32] {
        &self.visible
    }

    /// Patches hidden from the student, ascending.
    #[must_use]
    pub fn hidden(&self) -> &[u32] {
        &self.hidden
    }

    /// One flag a patch, row-major; `true` means hidden.
    #[must_use]
    pub fn flags(&self) -> Vec<bool> {
        let mut flags = vec![false; self.grid.count()];
        for index in &self.hidden {
            flags[*index as usize] = true;
        }
        flags
    }
}
