//! Where tokens are: coordinates of patches and registers.
//!
//! All of it is computed in f64 and cast once. Source: CAPI, coordinates.

use occlude_masking::Grid;

/// (row, column) of every patch, row-major, each axis running from 0 to 1 with both ends included; an axis of one patch
/// is at 0. Independent of resolution and aspect ratio.
#[must_use]
pub fn patch_coords(grid: Grid) -> Vec<[f64; 2]> {
    let along = |index: usize, count: usize| if count > 1 { index as f64 / (count - 1) as f64 } else { 0.0 };
    (0..grid.count()).map(|n| [along(n / grid.cols, grid.rows), along(n % grid.cols, grid.cols)]).collect()
}

/// Coordinates of `count` registers (a multiple of 4) around the unit square, one quarter of them to a side.
#[must_use]
pub fn register_coords(count: usize) -> Vec<[f64; 2]> {
    let side = count / 4;
    let along = |index: usize| index as f64 / side as f64;
    let start = (0..side).map(|i| [along(i), 0.0]);
    let end = (0..side).map(|i| [1.0, along(i)]);
    let back = (0..side).map(|i| [1.0 - along(i), 1.0]);
    let home = (0..side).map(|i| [0.0, 1.0 - along(i)]);
    start.chain(end).chain(back).chain(home).collect()
}

/// Unit-square coordinates moved into the bounding box of `tokens`, axis by axis. Without tokens nothing moves.
#[must_use]
pub fn scale_into_box(unit: &[[f64; 2]], tokens: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let Some(first) = tokens.first() else { return unit.to_vec() };
    let (mut low, mut high) = (*first, *first);
    for token in tokens {
        for axis in 0..2 {
            low[axis] = low[axis].min(token[axis]);
            high[axis] = high[axis].max(token[axis]);
        }
    }
    let scale = |at: &[f64; 2], axis: usize| low[axis] + at[axis] * (high[axis] - low[axis]);
    unit.iter().map(|at| [scale(at, 0), scale(at, 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::{patch_coords, register_coords, scale_into_box};
    use candle_core::{Device, Tensor};
    use occlude_golden::{assert_close, set};
    use occlude_masking::Grid;

    #[test]
    fn an_axis_of_one_patch_is_at_zero() {
        assert_eq!(patch_coords(Grid::new(1, 3)), [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]]);
    }

    #[test]
    fn registers_go_around_the_box() {
        assert_eq!(register_coords(4), [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]);
        assert!(register_coords(0).is_empty());
        let moved = scale_into_box(&register_coords(4), &[[0.2, 0.5], [0.4, 0.5]]);
        assert_eq!(moved, [[0.2, 0.5], [0.4, 0.5], [0.4, 0.5], [0.2, 0.5]]);
    }

    #[test]
    fn golden_capi_coordinates() {
        let Some(reference) = set("capi").tensors("rope") else { return };
        let mut compared = 0;
        for (name, expected) in &reference {
            let got = if let Some(size) = name.strip_prefix("grid").and_then(|rest| rest.strip_suffix(".coords")) {
                let (rows, cols) = size.split_once('x').unwrap();
                patch_coords(Grid::new(rows.parse().unwrap(), cols.parse().unwrap()))
            } else if name.starts_with("registers") && name.ends_with(".edge_coords") {
                register_coords(expected.dim(0).unwrap())
            } else {
                continue;
            };
            let got: Vec<&[f64]> = got.iter().map(<[f64; 2]>::as_slice).collect();
            assert_close(name, &Tensor::new(got, &Device::Cpu).unwrap(), expected, 1e-6);
            compared += 1;
        }
        assert!(compared > 0, "the file holds coordinates");
    }
}
