//! Logistic regression from a feature to a label ("linear" segmentation).

use super::rows;
use crate::logistic::{Logistic, Problem, Stop};
use crate::{Error, Result};

/// One linear layer with bias and a softmax, fitted to the minimum of `|weight|^2 / 2 + c * sum of cross-entropies`; the
/// bias is not penalised. The reference tries eight `c` from 1e-6 to 1e5, evenly by logarithm.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticRegression {
    /// Labels it tells apart, ascending.
    pub classes: Vec<u8>,
    model: Logistic,
    dim: usize,
}

impl LogisticRegression {
    /// Fits by L-BFGS from zero, in f64.  features: [rows, dim], labels: `[rows]`
    ///
    /// # Errors
    /// Sizes that do not fit, a feature that is not finite, one label only, or a `c` that is not positive.
    pub fn fit(features: &[f32], dim: usize, labels: &[u8], c: f64) -> Result<Self> {
        let count = rows("logistic regression", features, dim)?;
        if labels.len() != count {
            let got = labels.len();
            return Err(Error::Mismatch(format!("logistic regression: {got} labels for {count} rows")));
        }
        let mut classes = labels.to_vec();
        classes.sort_unstable();
        classes.dedup();
        let targets: Vec<usize> = labels.iter().map(|label| classes.partition_point(|class| class < label)).collect();
        let (targets, stop) = (&targets[..], Stop::EXACT);
        let model = Problem { features, dim, targets, classes: classes.len(), c, bias: true, stop }.fit()?;
        Ok(Self { classes, model, dim })
    }

    /// [classes, dim]
    #[must_use]
    pub fn weight(&self) -> &[f64] {
        &self.model.weight
    }

    /// `[classes]`
    #[must_use]
    pub fn bias(&self) -> &[f64] {
        &self.model.bias
    }

    /// The likeliest label of each row, the smallest of equal ones.  features: [rows, dim] -> `[rows]`
    ///
    /// # Errors
    /// Rows of another length, or a feature that is not finite.
    pub fn predict(&self, features: &[f32]) -> Result<Vec<u8>> {
        rows("logistic regression", features, self.dim)?;
        Ok(self.model.predict(features)?.into_iter().map(|class| self.classes[class]).collect())
    }
}
