//! Blobs: cells shared out among random Gaussians, and the grouping of blobs by the same rule.

use crate::Grid;
use occlude_random::{RngCore, unit};

/// A point of the grid's plane, (x, y): x from left to right, y from top to bottom, both from -2 to 2.
pub type Point = [f64; 2];

/// A Gaussian with its axes along those of the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gaussian {
    /// Its middle.
    pub mean: Point,
    /// Standard deviations along x and y.
    pub deviation: [f64; 2],
}

impl Gaussian {
    /// Draws the middle uniformly within 1.75 of the origin along either axis, the deviations between 0.5 and 1: first x and y
    /// of the middle, then those of the deviation.
    pub fn draw<R: RngCore + ?Sized>(rng: &mut R) -> Self {
        let mut between = |low: f64, high: f64| low + (high - low) * unit(rng);
        let mean = [between(-1.75, 1.75), between(-1.75, 1.75)];
        let deviation = [between(0.5, 1.0), between(0.5, 1.0)];
        Self { mean, deviation }
    }

    /// The logarithm of its density, less a constant that all share.
    fn log_density(&self, point: Point) -> f64 {
        let axis = |axis: usize| {
            let z = (point[axis] - self.mean[axis]) / self.deviation[axis];
            -0.5 * z * z - self.deviation[axis].ln()
        };
        axis(0) + axis(1)
    }
}

/// The Gaussian that is likeliest at each point, by its place in the mixture; the first of several. Source: RandSAC, blobs.
#[must_use]
pub fn likeliest(mixture: &[Gaussian], points: &[Point]) -> Vec<u32> {
    let best = |point: &Point| {
        let (mut best, mut density) = (0, f64::NEG_INFINITY);
        for (index, gaussian) in mixture.iter().enumerate() {
            let here = gaussian.log_density(*point);
            if here > density {
                (best, density) = (index, here);
            }
        }
        best as u32
    };
    points.iter().map(best).collect()
}

/// Where each cell of the grid lies, row-major: corners are (±2, ±2); an axis of a single cell is 0.
#[must_use]
pub fn cell_points(grid: Grid) -> Vec<Point> {
    let along = |at: usize, count: usize| if count > 1 { -2.0 + 4.0 * at as f64 / (count - 1) as f64 } else { 0.0 };
    let cell = |index: usize| [along(index % grid.cols, grid.cols), along(index / grid.cols, grid.rows)];
    (0..grid.count()).map(cell).collect()
}

/// Renumbers ids without gaps, in their order. -> ids, how many there are
pub(super) fn compacted(mut ids: Vec<u32>) -> (Vec<u32>, usize) {
    let mut used: Vec<u32> = ids.clone();
    used.sort_unstable();
    used.dedup();
    for id in &mut ids {
        // Every id is among them.
        *id = used.binary_search(id).unwrap_or_default() as u32;
    }
    let count = used.len();
    (ids, count)
}

/// Shares points out among `mixture`; what wins no point is left out, ids have no gaps. -> ids, how many there are
#[must_use]
pub fn shared_out(mixture: &[Gaussian], points: &[Point]) -> (Vec<u32>, usize) {
    compacted(likeliest(mixture, points))
}

/// Mean point of each of `count` groups of cells.
#[must_use]
pub fn centroids(ids: &[u32], count: usize, points: &[Point]) -> Vec<Point> {
    let mut sums = vec![([0.0, 0.0], 0_usize); count];
    for (id, point) in ids.iter().zip(points) {
        let ([x, y], cells) = &mut sums[*id as usize];
        *x += point[0];
        *y += point[1];
        *cells += 1;
    }
    sums.into_iter().map(|([x, y], cells)| [x / cells as f64, y / cells as f64]).collect()
}
