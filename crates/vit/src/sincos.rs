//! The fixed table of sines and cosines: positions that are added to tokens and never trained.

use occlude_kernels::{Error, Result};
use occlude_masking::Grid;

/// Row-major values of a position table: for the patch in row r and column c the sines and cosines of `c * omega`, then
/// those of `r * omega` (the column first), with `omega_j = 10000^(-j / (dim / 4))`. With `class_row` a row of zeros
/// stands before the patches. Computed in f64, then rounded: every value is one of f32.
/// [class row + grid.count(), dim]
///
/// Source: the fixed 2-D encoding of masked autoencoders; RandSAC, tokens and positions; MOCA, encoder and decoder (its
/// public code computes in f32: up to 1e-6 away).
///
/// # Errors
/// A width that is not a positive multiple of 4.
pub fn sincos_table(dim: usize, grid: Grid, class_row: bool) -> Result<Vec<f64>> {
    if dim == 0 || !dim.is_multiple_of(4) {
        return Err(Error::argument("sincos_table", format!("width {dim}: must be a positive multiple of 4")));
    }
    let quarter = dim / 4;
    let omega: Vec<f64> = (0..quarter).map(|j| 10_000_f64.powf(-(j as f64) / quarter as f64)).collect();
    let axis = |at: usize| -> Vec<f64> {
        let angles = omega.iter().map(|omega| at as f64 * omega);
        let rounded = |value: f64| f64::from(value as f32);
        let (sines, cosines): (Vec<f64>, Vec<f64>) =
            angles.map(|angle| (rounded(angle.sin()), rounded(angle.cos()))).unzip();
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
    fn golden_randsac_position_tables() {
        let Some(tables) = set("randsac").tensors("tables") else { return };
        let tables: Vec<_> = tables.iter().filter_map(|(name, t)| Some((name.strip_prefix("sincos.d")?, t))).collect();
        assert!(!tables.is_empty());
        for (name, expected) in tables {
            let (dim, grid) = name.split_once('.').unwrap();
            let (rows, cols) = grid.split_once('x').unwrap();
            let grid = Grid::new(rows.parse().unwrap(), cols.parse().unwrap());
            let table = sincos_table(dim.parse().unwrap(), grid, false).unwrap();
            let expected: Vec<f64> = expected.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(table.len(), expected.len());
            let worst = table.iter().zip(expected).map(|(got, of)| (got - of).abs()).fold(0.0, f64::max);
            assert!(worst <= 6e-8, "{name}: {worst:e}, more than the rounding to f32");
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
