//! Learned positions: one vector for each patch of the training grid, interpolated for other grids.

use crate::resize::resized;
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
        resized(&self.table, self.grid, grid)
    }

    /// The same table on the same storage, recording no graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { table: self.table.detach(), grid: self.grid }
    }
}

#[cfg(test)]
mod tests {
    use super::LearnedPositions;
    use candle_core::{DType, Device};
    use occlude_kernels::{ParamStore, backward};
    use occlude_masking::Grid;
    use occlude_random::Streams;

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
