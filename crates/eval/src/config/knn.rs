//! Settings of k-NN classification.

use super::{all, positive};
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// k-NN classification, as written (CAPI, k-NN scores; MOCA, evaluation by nearest neighbours). MOCA's table is
/// `neighbours = [10, 20]`, `temperatures = [0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.10, 0.12, 0.15, 0.20]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KnnConfig {
    /// Numbers of neighbours to try; the last is the one reported as canonical, with weighted votes.
    pub neighbours: Vec<usize>,
    /// A weighted vote is exp(similarity / temperature). This one is canonical, and the one used while training.
    pub temperature: f64,
    /// More temperatures to score beside it.
    pub temperatures: Vec<f64>,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self { neighbours: vec![1, 5, 10, 20], temperature: 0.07, temperatures: Vec::new() }
    }
}

/// Checked [`KnnConfig`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KnnSettings {
    /// Numbers of neighbours, ascending, not empty.
    pub neighbours: Vec<usize>,
    /// The canonical one.
    pub temperature: f64,
    /// All that are scored, the canonical one among them, ascending.
    pub temperatures: Vec<f64>,
}

impl KnnSettings {
    /// Images of a bank that are needed at least: the largest number of neighbours.
    #[must_use]
    pub fn voters(&self) -> usize {
        self.neighbours.last().copied().unwrap_or(1)
    }

    /// The canonical setting alone: what a score while training needs.
    #[must_use]
    pub fn canonical(&self) -> Self {
        Self { neighbours: vec![self.voters()], temperature: self.temperature, temperatures: vec![self.temperature] }
    }
}

impl KnnConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// No neighbours, an order that is not ascending, or a temperature that is not positive.
    pub fn check(&self) -> Result<KnnSettings, ConfigError> {
        let ascending = self.neighbours.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.neighbours.first().is_none_or(|least| *least == 0) {
            let allowed = "must be one or more numbers from 1, ascending";
            return Err(ConfigError::new("neighbours", format!("{:?}", self.neighbours), allowed));
        }
        let temperature = require("temperature", self.temperature, "must be above 0 and finite", positive)?;
        let mut temperatures = vec![temperature];
        if !self.temperatures.is_empty() {
            all("temperatures", &self.temperatures, "must be numbers above 0", positive)?;
            temperatures.extend(&self.temperatures);
            temperatures.sort_by(f64::total_cmp);
            temperatures.dedup();
        }
        Ok(KnnSettings { neighbours: self.neighbours.clone(), temperature, temperatures })
    }
}
