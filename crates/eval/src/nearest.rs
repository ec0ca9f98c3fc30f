//! The nearest rows by cosine similarity: what k-NN votes with and what a report lists.

use crate::features::FeatureSet;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use occlude_kernels::linear;
use rayon::prelude::*;

/// One neighbour of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Row of the bank.
    pub row: usize,
    /// Cosine of the angle between the two rows.
    pub similarity: f32,
}

/// The `k` rows of `bank` most like each row of `queries`, best first, equal ones by row. With `skip_same` a row of the
/// same image (the same index in the data set: bank and queries come from one set) is passed over.
///
/// # Errors
/// Rows of different length, a feature that is not finite, or a bank with too few rows.
pub fn neighbours(bank: &FeatureSet, queries: &FeatureSet, k: usize, skip_same: bool) -> Result<Vec<Vec<Neighbour>>> {
    let needed = k + usize::from(skip_same);
    if bank.len() < needed || k == 0 {
        return Err(Error::TooFew { what: "neighbours", got: bank.len(), needed: needed.max(1) });
    }
    let (keys, values) = (Unit::new(bank, "bank")?, Unit::new(queries, "queries")?);
    let mut found = keys.nearest(&values, needed)?;
    if skip_same {
        for (row, list) in found.iter_mut().enumerate() {
            list.retain(|neighbour| bank.indices[neighbour.row] != queries.indices[row]);
            list.truncate(k);
        }
    }
    Ok(found)
}

/// Queries in one matrix product: large enough to fill it, small enough that the similarities stay in memory.
const BLOCK: usize = 256;

/// Rows of unit length.
pub(crate) struct Unit {
    rows: Vec<f32>,
    dim: usize,
}

impl Unit {
    /// The rows of `set`, scaled to length 1. A row of zeros stays as it is: it is like nothing.
    pub(crate) fn new(set: &FeatureSet, what: &'static str) -> Result<Self> {
        set.require_finite(what)?;
        let mut rows = set.features.clone();
        rows.par_chunks_exact_mut(set.dim).for_each(|row| {
            let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(1e-12) as f32;
            row.iter_mut().for_each(|value| *value /= norm);
        });
        Ok(Self { rows, dim: set.dim })
    }

    /// For each query the `k` nearest of these rows.
    pub(crate) fn nearest(&self, queries: &Self, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        if queries.dim != self.dim {
            let (bank, query) = (self.dim, queries.dim);
            return Err(Error::Mismatch(format!("rows of {bank} numbers in the bank and {query} in the queries")));
        }
        let count = self.rows.len() / self.dim;
        let bank = Tensor::from_slice(&self.rows, (count, self.dim), &Device::Cpu)?; // [rows, dim]
        let mut found = Vec::with_capacity(queries.rows.len() / self.dim);
        for block in queries.rows.chunks(BLOCK * self.dim) {
            let block = Tensor::from_slice(block, (block.len() / self.dim, self.dim), &Device::Cpu)?; // [block, dim]
            let similarities = linear(&block, &bank, None)?.flatten_all()?.to_vec1::<f32>()?; // [block * rows]
            found.par_extend(similarities.par_chunks_exact(count).map(|row| largest(row, k)));
        }
        Ok(found)
    }
}

/// The `k` largest values, best first, equal ones by place.
fn largest(values: &[f32], k: usize) -> Vec<Neighbour> {
    let mut best: Vec<Neighbour> = Vec::with_capacity(k + 1);
    for (row, &similarity) in values.iter().enumerate() {
        // Strictly better than the last: of equal ones the first stays.
        if best.len() == k && best.last().is_some_and(|last| similarity <= last.similarity) {
            continue;
        }
        let place = best.partition_point(|held| held.similarity >= similarity);
        best.insert(place, Neighbour { row, similarity });
        best.truncate(k);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::{largest, neighbours};
    use crate::{Error, FeatureSet};

    fn set(features: Vec<f32>) -> FeatureSet {
        let rows = features.len() / 2;
        FeatureSet::new(features, 2, vec![None; rows]).unwrap()
    }

    #[test]
    fn the_largest_come_first_and_ties_keep_their_order() {
        let rows = |values: &[f32], k| largest(values, k).iter().map(|n| n.row).collect::<Vec<_>>();
        assert_eq!(rows(&[0.1, 0.9, 0.5, 0.9, 0.7], 3), [1, 3, 4]);
        assert_eq!(rows(&[0.5; 6], 4), [0, 1, 2, 3]);
    }

    #[test]
    fn the_same_image_is_passed_over() {
        let bank = set(vec![1.0, 0.0, 1.0, 0.1, 0.0, 1.0]);
        let found = neighbours(&bank, &bank, 1, true).unwrap();
        assert_eq!(found.iter().map(|list| list[0].row).collect::<Vec<_>>(), [1, 0, 1]);
        assert_eq!(neighbours(&bank, &bank, 1, false).unwrap()[2][0].row, 2);
    }

    #[test]
    fn length_does_not_matter_and_zero_rows_are_like_nothing() {
        let bank = set(vec![0.0, 0.0, 5.0, 5.0, 100.0, 0.0]);
        let found = &neighbours(&bank, &set(vec![0.1, 0.09]), 3, false).unwrap()[0];
        assert_eq!(found.iter().map(|n| n.row).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(found[2].similarity, 0.0);
    }

    #[test]
    fn what_cannot_be_searched_is_refused() {
        let bank = set(vec![1.0, 0.0, 0.0, 1.0]);
        let few = neighbours(&bank, &bank, 2, true).unwrap_err();
        assert!(matches!(few, Error::TooFew { got: 2, needed: 3, .. }));
        let other = FeatureSet::new(vec![1.0; 3], 3, vec![None]).unwrap();
        assert!(matches!(neighbours(&bank, &other, 1, false), Err(Error::Mismatch(_))));
        let broken = set(vec![1.0, 0.0, f32::NAN, 1.0]);
        assert!(matches!(neighbours(&bank, &broken, 1, false), Err(Error::NotFinite { row: 1, .. })));
    }
}
