//! Settings of the loop.

use occlude_checkpoint::Retention;
use occlude_kernels::Precision;
use occlude_methods::BatchSize;
use occlude_settings::{ConfigError, Ruler, Span, require};
use serde::{Deserialize, Serialize};

/// The loop as written in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Length of the run, in steps or epochs.
    pub length: Span,
    /// Images of a micro-batch: what is computed at once.
    pub batch: usize,
    /// Micro-batches of a step. Their gradients are averaged: a step learns from `batch * accumulate` images in the memory
    /// of `batch`.
    pub accumulate: usize,
    /// How matrix products of a step are computed: `f32`, `bf16` or `f32x3`. Scores are computed in f32.
    pub precision: String,
    /// Largest global gradient norm; larger gradients are scaled down. Off where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// A row of metrics is written every so many steps, and for the first and the last step.
    pub log_every: u64,
    /// When to save and what to keep.
    pub checkpoint: CheckpointConfig,
}

/// When to save and what to keep. A run is saved at its end and on a signal in any case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Save every so many steps, epochs or percent of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// Save when this many minutes have passed since the last save.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minutes: Option<f64>,
    /// How many of the newest checkpoints stay.
    pub keep_last: usize,
    /// Save at multiples of this length too; those checkpoints stay for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<Span>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            length: Span::Steps(600),
            batch: 64,
            accumulate: 1,
            precision: Precision::default().to_string(),
            clip: None,
            log_every: 10,
            checkpoint: CheckpointConfig::default(),
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: None, minutes: Some(5.0), keep_last: 3, keep_every: None }
    }
}

/// The checked loop settings, in steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    steps: u64,
    batch: BatchSize,
    precision: Precision,
    clip: Option<f64>,
    log_every: u64,
    steps_per_epoch: f64,
    save_every: Option<u64>,
    save_seconds: Option<f64>,
    retention: Retention,
}

impl TrainConfig {
    /// Checks the settings for a training set of `samples` images.
    ///
    /// # Errors
    /// Names the field, relative to this table.
    pub fn check(&self, samples: usize) -> Result<Training, ConfigError> {
        require("batch", self.batch, "must be at least 1", |batch| *batch >= 1)?;
        require("accumulate", self.accumulate, "must be between 1 and 65536", |n| (1..=65536).contains(n))?;
        require("log_every", self.log_every, "must be at least 1", |every| *every >= 1)?;
        let precision = self.precision.parse::<Precision>();
        let precision = precision
            .map_err(|_| ConfigError::new("precision", &self.precision, "must be `f32`, `bf16` or `f32x3`"))?;
        if let Some(clip) = self.clip {
            require("clip", clip, "must be a finite number above 0", |clip| *clip > 0.0 && clip.is_finite())?;
        }
        if let Span::Percent(percent) = self.length {
            return Err(ConfigError::new("length.percent", percent, "must be given in steps or epochs"));
        }
        let batch = BatchSize { micro: self.batch, accumulate: self.accumulate };
        let steps_per_epoch = samples as f64 / batch.effective() as f64;
        let steps = self.length.steps("length", Ruler { steps_per_epoch, total_steps: 0 })?;
        require("length", steps, "must be at least one step", |steps| *steps >= 1)?;
        let ruler = Ruler { steps_per_epoch, total_steps: steps };
        let (save_every, save_seconds, retention) =
            self.checkpoint.check(ruler).map_err(|error| error.inside("checkpoint"))?;
        let Self { clip, log_every, .. } = *self;
        Ok(Training { steps, batch, precision, clip, log_every, steps_per_epoch, save_every, save_seconds, retention })
    }
}

impl CheckpointConfig {
    fn check(&self, ruler: Ruler) -> Result<(Option<u64>, Option<f64>, Retention), ConfigError> {
        require("keep_last", self.keep_last, "must be at least 1", |last| *last >= 1)?;
        let minutes = |minutes: f64| {
            require("minutes", minutes, "must be a finite number above 0", |m| *m > 0.0 && m.is_finite())
        };
        let seconds = self.minutes.map(minutes).transpose()?.map(|minutes| 60.0 * minutes);
        let steps = |field: &str, span: Option<Span>| {
            let steps = span.map(|span| span.steps(field, ruler)).transpose()?;
            steps.map(|steps| require(field, steps, "must be at least one step", |steps| *steps >= 1)).transpose()
        };
        let keep_every = steps("keep_every", self.keep_every)?;
        let retention = Retention { keep_last: self.keep_last, keep_every };
        Ok((steps("every", self.every)?, seconds, retention))
    }
}

impl Training {
    /// Steps of the whole run.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Images of a micro-batch, and micro-batches of a step.
    #[must_use]
    pub fn batch(&self) -> BatchSize {
        self.batch
    }

    /// How matrix products of a step are computed.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Largest global gradient norm.
    #[must_use]
    pub fn clip(&self) -> Option<f64> {
        self.clip
    }

    /// What to keep.
    #[must_use]
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// What spans of this run are measured against.
    #[must_use]
    pub fn ruler(&self) -> Ruler {
        Ruler { steps_per_epoch: self.steps_per_epoch, total_steps: self.steps }
    }

    /// Whether the row of the step that makes it `done` steps is written.
    pub(crate) fn logs(&self, done: u64) -> bool {
        done == 1 || done == self.steps || done.is_multiple_of(self.log_every)
    }

    /// Whether a checkpoint is due after `done` steps and `seconds` since the last one.
    pub(crate) fn saves(&self, done: u64, seconds: f64) -> bool {
        let regular = [self.save_every, self.retention.keep_every];
        regular.into_iter().flatten().any(|every| done.is_multiple_of(every))
            || self.save_seconds.is_some_and(|after| seconds >= after)
    }
}

#[cfg(test)]
mod tests {
    use super::{CheckpointConfig, TrainConfig};
    use occlude_settings::Span;

    #[test]
    fn lengths_become_steps() {
        let config = TrainConfig {
            length: Span::Epochs(2.0),
            batch: 30,
            checkpoint: CheckpointConfig { every: Some(Span::Percent(25.0)), minutes: None, ..Default::default() },
            ..Default::default()
        };
        let training = config.check(300).unwrap();
        assert_eq!(training.steps(), 20);
        let saves: Vec<u64> = (1..=20).filter(|done| training.saves(*done, 1e9)).collect();
        assert_eq!(saves, [5, 10, 15, 20]);
        let logs: Vec<u64> = (1..=20).filter(|done| training.logs(*done)).collect();
        assert_eq!(logs, [1, 10, 20]);
    }

    #[test]
    fn an_epoch_has_fewer_steps_where_a_step_takes_more_images() {
        let config = TrainConfig { length: Span::Epochs(4.0), batch: 10, accumulate: 3, ..Default::default() };
        let training = config.check(300).unwrap();
        assert_eq!((training.steps(), training.ruler().steps_per_epoch), (40, 10.0));
        assert_eq!(training.batch().effective(), 30);
    }

    #[test]
    fn what_is_kept_for_ever_is_saved_first() {
        let (every, keep_every) = (Some(Span::Steps(4)), Some(Span::Steps(6)));
        let checkpoint = CheckpointConfig { every, minutes: None, keep_every, ..Default::default() };
        let training = TrainConfig { length: Span::Steps(12), checkpoint, ..Default::default() }.check(300).unwrap();
        let saves: Vec<u64> = (1..=12).filter(|done| training.saves(*done, 0.0)).collect();
        assert_eq!(saves, [4, 6, 8, 12]);
    }

    #[test]
    fn each_field_is_checked_by_name() {
        let plain = TrainConfig::default();
        let saving = |checkpoint| TrainConfig { checkpoint, ..plain.clone() };
        let keep = CheckpointConfig::default();
        for (field, config) in [
            ("batch", TrainConfig { batch: 0, ..plain.clone() }),
            ("accumulate", TrainConfig { accumulate: 0, ..plain.clone() }),
            ("log_every", TrainConfig { log_every: 0, ..plain.clone() }),
            ("precision", TrainConfig { precision: "f16".into(), ..plain.clone() }),
            ("clip", TrainConfig { clip: Some(f64::NAN), ..plain.clone() }),
            ("length", TrainConfig { length: Span::Steps(0), ..plain.clone() }),
            ("length.percent", TrainConfig { length: Span::Percent(10.0), ..plain.clone() }),
            ("length.epochs", TrainConfig { length: Span::Epochs(-1.0), ..plain.clone() }),
            ("checkpoint.keep_last", saving(CheckpointConfig { keep_last: 0, ..keep.clone() })),
            ("checkpoint.minutes", saving(CheckpointConfig { minutes: Some(-1.0), ..keep.clone() })),
            ("checkpoint.every", saving(CheckpointConfig { every: Some(Span::Steps(0)), ..keep.clone() })),
            ("checkpoint.keep_every.percent", {
                saving(CheckpointConfig { keep_every: Some(Span::Percent(200.0)), ..keep })
            }),
        ] {
            assert_eq!(config.check(1000).unwrap_err().field, field);
        }
    }
}
