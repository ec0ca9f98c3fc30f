//! Features of mean 0 and deviation 1.

/// Mean and deviation of every feature over the training rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Standard {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Standard {
    /// Of each feature: mean and population deviation.  features: [rows, dim]
    pub(crate) fn of(features: &[f32], dim: usize) -> Self {
        let count = (features.len() / dim) as f64;
        let (mut sums, mut squares) = (vec![0.0_f64; dim], vec![0.0_f64; dim]);
        for row in features.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        sums.iter_mut().for_each(|sum| *sum /= count);
        for row in features.chunks_exact(dim) {
            let centred = row.iter().zip(&sums).map(|(value, mean)| f64::from(*value) - mean);
            squares.iter_mut().zip(centred).for_each(|(sum, value)| *sum += value * value);
        }
        // A constant feature stays as it is: 0 after centring.
        let deviation = |square: f64| if square > 0.0 { (square / count).sqrt() as f32 } else { 1.0 };
        Self {
            mean: sums.iter().map(|mean| *mean as f32).collect(),
            deviation: squares.into_iter().map(deviation).collect(),
        }
    }

    /// Of each feature the mean; one deviation for all, that of every number around the mean of all (plus 1e-8).
    /// features: [rows, dim]
    pub(crate) fn overall(features: &[f32], dim: usize) -> Self {
        let (count, values) = (features.len() as f64, || features.iter().map(|value| f64::from(*value)));
        let mean = values().sum::<f64>() / count;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Self { deviation: vec![(variance.sqrt() + 1e-8) as f32; dim], ..Self::of(features, dim) }
    }

    /// Shifts and scales every row.  features: [rows, dim]
    pub fn apply(&self, features: &mut [f32]) {
        for row in features.chunks_exact_mut(self.mean.len()) {
            for ((value, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *value = (*value - mean) / deviation;
            }
        }
    }
}
