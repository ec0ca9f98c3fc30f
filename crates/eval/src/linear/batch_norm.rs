//! Batch normalisation without parameters (MAE, linear probing).

use rayon::prelude::*;

const EPS: f64 = 1e-6;
/// Share of a batch in the running statistics.
const MOMENTUM: f64 = 0.1;
/// Rows that are summed in one piece, so that a sum does not depend on the number of threads.
const PIECE: usize = 1024;

/// Brings every feature to mean 0 and variance 1: over the batch in training, by running statistics afterwards. These
/// start at mean 0 and variance 1 and take up a tenth of every batch.
#[derive(Clone, Debug)]
pub(crate) struct BatchNorm {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl BatchNorm {
    /// For rows of `dim` features.
    #[must_use]
    pub(crate) fn new(dim: usize) -> Self {
        Self { mean: vec![0.0; dim], variance: vec![1.0; dim] }
    }

    /// Normalises a batch of two or more rows by its own mean and biased variance; the running variance takes up the
    /// unbiased one, as PyTorch's does.  features: [rows, dim]
    pub(crate) fn train(&mut self, features: &mut [f32]) {
        let rows = (features.len() / self.mean.len()) as f64;
        let mean = averages(features, self.mean.len(), |_, value| value);
        let variance = averages(features, self.mean.len(), |feature, value| (value - mean[feature]).powi(2));
        normalise(features, &mean, &variance);
        let blend = |running: &mut f64, batch: f64| *running += MOMENTUM * (batch - *running);
        self.mean.iter_mut().zip(&mean).for_each(|(running, batch)| blend(running, *batch));
        let unbiased = rows / (rows - 1.0).max(1.0);
        self.variance.iter_mut().zip(&variance).for_each(|(running, batch)| blend(running, batch * unbiased));
    }

    /// Normalises by the running statistics.  features: [rows, dim]
    pub(crate) fn apply(&self, features: &mut [f32]) {
        normalise(features, &self.mean, &self.variance);
    }
}

/// The average over all rows of what `of` makes of each feature (its number, its value).
/// features: [rows, dim]  ->  [dim]
fn averages(features: &[f32], dim: usize, of: impl Fn(usize, f64) -> f64 + Sync) -> Vec<f64> {
    let piece = |rows: &[f32]| {
        let mut sums = vec![0.0; dim];
        for row in rows.chunks_exact(dim) {
            for (feature, (sum, value)) in sums.iter_mut().zip(row).enumerate() {
                *sum += of(feature, f64::from(*value));
            }
        }
        sums
    };
    let pieces: Vec<Vec<f64>> = features.par_chunks(PIECE * dim).map(piece).collect();
    let rows = (features.len() / dim) as f64;
    (0..dim).map(|feature| pieces.iter().map(|sums| sums[feature]).sum::<f64>() / rows).collect()
}

fn normalise(features: &mut [f32], mean: &[f64], variance: &[f64]) {
    let scales: Vec<f64> = variance.iter().map(|variance| 1.0 / (variance + EPS).sqrt()).collect();
    features.par_chunks_exact_mut(mean.len()).for_each(|row| {
        for ((value, mean), scale) in row.iter_mut().zip(mean).zip(&scales) {
            *value = ((f64::from(*value) - mean) * scale) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::{BatchNorm, PIECE};

    fn assert_near(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-6, "{got} against {expected}");
        }
    }

    #[test]
    fn a_batch_and_the_running_statistics_are_those_of_a_hand_computation() {
        let mut norm = BatchNorm::new(2);
        // The first feature: mean 3, squares 4 + 1 + 9 = 14. The second is constant.
        let mut batch = [1.0, 5.0, 2.0, 5.0, 6.0, 5.0];
        norm.train(&mut batch);
        let scale = 1.0 / (14.0_f64 / 3.0 + 1e-6).sqrt();
        assert_near(&batch, &[-2.0 * scale, 0.0, -scale, 0.0, 3.0 * scale, 0.0]);

        // A second batch: mean 2 and squares 2; mean 0 and squares 8.
        let mut batch = [1.0, 2.0, 3.0, -2.0];
        norm.train(&mut batch);
        let (first, second) = (1.0 / (1.0_f64 + 1e-6).sqrt(), 2.0 / (4.0_f64 + 1e-6).sqrt());
        assert_near(&batch, &[-first, second, first, -second]);

        // Means 0.3 and 0.5, then 0.27 + 0.2 and 0.45. Unbiased variances 7 and 0: 0.9 + 0.7 and 0.9; then 2 and 8:
        // 1.44 + 0.2 and 0.81 + 0.8.
        let mut rows = [0.47, 0.45, 2.0, 1.0];
        norm.apply(&mut rows);
        assert_near(&rows, &[0.0, 0.0, 1.53 / (1.64_f64 + 1e-6).sqrt(), 0.55 / (1.61_f64 + 1e-6).sqrt()]);
    }

    #[test]
    fn a_small_variance_is_damped_by_a_millionth() {
        let mut batch = [1e-3, -1e-3];
        BatchNorm::new(1).train(&mut batch);
        let half = 0.5_f64.sqrt();
        assert_near(&batch, &[half, -half]);
    }

    #[test]
    fn a_batch_of_several_pieces_is_one_batch() {
        let rows = 2 * PIECE + 7;
        let mut batch: Vec<f32> = (0..rows * 3).map(|i| (i * 31 % 97) as f32 + 40.0).collect();
        BatchNorm::new(3).train(&mut batch);
        for feature in 0..3 {
            let values = || batch.iter().skip(feature).step_by(3).map(|value| f64::from(*value));
            let mean = values().sum::<f64>() / rows as f64;
            let variance = values().map(|value| value * value).sum::<f64>() / rows as f64;
            assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "{mean} and {variance}");
        }
    }
}
