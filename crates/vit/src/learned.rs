//! Learned positions: one vector for each patch of the training grid, interpolated for other grids.

use candle_core::Tensor;
use occlude_kernels::{Factors, Init, Result, Scope, gather_rows};
use occlude_masking::Grid;

/// A table of positions, full learning rate and weight decay (CAPI's ablation; the details are ours).
#[derive(Clone, Debug)]
pub struct LearnedPositions {
    table: Tensor, // [patches, dim]
    grid: Grid,
}

impl LearnedPositions {
    /// A table named `name` for `grid`, truncated normal with standard deviation 0.02.
    ///
    /// # Errors
    /// The name exists already.
    pub fn new(scope: &mut Scope<'_>, name: &str, grid: Grid, dim: usize) -> Result<Self> {
        let init = Init::TruncatedNormal { std: 0.02, bound: 2.0 };
        Ok(Self { table: scope.trained(name, &[grid.count(), dim], &init, Factors::ONE)?, grid })
    }

    /// The vectors of the patches `list` (flat indices over a batch) of `grid`.  [list.len(), dim]
    ///
    /// # Errors
    /// A failing product.
    pub fn at(&self, grid: Grid, list: &[u32]) -> Result<Tensor> {
        let count = grid.count() as u32;
        let places: Vec<u32> = list.iter().map(|index| index % count).collect();
        gather_rows(&self.on(grid)?, &places)
    }

    /// The vectors of all patches of `grid`, row-major.  [patches, dim]
    fn on(&self, grid: Grid) -> Result<Tensor> {
        if grid == self.grid {
            return Ok(self.table.clone());
        }
        // Bicubic resizing is linear, so one fixed matrix does it, with the right gradient.
        let matrix = resize_matrix(self.grid, grid);
        let matrix = Tensor::from_vec(matrix, (grid.count(), self.grid.count()), self.table.device())?;
        Ok(matrix.to_dtype(self.table.dtype())?.matmul(&self.table)?)
    }

    /// The same table on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { table: self.table.detach(), grid: self.grid }
    }
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
    use super::{LearnedPositions, axis_weights, resize_matrix};
    use candle_core::{DType, Device};
    use occlude_kernels::{ParamStore, backward};
    use occlude_masking::Grid;
    use occlude_random::Streams;

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

    #[test]
    fn the_gradient_passes_the_resizing() {
        let mut store = ParamStore::trainable(Streams::new(1), DType::F64, &Device::Cpu);
        let learned = LearnedPositions::new(&mut store.root(), "positions", Grid::new(2, 2), 3).unwrap();
        let out = learned.at(Grid::new(3, 3), &[0, 4, 8, 9]).unwrap();
        assert_eq!(out.dims(), [4, 3]);
        let gradients = backward(&out.sum_all().unwrap()).unwrap();
        let total: f64 = gradients.get(&learned.table).unwrap().sum_all().unwrap().to_scalar().unwrap();
        assert!((total - 12.0).abs() < 1e-9, "weights of each of 4 x 3 outputs sum to one: {total}");
    }
}
