//! The fixed table of sines and cosines: positions that are added to tokens and never trained.

use occlude_kernels::{Error, Result};
use occlude_masking::Grid;

/// Row-major values of a position table: for the patch in row r and column c the sines and cosines of `c * omega`, then
/// those of `r * omega` (the column first), with `omega_j = 10000^(-j / (dim / 4))`. With `class_row` a row of zeros
/// stands before the patches. All of it is computed in f32, so that every value is one of f32.
/// [class row + grid.count(), dim]
///
/// Source: MOCA, encoder and decoder of the public code (the fixed 2-D encoding of masked autoencoders).
///
/// # Errors
/// A width that is not a positive multiple of 4.
pub fn sincos_table(dim: usize, grid: Grid, class_row: bool) -> Result<Vec<f64>> {
    if dim == 0 || !dim.is_multiple_of(4) {
        return Err(Error::argument("sincos_table", format!("width {dim}: must be a positive multiple of 4")));
    }
    let quarter = dim / 4;
    let omega: Vec<f32> = (0..quarter).map(|j| 1.0 / 10_000_f32.powf(j as f32 / quarter as f32)).collect();
    let axis = |at: usize| -> Vec<f64> {
        let angles = omega.iter().map(|omega| at as f32 * omega);
        let (sines, cosines): (Vec<f64>, Vec<f64>) =
            angles.map(|angle| (f64::from(angle.sin()), f64::from(angle.cos()))).unzip();
        [sines, cosines].concat()
    };
    let (rows, cols): (Vec<_>, Vec<_>) = ((0..grid.rows).map(axis).collect(), (0..grid.cols).map(axis).collect());
    let mut table = vec![0.0; if class_row { dim } else { 0 }];
    for row in &rows {
        for col in &cols {
            table.extend(col);
            table.extend(row);
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::sincos_table;
    use candle_core::{DType, Device, Tensor};
    use occlude_golden::set;
    use occlude_masking::Grid;

    #[test]
    fn golden_moca_position_tables() {
        let Some(tables) = set("moca").tensors("sincos") else { return };
        assert!(!tables.is_empty());
        for (name, expected) in tables {
            let (rows, dim) = expected.dims2().unwrap();
            let side = (rows - 1).isqrt();
            let table = sincos_table(dim, Grid::new(side, side), true).unwrap();
            let got = Tensor::from_vec(table, (rows, dim), &Device::Cpu).unwrap();
            let apart = (got - expected.to_dtype(DType::F64).unwrap()).unwrap().abs().unwrap().flatten_all().unwrap();
            let worst = apart.to_vec1::<f64>().unwrap().into_iter().fold(0.0_f64, |worst, apart| {
                assert!(apart.is_finite());
                worst.max(apart)
            });
            assert!(worst <= 1e-5, "{name}: {worst:e}");
        }
    }

    #[test]
    fn the_column_comes_first_and_grids_need_not_be_square() {
        let table = sincos_table(8, Grid::new(2, 3), false).unwrap();
        assert_eq!(table.len(), 6 * 8);
        let patch = &table[5 * 8..]; // row 1, column 2; omega is 1 and 0.01
        let expected = [2.0_f64.sin(), 0.02_f64.sin(), 2.0_f64.cos(), 0.02_f64.cos()];
        let expected = expected.into_iter().chain([1.0_f64.sin(), 0.01_f64.sin(), 1.0_f64.cos(), 0.01_f64.cos()]);
        assert!(patch.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6), "{patch:?}");
        assert_eq!(sincos_table(8, Grid::new(2, 3), true).unwrap()[..8], [0.0; 8]);
    }

    #[test]
    fn widths_that_do_not_divide_are_refused() {
        for dim in [0, 6] {
            let message = sincos_table(dim, Grid::new(2, 2), true).unwrap_err().to_string();
            assert!(message.starts_with(&format!("sincos_table: width {dim}")), "{message}");
        }
    }
}
