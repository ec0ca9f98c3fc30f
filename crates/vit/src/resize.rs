//! Tables of positions for another grid than the one they were made for.

use candle_core::Tensor;
use occlude_kernels::Result;
use occlude_masking::Grid;

/// The vectors of the patches of `to`, bicubically interpolated between those of `from`; the table itself where the grids
/// agree.  [from.count(), dim] -> [to.count(), dim]
pub(crate) fn resized(table: &Tensor, from: Grid, to: Grid) -> Result<Tensor> {
    if from == to {
        return Ok(table.clone());
    }
    // Bicubic resizing is linear, so one fixed matrix does it, with the right gradient.
    let matrix = Tensor::from_vec(resize_matrix(from, to), (to.count(), from.count()), table.device())?;
    Ok(matrix.to_dtype(table.dtype())?.matmul(table)?)
}

/// Row-major [to.count(), from.count()]: the product of one bicubic resizing per axis.
fn resize_matrix(from: Grid, to: Grid) -> Vec<f64> {
    let (rows, cols) = (axis_weights(from.rows, to.rows), axis_weights(from.cols, to.cols));
    let mut matrix = Vec::with_capacity(to.count() * from.count());
    for row in &rows {
        for col in &cols {
            for vertical in row {
                matrix.extend(col.iter().map(|horizontal| vertical * horizontal));
            }
        }
    }
    matrix
}

/// Weights [to][from] of bicubic resizing (a = -0.75, half-pixel centres, border repeated, no antialiasing: the usual
/// resizing of position tables).
fn axis_weights(from: usize, to: usize) -> Vec<Vec<f64>> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|index| {
            let centre = (index as f64 + 0.5) * scale - 0.5;
            let base = centre.floor();
            let mut weights = vec![0.0; from];
            for tap in -1..=2 {
                let at = (base as i64 + tap).clamp(0, from as i64 - 1) as usize;
                weights[at] += cubic(centre - base - tap as f64);
            }
            weights
        })
        .collect()
}

fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.75;
    let x = distance.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::{axis_weights, resize_matrix};
    use occlude_masking::Grid;

    #[test]
    fn weights_sum_to_one_and_equal_sizes_change_nothing() {
        for (from, to) in [(4, 4), (4, 7), (7, 4), (1, 5)] {
            for weights in axis_weights(from, to) {
                assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
        let same = resize_matrix(Grid::new(2, 3), Grid::new(2, 3));
        assert!(same.iter().enumerate().all(|(i, w)| *w == f64::from(u8::from(i / 6 == i % 6))));
    }

    #[test]
    fn weights_are_the_usual_cubic_ones() {
        // Output 3 of 4 -> 8 lies a quarter beyond input 1.
        let expected = [-0.105_468_75, 0.878_906_25, 0.261_718_75, -0.035_156_25];
        assert_eq!(axis_weights(4, 8)[3], expected);
    }
}
