//! Settings of low-shot classification.

use super::{all, positive};
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Classification from a few labelled images, as written (MOCA, low-shot classification).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LowShotConfig {
    /// Training images of each class, a score each. Smaller numbers are part of larger ones.
    pub shots: Vec<usize>,
    /// Subsets drawn; mean and deviation are over them.
    pub subsets: usize,
    /// Key of the drawing. Not the run's: runs of several seeds see the same images.
    pub seed: u64,
    /// Files that name the training images instead; where there are some, nothing is drawn.
    pub lists: Vec<LowShotList>,
    /// Strengths of the penalty; the first is the one quoted.
    pub lambdas: Vec<f64>,
    /// Steps of L-BFGS, at most.
    pub iterations: usize,
    /// Largest number of the gradient at which it ends.
    pub tolerance: f64,
}

/// Subsets of one size, as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowShotList {
    /// What it is called in scores, such as `1 %`.
    pub name: String,
    /// One file a subset, one image name a line.
    pub files: Vec<PathBuf>,
}

impl Default for LowShotConfig {
    fn default() -> Self {
        Self {
            shots: vec![1, 2, 5],
            subsets: 3,
            seed: 0,
            lists: Vec::new(),
            lambdas: vec![0.1],
            iterations: 300,
            tolerance: 1e-4,
        }
    }
}

/// Checked [`LowShotConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LowShotSettings {
    /// Training images of each class, ascending.
    pub shots: Vec<usize>,
    /// Subsets drawn.
    pub subsets: usize,
    /// Key of the drawing.
    pub seed: u64,
    /// Files instead; each name once, each with a file.
    pub lists: Vec<LowShotList>,
    /// Strengths of the penalty; not empty.
    pub lambdas: Vec<f64>,
    /// Steps, at most.
    pub iterations: usize,
    /// Of the gradient.
    pub tolerance: f64,
}

impl LowShotConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Nothing to draw or to try, numbers of images that do not ascend, a penalty that is not positive, a list without
    /// files, or two of one name.
    pub fn check(&self) -> Result<LowShotSettings, ConfigError> {
        let ascending = self.shots.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.shots.first().is_none_or(|least| *least == 0) {
            let allowed = "must be one or more numbers from 1, ascending";
            return Err(ConfigError::new("shots", format!("{:?}", self.shots), allowed));
        }
        for (place, list) in self.lists.iter().enumerate() {
            let taken = self.lists[..place].iter().any(|other| other.name == list.name);
            if list.files.is_empty() || taken {
                let allowed = "must have a name of its own and one or more files";
                return Err(ConfigError::new("lists", &list.name, allowed));
            }
        }
        all("lambdas", &self.lambdas, "must be one or more numbers above 0", positive)?;
        Ok(LowShotSettings {
            shots: self.shots.clone(),
            subsets: require("subsets", self.subsets, "must be at least 1", |n| *n >= 1)?,
            seed: self.seed,
            lists: self.lists.clone(),
            lambdas: self.lambdas.clone(),
            iterations: require("iterations", self.iterations, "must be at least 1", |n| *n >= 1)?,
            tolerance: require("tolerance", self.tolerance, "must be above 0 and finite", positive)?,
        })
    }
}
