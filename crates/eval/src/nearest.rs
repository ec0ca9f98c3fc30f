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
    if bank.len() < needed.max(1) {
        return Err(Error::TooFewRows { what: "neighbours", got: bank.len(), needed: needed.max(1) });
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

/// Queries in one matrix product, and rows of the bank: large enough to fill it, small enough that the similarities stay
/// in memory.
const BLOCK: (usize, usize) = (256, 1 << 16);

/// Rows of unit length.
pub(crate) struct Unit {
    rows: Vec<f32>,
    dim: usize,
}

impl Unit {
    /// The rows of `set`, scaled to length 1. A row of zeros stays as it is: it is like nothing.
    pub(crate) fn new(set: &FeatureSet, what: &'static str) -> Result<Self> {
        set.check(what)?;
        let mut rows = set.features.clone();
        to_unit_length(&mut rows, set.dim);
        Ok(Self { rows, dim: set.dim })
    }

    /// For each query the `k` nearest of these rows.
    pub(crate) fn nearest(&self, queries: &Self, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        if queries.dim != self.dim {
            let (bank, query) = (self.dim, queries.dim);
            return Err(Error::Mismatch(format!("rows of {bank} numbers in the bank and {query} in the queries")));
        }
        nearest(&self.rows, None, &queries.rows, self.dim, k)
    }
}

/// Divides each row of `dim` numbers by its length.
pub(crate) fn to_unit_length(rows: &mut [f32], dim: usize) {
    rows.par_chunks_exact_mut(dim).for_each(|row| {
        let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(1e-12) as f32;
        row.iter_mut().for_each(|value| *value /= norm);
    });
}

/// For each query the `k` rows of `bank` with the largest product plus `shift` (one number a row of the bank), best
/// first, equal ones by row.  bank: [rows, dim], queries: [queries, dim]
pub(crate) fn nearest(
    bank: &[f32],
    shift: Option<&[f32]>,
    queries: &[f32],
    dim: usize,
    k: usize,
) -> Result<Vec<Vec<Neighbour>>> {
    let (query_block, bank_block) = BLOCK;
    let mut found = vec![Vec::with_capacity(k + 1); queries.len() / dim];
    for (part, keys) in bank.chunks(bank_block * dim).enumerate() {
        let (first, count) = (part * bank_block, keys.len() / dim);
        let keys = Tensor::from_slice(keys, (count, dim), &Device::Cpu)?; // [count, dim]
        let shift = shift.map(|shift| Tensor::from_slice(&shift[first..first + count], count, &Device::Cpu));
        let shift = shift.transpose()?; // [count]
        for (lists, block) in found.chunks_mut(query_block).zip(queries.chunks(query_block * dim)) {
            let block = Tensor::from_slice(block, (block.len() / dim, dim), &Device::Cpu)?; // [block, dim]
            let scores = linear(&block, &keys, shift.as_ref())?.flatten_all()?.to_vec1::<f32>()?; // [block * count]
            lists
                .par_iter_mut()
                .zip(scores.par_chunks_exact(count))
                .for_each(|(list, scores)| keep_largest(list, scores, first, k));
        }
    }
    Ok(found)
}

/// Adds `values`, of the rows from `first` on, to the `k` largest held: best first, equal ones by row.
fn keep_largest(held: &mut Vec<Neighbour>, values: &[f32], first: usize, k: usize) {
    for (row, &similarity) in values.iter().enumerate() {
        // Strictly better than the last: of equal ones the first stays.
        if held.len() == k && held.last().is_some_and(|last| similarity <= last.similarity) {
            continue;
        }
        let place = held.partition_point(|better| better.similarity >= similarity);
        held.insert(place, Neighbour { row: first + row, similarity });
        held.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, keep_largest, nearest, neighbours};
    use crate::{Error, FeatureSet};

    fn set(features: Vec<f32>) -> FeatureSet {
        let rows = features.len() / 2;
        FeatureSet::new(features, 2, vec![None; rows]).unwrap()
    }

    #[test]
    fn the_largest_come_first_and_ties_keep_their_order() {
        let rows = |values: &[f32], k| {
            let mut held = Vec::new();
            keep_largest(&mut held, values, 0, k);
            held.iter().map(|n| n.row).collect::<Vec<_>>()
        };
        assert_eq!(rows(&[0.1, 0.9, 0.5, 0.9, 0.7], 3), [1, 3, 4]);
        assert_eq!(rows(&[0.5; 6], 4), [0, 1, 2, 3]);
    }

    #[test]
    fn a_bank_of_several_blocks_is_searched_as_one() {
        let mut bank = vec![0.0; BLOCK.1 + 10];
        for (row, value) in [(3, 2.0), (BLOCK.1 - 1, 5.0), (BLOCK.1, 5.0), (BLOCK.1 + 9, 3.0)] {
            bank[row] = value;
        }
        let found = nearest(&bank, None, &[1.0], 1, 4).unwrap();
        let rows: Vec<usize> = found[0].iter().map(|n| n.row).collect();
        assert_eq!(rows, [BLOCK.1 - 1, BLOCK.1, BLOCK.1 + 9, 3]);
        let mut shift = vec![0.0; bank.len()];
        shift[BLOCK.1 + 4] = 9.0;
        assert_eq!(nearest(&bank, Some(&shift), &[1.0], 1, 1).unwrap()[0][0].row, BLOCK.1 + 4);
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
        assert!(matches!(few, Error::TooFewRows { got: 2, needed: 3, .. }));
        let other = FeatureSet::new(vec![1.0; 3], 3, vec![None]).unwrap();
        assert!(matches!(neighbours(&bank, &other, 1, false), Err(Error::Mismatch(_))));
        let broken = set(vec![1.0, 0.0, f32::NAN, 1.0]);
        assert!(matches!(neighbours(&bank, &broken, 1, false), Err(Error::NotFinite { row: 1, .. })));
    }
}
