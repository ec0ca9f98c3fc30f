//! What a comparison gives: medians, ratios, and the form they are written in.

use crate::precision::{PeerPrecision, Precision, RATIO_KEYS};
use crate::protocol::Reply;
use crate::{Machine, Preset};
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// How far losses may be apart, relative to the peer's.
const TOLERANCE: f64 = 1e-4;

/// The middle of some numbers, the mean of the two middles where their count is even; `None` of nothing.
#[must_use]
pub fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (upper, lower) = (sorted.len() / 2, sorted.len().saturating_sub(1) / 2);
    Some((sorted.get(lower)? + sorted.get(upper)?) / 2.0)
}

/// What one side measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Side {
    /// What computed: name and version.
    pub version: Option<String>,
    /// Numbers that are trained.
    pub parameters: Option<usize>,
    /// Largest resident memory of the program and its libraries alone, in MiB.
    pub start_mib: Option<f64>,
    /// Largest resident memory, in MiB.
    pub peak_mib: Option<f64>,
    /// Wall seconds of each timed step.
    pub seconds: Vec<f64>,
    /// CPU seconds of each timed step.
    pub cpu_seconds: Vec<f64>,
}

impl Side {
    /// Nothing measured yet.
    pub(crate) fn of(hello: &Reply) -> Self {
        let Reply { version, parameters, start_mib, .. } = hello.clone();
        Self { version, parameters, start_mib, ..Self::default() }
    }

    pub(crate) fn add(&mut self, reply: Reply) {
        self.seconds.extend(reply.seconds);
        self.cpu_seconds.extend(reply.cpu_seconds);
        self.peak_mib = reply.peak_mib.or(self.peak_mib);
    }

    /// The mean: the system counts our CPU time in steps of 10 ms, which a median would show.
    fn cpu(&self) -> Option<f64> {
        let count = self.cpu_seconds.len();
        (count > 0).then(|| self.cpu_seconds.iter().sum::<f64>() / count as f64)
    }

    fn json(&self) -> Value {
        json!({
            "version": self.version,
            "seconds_median": median(&self.seconds),
            "seconds_min": self.seconds.iter().copied().reduce(f64::min),
            "seconds": self.seconds,
            "cpu_seconds_per_step": self.cpu(),
            "peak_memory_mib": self.peak_mib,
            "start_memory_mib": self.start_mib,
            "parameters": self.parameters,
        })
    }
}

/// One loss on both sides, same weights and batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Name of the loss.
    pub name: String,
    /// Ours.
    pub ours: f64,
    /// The peer's.
    pub peer: f64,
}

impl Agreement {
    /// The difference, relative to the peer's.
    #[must_use]
    pub fn relative(&self) -> f64 {
        (self.ours - self.peer).abs() / self.peer.abs().max(f64::MIN_POSITIVE)
    }

    /// Refuses losses that are further apart than rounding explains, and ones that are not numbers.
    pub(crate) fn checked(self) -> Result<Self> {
        let (apart, Self { name, ours, peer }) = (self.relative(), &self);
        if apart <= TOLERANCE {
            return Ok(self);
        }
        bail!("{name} loss: ours {ours}, PyTorch {peer}: {apart:.1e} apart, at most {TOLERANCE:.0e} is allowed")
    }
}

/// A comparison.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which method.
    pub method: String,
    /// At which size.
    pub preset: Preset,
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
    /// Ours.
    pub ours: BTreeMap<Precision, Side>,
    /// The peer's.
    pub peer: BTreeMap<PeerPrecision, Side>,
    /// Losses before anything moved.
    pub agreements: Vec<Agreement>,
}

impl Report {
    /// Ours over the peer's, of a figure; `None` where either side has none.
    fn ratio(&self, precision: Precision, figure: impl Fn(&Side) -> Option<f64>) -> Option<f64> {
        let (ours, peer) = (self.ours.get(&precision)?, self.peer.get(&precision.peer())?);
        Some(figure(ours)? / figure(peer)?)
    }

    /// The ratio of every precision there is a name for, `null` where there is none.
    fn ratios(&self, figure: impl Fn(&Side) -> Option<f64> + Copy) -> Value {
        let named = |key: &&str| Precision::ALL.into_iter().find(|precision| precision.name() == *key);
        let value = |key| json!(named(&key).and_then(|precision| self.ratio(precision, figure)));
        RATIO_KEYS.iter().map(|key| ((*key).to_owned(), value(*key))).collect::<Map<_, _>>().into()
    }

    /// The whole report. `ratios` is wall time, ratio of medians, ours over the peer's.
    #[must_use]
    pub fn json(&self) -> Value {
        let ours: Map<_, _> = self.ours.iter().map(|(p, side)| (p.name().to_owned(), side.json())).collect();
        let peer = PeerPrecision::ALL.map(|p| (p.name().to_owned(), json!(self.peer.get(&p).map(Side::json))));
        let losses = self.agreements.iter().map(|agreement| {
            let Agreement { name, ours, peer } = agreement;
            (name.clone(), json!({ "ours": ours, "peer": peer, "relative": agreement.relative() }))
        });
        json!({
            "method": self.method,
            "preset": self.preset.name(),
            "threads": self.threads,
            "warmup": self.warmup,
            "turn": self.turn,
            "cpu": self.machine.cpu,
            "features": self.machine.features,
            "load_before": self.load_before,
            "load_after": self.load_after,
            "ratios": self.ratios(|side| median(&side.seconds)),
            "cpu_ratios": self.ratios(Side::cpu),
            "memory_ratios": self.ratios(|side| side.peak_mib),
            "ours": ours,
            "peer": peer.into_iter().collect::<Map<_, _>>(),
            "losses": losses.collect::<Map<_, _>>(),
        })
    }

    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, side: &Side) -> fmt::Result {
        let shown = |value: Option<f64>, digits| value.map_or_else(|| "?".into(), |v| format!("{v:.digits$}"));
        let fastest = side.seconds.iter().copied().reduce(f64::min);
        let (median, cpu) = (median(&side.seconds), side.cpu());
        writeln!(
            f,
            "{name:<16}{:>10}{:>10}{:>10}{:>10}{:>10}",
            shown(median, 3),
            shown(fastest, 3),
            shown(cpu, 3),
            shown(side.peak_mib, 0),
            shown(side.start_mib, 0),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, features } = &self.machine;
        writeln!(f, "{} {} on {cpu} ({})", self.method, self.preset.name(), features.join(", "))?;
        let load = |load: Option<[f64; 3]>| load.map_or_else(|| "?".into(), |[one, ..]| format!("{one:.2}"));
        let steps = self.ours.values().next().map_or(0, |side| side.seconds.len());
        let (before, after) = (load(self.load_before), load(self.load_after));
        writeln!(
            f,
            "{} threads, {steps} steps, {} at a time; load {before} before, {after} after",
            self.threads, self.turn
        )?;
        for agreement in &self.agreements {
            let Agreement { name, ours, peer } = agreement;
            writeln!(f, "{name} loss: ours {ours:.6}, PyTorch {peer:.6}, {:.1e} apart", agreement.relative())?;
        }
        writeln!(
            f,
            "\n{:<16}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "median s", "fastest s", "CPU s", "peak MiB", "at start"
        )?;
        for precision in Precision::ALL {
            match self.ours.get(&precision) {
                Some(side) => self.row(f, &format!("ours {}", precision.name()), side)?,
                None => writeln!(f, "ours {:<11}left out: {}", precision.name(), precision.kernels().explain())?,
            }
        }
        for precision in PeerPrecision::ALL {
            match self.peer.get(&precision) {
                Some(side) => self.row(f, &format!("PyTorch {}", precision.name()), side)?,
                None => writeln!(f, "PyTorch {:<8}left out: this processor has no products for it", precision.name())?,
            }
        }
        writeln!(f)?;
        for precision in self.ours.keys().copied() {
            let shown = |ratio: Option<f64>| ratio.map_or_else(|| "?".into(), |ratio| format!("{ratio:.2}"));
            writeln!(
                f,
                "ours {} / PyTorch {}: time {}, CPU {}, memory {}",
                precision.name(),
                precision.peer().name(),
                shown(self.ratio(precision, |side| median(&side.seconds))),
                shown(self.ratio(precision, Side::cpu)),
                shown(self.ratio(precision, |side| side.peak_mib)),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Agreement, Report, Side, median};
    use crate::{Machine, PeerPrecision, Precision, Preset};
    use serde_json::Value;

    fn side(seconds: &[f64], cpu: &[f64], peak: f64) -> Side {
        let (seconds, cpu_seconds) = (seconds.to_vec(), cpu.to_vec());
        Side { seconds, cpu_seconds, peak_mib: Some(peak), ..Side::default() }
    }

    fn report() -> Report {
        Report {
            method: "capi".into(),
            preset: Preset::Tiny,
            threads: 2,
            warmup: 1,
            turn: 1,
            machine: Machine { cpu: "abacus".into(), features: vec!["beads"] },
            load_before: Some([0.25, 0.5, 1.0]),
            load_after: None,
            ours: [(Precision::F32, side(&[3.0, 1.0, 2.0], &[3.0, 5.0], 300.0))].into(),
            peer: [(PeerPrecision::F32, side(&[4.0, 4.0, 9.0], &[8.0], 600.0))].into(),
            agreements: vec![Agreement { name: "prediction".into(), ours: 9.0, peer: 9.0 }],
        }
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!((median(&[7.0]), median(&[])), (Some(7.0), None));
    }

    #[test]
    fn ratios_are_ours_over_the_peer() {
        let json = report().json();
        assert_eq!(json["ratios"]["f32"], 0.5);
        assert_eq!(json["cpu_ratios"]["f32"], 0.5);
        assert_eq!(json["memory_ratios"]["f32"], 0.5);
        assert_eq!(json["ours"]["f32"]["seconds_min"], 1.0);
    }

    #[test]
    fn what_was_not_measured_is_null() {
        let json = report().json();
        for key in ["bf16", "f32x3"] {
            assert_eq!(json["ratios"].get(key), Some(&Value::Null), "{key}");
        }
        assert_eq!((&json["peer"]["bf16"], &json["load_after"]), (&Value::Null, &Value::Null));
        let empty = Report { peer: [].into(), ..report() };
        assert_eq!(empty.json()["ratios"]["f32"], Value::Null);
    }

    #[test]
    fn the_text_says_the_same() {
        let text = report().to_string();
        for part in ["abacus (beads)", "load 0.25 before, ? after", "time 0.50, CPU 0.50, memory 0.50", "left out"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn losses_agree_within_rounding_only() {
        let agreement = |ours, peer| Agreement { name: "prediction".into(), ours, peer }.checked();
        assert!(agreement(9.0005, 9.0).is_ok());
        let message = agreement(9.01, 9.0).unwrap_err().to_string();
        assert!(message.contains("ours 9.01, PyTorch 9:") && message.contains("prediction"), "{message}");
        assert!(agreement(f64::NAN, 9.0).is_err() && agreement(9.0, f64::NAN).is_err());
        assert!(agreement(0.0, 0.0).is_ok());
    }
}
