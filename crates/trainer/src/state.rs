//! What a checkpoint stores beside tensors, and whether it belongs to this run.

use crate::clock::Spent;
use crate::event::Named;
use crate::summary::Summary;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Settings that decide what a run computes, flattened: `method.dim` -> `192`. A checkpoint fits a run with equal ones.
pub(crate) type Identity = BTreeMap<String, String>;

/// The run after some steps. Sampler and random streams need no entry: they are functions of seed and step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Steps done: the 0-based number of the next one.
    pub(crate) next_step: u64,
    /// Seed of the run.
    pub(crate) seed: u64,
    /// What the run computes.
    pub(crate) identity: Identity,
    /// Length of each sink's file, in bytes.
    pub(crate) files: BTreeMap<String, u64>,
    /// Time spent.
    pub(crate) spent: Spent,
    /// Losses of the last step.
    pub(crate) losses: Named,
    /// The last value of every score.
    pub(crate) scores: BTreeMap<String, f64>,
}

impl RunState {
    /// The numbers of the run so far, as of one that has not ended.
    pub(crate) fn summary(&self) -> Summary {
        let losses = &self.losses.0;
        let mut summary = Summary {
            steps: self.next_step,
            seconds: self.spent.seconds,
            images_per_second: self.spent.images_per_second(),
            wait_share: self.spent.wait_share(),
            final_loss: (!losses.is_empty()).then(|| losses.iter().map(|(_, value)| value).sum()),
            final_losses: losses.iter().cloned().collect(),
            peak_memory_mb: self.spent.peak_memory_mb,
            seed: self.seed,
            ..Summary::default()
        };
        self.scores.iter().for_each(|(name, value)| summary.set_score(name, *value));
        summary
    }
}

/// Differences shown in a message; the rest is counted.
const SHOWN: usize = 5;

/// The settings in which a checkpoint differs from this run, in words; `None` if it fits.
pub(crate) fn differences(stored: &Identity, current: &Identity) -> Option<String> {
    let keys: BTreeSet<&String> = stored.keys().chain(current.keys()).collect();
    let shown = |value: Option<&String>| value.map_or("not set", String::as_str).to_owned();
    let different: Vec<String> = keys
        .into_iter()
        .filter(|key| stored.get(*key) != current.get(*key))
        .map(|key| format!("{key} (was {}, now {})", shown(stored.get(key)), shown(current.get(key))))
        .collect();
    match different.len() {
        0 => None,
        count if count > SHOWN => Some(format!("{} and {} more", different[..SHOWN].join(", "), count - SHOWN)),
        _ => Some(different.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, differences};

    fn identity(pairs: &[(&str, &str)]) -> Identity {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn differing_settings_are_named_with_both_values() {
        let stored = identity(&[("method.dim", "192"), ("seed", "1"), ("method.roll", "true")]);
        assert_eq!(differences(&stored, &stored), None);
        let current = identity(&[("method.dim", "256"), ("seed", "1"), ("method.registers", "4")]);
        let expected =
            "method.dim (was 192, now 256), method.registers (was not set, now 4), method.roll (was true, now not set)";
        assert_eq!(differences(&stored, &current).as_deref(), Some(expected));
    }

    #[test]
    fn a_long_list_is_cut() {
        let many: Vec<(String, String)> = (0..9).map(|i| (format!("k{i}"), "1".into())).collect();
        let text = differences(&many.into_iter().collect(), &Identity::new()).unwrap();
        assert!(text.ends_with("and 4 more"), "{text}");
    }
}
