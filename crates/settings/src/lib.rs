//! How a setting is written, checked and refused.
//!
//! A room keeps two types for each of its configs: `XConfig`, as written in a file (serde, unknown keys denied), and
//! `X`, checked, which code that runs is given. This crate holds what the two share: [`ConfigError`], the one way a
//! value is refused; [`require`], which names the field, the value and what is allowed; and [`Span`], a length of
//! training with its unit.
//!
//! Not here: where settings come from (files, environment, command line: `config`), and any default value.

use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// A setting whose value is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {allowed}")]
pub struct ConfigError {
    /// Full name of the field as a person writes it, such as `method.mask.ratio`.
    pub field: String,
    /// The refused value.
    pub value: String,
    /// What would be allowed, as it is shown after the value: "must be positive".
    pub allowed: String,
}

impl ConfigError {
    /// An error about one field.
    pub fn new(field: impl Into<String>, value: impl Display, allowed: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), allowed: allowed.into() }
    }

    /// The same error seen from an outer table: `ratio` inside `mask` becomes `mask.ratio`.
    #[must_use]
    pub fn inside(mut self, table: &str) -> Self {
        self.field = format!("{table}.{}", self.field);
        self
    }
}

/// Returns `value` if `holds` is true of it. Write the condition that must hold, so that NaN fails it.
///
/// # Errors
/// Names the field, the value and `allowed`.
pub fn require<T: Display>(
    field: &str,
    value: T,
    allowed: &str,
    holds: impl FnOnce(&T) -> bool,
) -> Result<T, ConfigError> {
    if holds(&value) { Ok(value) } else { Err(ConfigError::new(field, value, allowed)) }
}

/// A length of training with its unit: `{ steps = 500 }`, `{ epochs = 2.5 }` or `{ percent = 10 }`.
///
/// Recipes speak of epochs, loops of steps; a length is converted once, by [`Span::steps`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Span {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the training set.
    Epochs(f64),
    /// Share of the whole run, 0 to 100.
    Percent(f64),
}

/// What a [`Span`] is measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ruler {
    /// Steps in one pass over the training set (samples / batch, not rounded).
    pub steps_per_epoch: f64,
    /// Steps of the whole run; 0 while the run's own length is being converted.
    pub total_steps: u64,
}

impl Span {
    /// The length in steps, rounded to the nearest.
    ///
    /// # Errors
    /// Names `field` if the length is negative, not finite, or a percentage over 100.
    pub fn steps(self, field: &str, ruler: Ruler) -> Result<u64, ConfigError> {
        let round = |steps: f64| steps.round() as u64;
        match self {
            Self::Steps(steps) => Ok(steps),
            Self::Epochs(epochs) => {
                require(&format!("{field}.epochs"), epochs, "must be finite and not negative", |e| {
                    *e >= 0.0 && e.is_finite()
                })?;
                Ok(round(epochs * ruler.steps_per_epoch))
            }
            Self::Percent(percent) => {
                require(&format!("{field}.percent"), percent, "must be between 0 and 100", |p| {
                    (0.0..=100.0).contains(p)
                })?;
                Ok(round(percent / 100.0 * ruler.total_steps as f64))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ruler, Span, require};

    #[test]
    fn nan_fails_a_condition_that_must_hold() {
        let refused = require("ratio", f64::NAN, "must be between 0 and 1", |r| *r > 0.0 && *r < 1.0);
        assert_eq!(refused.unwrap_err().to_string(), "ratio = NaN: must be between 0 and 1");
    }

    #[test]
    fn spans_convert_once() {
        let ruler = Ruler { steps_per_epoch: 39.0625, total_steps: 1000 };
        assert_eq!(Span::Steps(7).steps("warmup", ruler), Ok(7));
        assert_eq!(Span::Epochs(2.0).steps("warmup", ruler), Ok(78));
        assert_eq!(Span::Percent(10.0).steps("warmup", ruler), Ok(100));
        assert!(Span::Percent(101.0).steps("warmup", ruler).is_err());
        assert!(Span::Epochs(f64::NAN).steps("warmup", ruler).is_err());
    }

    #[test]
    fn a_span_has_one_unit() {
        #[derive(Debug, serde::Deserialize)]
        struct File {
            warmup: Span,
        }
        let read = |text: &str| toml::from_str::<File>(text).map(|file| file.warmup);
        assert_eq!(read("warmup = { epochs = 10 }").unwrap(), Span::Epochs(10.0));
        assert!(read("warmup = { epochs = 10, steps = 3 }").is_err());
        assert!(read("warmup = { hours = 10 }").is_err());
    }
}
