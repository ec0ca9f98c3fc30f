//! Settings of the loader. None of them changes what is in a batch, except the batch size.

use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// How batches are made, as written in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Threads that decode and augment; 0 makes each batch when it is asked for.
    pub workers: usize,
    /// Batches made ahead. More workers than that would idle.
    pub queue: usize,
    /// The run stops when more than this share of the images cannot be read.
    pub max_corrupt_share: f64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self { workers: 2, queue: 4, max_corrupt_share: 0.05 }
    }
}

impl LoaderConfig {
    /// The checked settings for batches of `batch` images.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self, batch: usize) -> Result<LoaderSettings, ConfigError> {
        let batch = require("batch", batch, "must be between 1 and 1048576", |b| (1..=1 << 20).contains(b))?;
        let workers = require("workers", self.workers, "must be at most 256", |w| *w <= 256)?;
        let queue = require("queue", self.queue, "must be between 1 and 1024", |q| (1..=1024).contains(q))?;
        let share = "must be a share, between 0 and 1";
        let max_corrupt_share =
            require("max_corrupt_share", self.max_corrupt_share, share, |s| (0.0..=1.0).contains(s))?;
        Ok(LoaderSettings { batch, workers, queue, max_corrupt_share })
    }
}

/// How batches are made, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoaderSettings {
    batch: usize,
    workers: usize,
    queue: usize,
    max_corrupt_share: f64,
}

impl LoaderSettings {
    /// Images in a batch.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Threads.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Batches made ahead.
    #[must_use]
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// Share of unreadable images that is tolerated.
    #[must_use]
    pub fn max_corrupt_share(&self) -> f64 {
        self.max_corrupt_share
    }
}

#[cfg(test)]
mod tests {
    use super::LoaderConfig;

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |config: LoaderConfig, batch| config.check(batch).unwrap_err().to_string();
        assert!(refused(LoaderConfig::default(), 0).starts_with("batch = 0: must"));
        assert!(refused(LoaderConfig { queue: 0, ..LoaderConfig::default() }, 1).starts_with("queue = 0"));
        let nan = LoaderConfig { max_corrupt_share: f64::NAN, ..LoaderConfig::default() };
        assert!(refused(nan, 1).starts_with("max_corrupt_share = NaN"));
    }
}
