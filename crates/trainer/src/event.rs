//! What happens in a run, as sinks are told.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Numbers by name, in the order they were given. As JSON: an object; a number that is not finite is `null`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named(pub Vec<(String, f64)>);

impl Named {
    pub(crate) fn of(pairs: &[(&'static str, f64)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
    }

    /// The number of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
    }
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Named;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an object of numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Option<f64>>()? {
                    pairs.push((name, value.unwrap_or(f64::NAN)));
                }
                Ok(Named(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// The numbers of one step: a line of `metrics.jsonl`. Equal for equal seeds, so no clock is among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Steps done, this one included.
    pub step: u64,
    /// Passes over the training set done.
    pub epoch: f64,
    /// Losses by name; means over the micro-batches of the step.
    pub losses: Named,
    /// Other numbers of the method; means likewise.
    pub metrics: Named,
    /// Learning rate of each parameter group.
    pub lr: Named,
    /// Momentum of each moving average.
    pub momentum: Named,
    /// Global gradient norm before clipping, where clipping is on.
    pub grad_norm: Option<f64>,
}

/// What a probe measured: a line of `metrics.jsonl`, told from a [`StepRow`] by `scores`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Steps done.
    pub step: u64,
    /// Scores by name.
    pub scores: Named,
}

/// Weights that are looked at while they are trained: a line of `metrics.jsonl`, told from the others by `matrix`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MatrixRow {
    /// Steps done.
    pub step: u64,
    /// Passes over the training set done.
    pub epoch: f64,
    /// What it is: `skips`.
    pub matrix: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row by row.  [rows * cols]
    pub values: Vec<f64>,
}

/// How fast it goes: a line of `timing.jsonl`. Rates are smoothed over about twenty steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimingRow {
    /// Steps done.
    pub step: u64,
    /// Seconds of training so far, over all starts of the run.
    pub seconds: f64,
    /// Images trained on per second, probes and saves left out.
    pub images_per_second: f64,
    /// Share of that time spent waiting for a batch, 0 to 1.
    pub wait_share: f64,
    /// Different images that could not be read, since this start.
    pub corrupt: u64,
    /// Largest memory of the process, in MiB, where the system tells.
    pub peak_memory_mb: Option<f64>,
}

/// Something that happened. Sinks take what they want.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run starts, or goes on.
    Started {
        /// Steps done already.
        step: u64,
        /// Steps of the whole run.
        total: u64,
        /// The checkpoint it goes on from.
        resumed: Option<&'a Path>,
    },
    /// A step was done.
    Step {
        /// Its numbers.
        row: &'a StepRow,
        /// The speed.
        timing: &'a TimingRow,
        /// Whether files get a row; the others are for live display.
        logged: bool,
    },
    /// Probes were run.
    Probed(&'a ProbeRow),
    /// Weights were looked at: at the start, after every epoch, at the end.
    Shown(&'a MatrixRow),
    /// A checkpoint was written.
    Saved {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: &'a Path,
    },
    /// The loop ended, by reaching the end or by a signal.
    Ended {
        /// Steps done.
        step: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::{Named, StepRow};

    #[test]
    fn rows_keep_order_and_every_bit() {
        let row = StepRow {
            step: 3,
            epoch: 0.1 + 0.2,
            losses: Named(vec![("zeta".into(), 1.0 / 3.0), ("alpha".into(), f64::MIN_POSITIVE)]),
            metrics: Named(vec![("entropy".into(), f64::NAN)]),
            ..StepRow::default()
        };
        let text = serde_json::to_string(&row).unwrap();
        assert!(
            text.starts_with(r#"{"step":3,"epoch":0.30000000000000004,"losses":{"zeta":0.3333333333333333,"#),
            "{text}"
        );
        assert!(text.contains(r#""metrics":{"entropy":null}"#), "{text}");
        let read: StepRow = serde_json::from_str(&text).unwrap();
        assert_eq!(read.losses, row.losses);
        assert!(read.metrics.get("entropy").unwrap().is_nan());
    }
}
