//! Pixel labels from the nearest training patches.

use super::{PatchSet, most_frequent, rows};
use crate::nearest::{Neighbour, nearest, to_unit_length};
use crate::{Error, Result};
use rayon::prelude::*;

/// What near means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// One less the cosine of the angle.
    Cosine,
    /// The length of the difference.
    Euclidean,
}

/// For each row of `features` and each place of a pixel in a patch, the most frequent label at that place among the `k`
/// nearest patches of `train`; the smallest of equal ones. The reference tries k = 1, 3, 10, 30 with both distances.
/// features: [patches, dim] -> [patches, pixels]
///
/// # Errors
/// Rows of another length, a feature that is not finite, no neighbour asked for, or fewer training patches than that.
pub fn patch_knn(train: &PatchSet, features: &[f32], k: usize, distance: Distance) -> Result<Vec<u8>> {
    rows("patch k-NN", features, train.dim)?;
    if k == 0 || train.len() < k {
        return Err(Error::TooFewRows { what: "patch k-NN", got: train.len(), needed: k.max(1) });
    }
    let found = match distance {
        Distance::Cosine => {
            let (mut bank, mut queries) = (train.features.clone(), features.to_vec());
            to_unit_length(&mut bank, train.dim);
            to_unit_length(&mut queries, train.dim);
            nearest(&bank, None, &queries, train.dim, k)?
        }
        // |x - y|^2 = |x|^2 - 2 (x y - |y|^2 / 2), and |x| is the same for all y.
        Distance::Euclidean => {
            let squares = train.features.chunks_exact(train.dim);
            let squares = squares.map(|row| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>());
            let shift: Vec<f32> = squares.map(|square| (-square / 2.0) as f32).collect();
            nearest(&train.features, Some(&shift), features, train.dim, k)?
        }
    };
    let vote = |voters: &Vec<Neighbour>| -> Vec<u8> {
        let label = |pixel: usize| voters.iter().map(move |voter| train.labels[voter.row * train.pixels + pixel]);
        (0..train.pixels).map(|pixel| most_frequent(label(pixel))).collect()
    };
    Ok(found.par_iter().flat_map_iter(vote).collect())
}
