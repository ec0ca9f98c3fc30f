//! What is measured of a run, and how a figure is written.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What is measured of a run. In files each has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Accuracy of k nearest neighbours, percent.
    Knn,
    /// Accuracy of a linear probe, percent.
    Linear,
    /// Accuracy after training the whole network with labels, percent.
    Finetune,
    /// Accuracy with one labelled image a class, percent.
    #[serde(rename = "lowshot_1")]
    LowShot1,
    /// With two.
    #[serde(rename = "lowshot_2")]
    LowShot2,
    /// With five.
    #[serde(rename = "lowshot_5")]
    LowShot5,
    /// With one of a hundred images.
    #[serde(rename = "lowshot_1_percent")]
    LowShotPercent,
    /// Minutes an epoch.
    Minutes,
    /// Hours of a run.
    Hours,
    /// Memory in GB: of a GPU in a paper, of the process here.
    Memory,
}

impl Measure {
    /// As a column says it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Knn => "k-NN",
            Self::Linear => "linear",
            Self::Finetune => "fine-tuned",
            Self::LowShot1 => "1 shot",
            Self::LowShot2 => "2 shots",
            Self::LowShot5 => "5 shots",
            Self::LowShotPercent => "1 % labels",
            Self::Minutes => "min/epoch",
            Self::Hours => "hours",
            Self::Memory => "GB",
        }
    }

    /// Under which name the summary of a run holds it, where it is one of its scores.
    #[must_use]
    pub fn score(self) -> Option<&'static str> {
        match self {
            Self::Knn => Some("knn"),
            Self::Linear => Some("linear"),
            Self::LowShot1 => Some("lowshot_1-shot"),
            Self::LowShot2 => Some("lowshot_2-shot"),
            Self::LowShot5 => Some("lowshot_5-shot"),
            Self::LowShotPercent => Some("lowshot_1 %"),
            Self::Finetune | Self::Minutes | Self::Hours | Self::Memory => None,
        }
    }

    /// `value` with as many decimals as are worth reading.
    #[must_use]
    pub fn written(self, value: f64) -> String {
        let decimals = match self {
            Self::Minutes => 2,
            Self::Hours => 0,
            _ => 1,
        };
        format!("{value:.decimals$}")
    }
}

/// A published number: alone, or mean and deviation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Figure {
    /// A number.
    Alone(f64),
    /// Mean and deviation.
    Spread([f64; 2]),
}

impl Figure {
    /// The number itself.
    #[must_use]
    pub fn mean(self) -> f64 {
        match self {
            Self::Alone(mean) | Self::Spread([mean, _]) => mean,
        }
    }

    /// As `measure` is written.
    #[must_use]
    pub fn written(self, measure: Measure) -> String {
        match self {
            Self::Alone(mean) => measure.written(mean),
            Self::Spread([mean, deviation]) => format!("{} ± {}", measure.written(mean), measure.written(deviation)),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
