//! Segments of an image in the order in which they are predicted (RandSAC, segments and serialisation).

mod config;
mod mixture;
mod order;
#[cfg(test)]
mod tests;

pub use config::{SegmenterConfig, SegmentsKind};
pub use mixture::{Gaussian, Point, cell_points, centroids, likeliest, shared_out};
pub use order::{ranks, sees_content, sees_memory, traversal};

use crate::Grid;
use occlude_random::{RngCore, choose};
use std::collections::HashSet;

/// Draws [`Segments`], checked against a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmenter {
    grid: Grid,
    how: How,
    shuffled: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum How {
    Raster,
    Cells,
    Squares { side: usize },
    Blobs { points: Vec<Point>, counts: Vec<usize> },
}

/// Segments of one image, and their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Segment of each cell, row-major; ids without gaps.
    pub cells: Vec<u32>,
    /// Groups above: `levels[0]` has the group of each segment, `levels[1]` the group of each of those, and so on.
    pub levels: Vec<Vec<u32>>,
    /// The segments as they are predicted.
    pub order: Vec<u32>,
}

impl Segments {
    /// Place of each cell's segment in the order, from 0 without gaps.
    #[must_use]
    pub fn ranks(&self) -> Vec<u32> {
        ranks(&self.cells, &self.order)
    }

    /// Whether the members of every group are neighbours in the order, at every level: what a [`traversal`] sees to.
    #[must_use]
    pub fn keeps_groups_together(&self) -> bool {
        let mut nodes = self.order.clone();
        self.levels.iter().all(|groups| {
            nodes = nodes.iter().map(|node| groups[*node as usize]).collect();
            nodes.dedup();
            let mut met = HashSet::new();
            nodes.iter().all(|group| met.insert(*group))
        })
    }

    /// How many segments there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.order.len()
    }
}

impl Segmenter {
    /// The grid whose cells it shares out.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Draws the segments of one image: equal generators give equal segments. Blobs first, level by level, then the shuffle of the
    /// cells, then the order.
    pub fn draw<R: RngCore + ?Sized>(&self, rng: &mut R) -> Segments {
        let (mut cells, count, levels) = match &self.how {
            How::Raster | How::Cells => ((0..self.grid.count() as u32).collect(), self.grid.count(), Vec::new()),
            How::Squares { side } => (squares(self.grid, *side), self.grid.count() / (side * side), Vec::new()),
            How::Blobs { points, counts } => blobs(points, counts, rng),
        };
        if self.shuffled {
            // A uniform permutation of the cells: sizes stay, coherence goes.
            let all = cells.len();
            choose(rng, &mut cells, all);
        }
        let order = match self.how {
            How::Raster => (0..count as u32).collect(),
            _ => traversal(count, &levels, rng),
        };
        Segments { cells, levels, order }
    }
}

/// The square of `side` cells that each cell lies in; squares row by row.
fn squares(grid: Grid, side: usize) -> Vec<u32> {
    let across = grid.cols / side;
    let square = |index: usize| (index / grid.cols / side * across + index % grid.cols / side) as u32;
    (0..grid.count()).map(square).collect()
}

/// Blobs of the cells, and blobs of their centroids above them. -> blob of each cell, how many, groups level by level
fn blobs<R: RngCore + ?Sized>(points: &[Point], counts: &[usize], rng: &mut R) -> (Vec<u32>, usize, Vec<Vec<u32>>) {
    let mut mixture = |count: &usize| -> Vec<Gaussian> { (0..*count).map(|_| Gaussian::draw(rng)).collect() };
    let (first, above) = counts.split_first().map_or((Vec::new(), counts), |(first, above)| (mixture(first), above));
    let (cells, count) = shared_out(&first, points);
    let (mut levels, mut node_of, mut nodes) = (Vec::new(), cells.clone(), count);
    for next in above {
        // A node stands where the cells in it stand on average.
        let (groups, found) = shared_out(&mixture(next), &centroids(&node_of, nodes, points));
        node_of.iter_mut().for_each(|node| *node = groups[*node as usize]);
        levels.push(groups);
        nodes = found;
    }
    (cells, count, levels)
}
