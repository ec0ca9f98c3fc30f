//! `summary.json`: the last numbers of a run, for scripts and comparisons.

use crate::state::RunState;
use occlude_checkpoint::{Checkpoint, CommitError, write_whole};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The last numbers of a run. Accuracies are in percent; what was not measured is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Whether the run reached its end.
    pub finished: bool,
    /// Steps done.
    pub steps: u64,
    /// Seconds of training, probes and saves included, over all starts.
    pub seconds: f64,
    /// Images trained on per second, probes and saves left out.
    pub images_per_second: f64,
    /// Share of the time in steps spent waiting for batches, 0 to 1.
    pub wait_share: f64,
    /// Sum of the losses of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_loss: Option<f64>,
    /// Each loss of the last step.
    pub final_losses: BTreeMap<String, f64>,
    /// Largest memory of the process, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_mb: Option<f64>,
    /// k-NN accuracy of the trained model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn: Option<f64>,
    /// k-NN accuracy of the same model before the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn_random_weights: Option<f64>,
    /// k-NN accuracy of raw pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn_pixels: Option<f64>,
    /// Accuracy of a linear classifier on frozen features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear: Option<f64>,
    /// Other scores by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f64>,
    /// Seed of the run.
    pub seed: u64,
}

impl Summary {
    /// Enters a score under its name: its own field where it has one, [`Summary::scores`] otherwise.
    pub fn set_score(&mut self, name: &str, value: f64) {
        match name {
            "knn" => self.knn = Some(value),
            "knn_random_weights" => self.knn_random_weights = Some(value),
            "knn_pixels" => self.knn_pixels = Some(value),
            "linear" => self.linear = Some(value),
            other => drop(self.scores.insert(other.to_owned(), value)),
        }
    }

    /// The score that was entered under `name`.
    #[must_use]
    pub fn score(&self, name: &str) -> Option<f64> {
        match name {
            "knn" => self.knn,
            "knn_random_weights" => self.knn_random_weights,
            "knn_pixels" => self.knn_pixels,
            "linear" => self.linear,
            other => self.scores.get(other).copied(),
        }
    }

    /// The numbers of a run when it wrote `checkpoint`, for one that was killed before it wrote a summary.
    ///
    /// # Errors
    /// The checkpoint has no readable state of a run.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> crate::Result<Self> {
        Ok(checkpoint.state::<RunState>()?.summary())
    }

    /// Reads a summary.
    ///
    /// # Errors
    /// The file cannot be read or is not a summary.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Writes the summary, whole.
    ///
    /// # Errors
    /// As [`write_whole`].
    pub fn write(&self, path: &Path) -> Result<(), CommitError> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| CommitError::NotCommitted { path: path.to_owned(), source: error.into() })?;
        bytes.push(b'\n');
        write_whole(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn scores_taken_later_join_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        let mut summary = Summary { steps: 600, seconds: 12.5, ..Summary::default() };
        summary.set_score("knn", 61.25);
        summary.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"knn\": 61.25") && !text.contains("linear"), "{text}");
        let mut read = Summary::read(&path).unwrap();
        assert_eq!(read, summary);
        read.set_score("linear", 70.5);
        read.set_score("knn_teacher", 60.0);
        read.write(&path).unwrap();
        let read = Summary::read(&path).unwrap();
        assert_eq!((read.knn, read.linear, read.scores["knn_teacher"]), (Some(61.25), Some(70.5), 60.0));
        assert_eq!(
            (read.score("knn"), read.score("knn_teacher"), read.score("other")),
            (Some(61.25), Some(60.0), None)
        );
    }
}
