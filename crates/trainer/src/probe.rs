//! Scores taken while training.

use occlude_methods::Method;

/// Measures a method between steps, such as k-NN accuracy on a held-out split.
///
/// A probe must draw nothing from the clock or a global generator: its scores are part of `metrics.jsonl`.
pub trait Probe {
    /// Whether to run after `done` of `total` steps. Asked for 0 as well, before the first step.
    fn due(&self, done: u64, total: u64) -> bool;

    /// Scores by name. The names `knn`, `knn_random_weights`, `knn_pixels` and `linear` (accuracies in percent) have
    /// their own fields in the summary.
    ///
    /// # Errors
    /// Whatever went wrong; it ends the run.
    fn run(
        &mut self,
        method: &dyn Method,
        done: u64,
    ) -> Result<Vec<(String, f64)>, Box<dyn std::error::Error + Send + Sync>>;
}
