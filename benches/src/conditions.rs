//! Under which conditions sides were compared.

use crate::{Machine, StepBench, load_average};
use serde_json::{Map, Value, json};

/// What both sides of a comparison had in common.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Threads of each side.
    pub threads: usize,
    /// Steps before the timed ones.
    pub warmup: usize,
    /// Steps of one side before the other one's turn.
    pub turn: usize,
    /// What it ran on.
    pub machine: Machine,
    /// Load average before.
    pub load_before: Option<[f64; 3]>,
    /// Load average after.
    pub load_after: Option<[f64; 3]>,
}

impl Conditions {
    /// Those of now, before the comparison.
    pub(crate) fn before(bench: &StepBench, turn: usize) -> Self {
        let (threads, warmup, machine) = (bench.threads, bench.warmup, Machine::this());
        Self { threads, warmup, turn, machine, load_before: load_average(), load_after: None }
    }

    /// The same with the load of now, after it.
    pub(crate) fn after(self) -> Self {
        Self { load_after: load_average(), ..self }
    }

    /// Their part of a report in JSON.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let fields = [
            ("threads", json!(self.threads)),
            ("warmup", json!(self.warmup)),
            ("turn", json!(self.turn)),
            ("cpu", json!(self.machine.cpu)),
            ("features", json!(self.machine.features)),
            ("load_before", json!(self.load_before)),
            ("load_after", json!(self.load_after)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The first two lines of a report in words.
    pub(crate) fn text(&self, what: &str, steps: usize) -> String {
        let load = |load: Option<[f64; 3]>| load.map_or_else(|| "?".into(), |[one, ..]| format!("{one:.2}"));
        let (before, after) = (load(self.load_before), load(self.load_after));
        let (Machine { cpu, features }, Self { threads, turn, .. }) = (&self.machine, self);
        let features = features.join(", ");
        format!(
            "{what} on {cpu} ({features})\n\
             {threads} threads, {steps} steps, {turn} at a time; load {before} before, {after} after\n"
        )
    }
}
