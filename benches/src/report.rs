//! What a comparison gives: medians, ratios, and the form they are written in.

use crate::precision::{PeerPrecision, Precision, RATIO_KEYS};
use crate::protocol::{Losses, Reply};
use crate::{Conditions, Preset};
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

    /// Median wall seconds of a step.
    fn median(&self) -> Option<f64> {
        median(&self.seconds)
    }

    /// Largest resident memory, in MiB.
    fn memory(&self) -> Option<f64> {
        self.peak_mib
    }

    /// One line under [`heading`], for a name of at most `width` letters.
    pub(crate) fn row(&self, name: &str, width: usize) -> String {
        let shown = |value: Option<f64>, digits| value.map_or_else(|| "?".into(), |v| format!("{v:.digits$}"));
        let fastest = self.seconds.iter().copied().reduce(f64::min);
        format!(
            "{name:<width$}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
            shown(self.median(), 3),
            shown(fastest, 3),
            shown(self.cpu(), 3),
            shown(self.memory(), 0),
            shown(self.start_mib, 0),
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "version": self.version,
            "seconds_median": self.median(),
            "seconds_min": self.seconds.iter().copied().reduce(f64::min),
            "seconds": self.seconds,
            "cpu_seconds_per_step": self.cpu(),
            "peak_memory_mib": self.peak_mib,
            "start_memory_mib": self.start_mib,
            "parameters": self.parameters,
        })
    }
}

/// What stands above rows of sides with names of at most `width` letters.
pub(crate) fn heading(width: usize) -> String {
    format!("{:<width$}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "", "median s", "fastest s", "CPU s", "peak MiB", "at start")
}

/// A figure of a side.
type Figure = fn(&Side) -> Option<f64>;

/// What sides are compared by, under the keys of their ratios: time, CPU time and memory.
pub(crate) const FIGURES: [(&str, Figure); 3] =
    [("ratios", Side::median), ("cpu_ratios", Side::cpu), ("memory_ratios", Side::memory)];

/// A figure of one side over that of the other; `None` where either has none.
pub(crate) fn ratio(figure: Figure, side: &Side, other: &Side) -> Option<f64> {
    Some(figure(side)? / figure(other)?)
}

/// Ratios of [`FIGURES`] in words.
pub(crate) fn ratios_in_words(name: &str, [time, cpu, memory]: [Option<f64>; 3]) -> String {
    let shown = |ratio: Option<f64>| ratio.map_or_else(|| "?".into(), |ratio| format!("{ratio:.2}"));
    format!("{name}: time {}, CPU {}, memory {}\n", shown(time), shown(cpu), shown(memory))
}

/// One loss on both sides, same weights and batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Name of the loss.
    pub name: String,
    /// Ours, or the first side's.
    pub ours: f64,
    /// The peer's: the other side's.
    pub peer: f64,
}

impl Agreement {
    /// The difference, relative to the peer's.
    #[must_use]
    pub fn relative(&self) -> f64 {
        (self.ours - self.peer).abs() / self.peer.abs().max(f64::MIN_POSITIVE)
    }

    /// Refuses losses that are further apart than rounding explains, and ones that are not numbers.
    fn checked(self, sides: [&str; 2]) -> Result<Self> {
        let apart = self.relative();
        if apart <= TOLERANCE {
            return Ok(self);
        }
        bail!("{}: {apart:.1e} apart, at most {TOLERANCE:.0e} is allowed", self.shown(sides))
    }

    /// Both values, of sides with these names.
    fn shown(&self, [first, second]: [&str; 2]) -> String {
        let Self { name, ours, peer } = self;
        format!("{name} loss: {first} {ours:.6}, {second} {peer:.6}")
    }

    /// One line of a report.
    pub(crate) fn line(&self, sides: [&str; 2]) -> String {
        format!("{}, {:.1e} apart\n", self.shown(sides), self.relative())
    }
}

/// The losses of both sides, one by one, if they agree.
pub(crate) fn agree(sides: [&str; 2], ours: &Losses, peer: &Losses) -> Result<Vec<Agreement>> {
    if !ours.keys().eq(peer.keys()) {
        let [first, second] = sides;
        bail!("{first} has the losses {:?}, {second} {:?}", ours.keys(), peer.keys());
    }
    let pairs = ours.iter().zip(peer.values());
    pairs
        .map(|((name, ours), peer)| Agreement { name: name.clone(), ours: *ours, peer: *peer }.checked(sides))
        .collect()
}

/// Losses by name, both and how far they are apart.
pub(crate) fn losses_json(agreements: &[Agreement]) -> Value {
    let losses = agreements.iter().map(|agreement| {
        let Agreement { name, ours, peer } = agreement;
        (name.clone(), json!({ "ours": ours, "peer": peer, "relative": agreement.relative() }))
    });
    losses.collect::<Map<_, _>>().into()
}

/// A comparison with PyTorch.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which method.
    pub method: String,
    /// At which size.
    pub preset: Preset,
    /// Under which conditions.
    pub conditions: Conditions,
    /// Ours.
    pub ours: BTreeMap<Precision, Side>,
    /// The peer's.
    pub peer: BTreeMap<PeerPrecision, Side>,
    /// Losses before anything moved.
    pub agreements: Vec<Agreement>,
}

impl Report {
    /// Ours over the peer's, of a figure; `None` where either side has none.
    fn ratio(&self, precision: Precision, figure: Figure) -> Option<f64> {
        ratio(figure, self.ours.get(&precision)?, self.peer.get(&precision.peer())?)
    }

    /// The ratio of every precision there is a name for, `null` where there is none.
    fn ratios(&self, figure: Figure) -> Value {
        let named = |key: &&str| Precision::ALL.into_iter().find(|precision| precision.name() == *key);
        let value = |key| json!(named(&key).and_then(|precision| self.ratio(precision, figure)));
        RATIO_KEYS.iter().map(|key| ((*key).to_owned(), value(*key))).collect::<Map<_, _>>().into()
    }

    /// The whole report. `ratios` is wall time, ratio of medians, ours over the peer's.
    #[must_use]
    pub fn json(&self) -> Value {
        let ours: Map<_, _> = self.ours.iter().map(|(p, side)| (p.name().to_owned(), side.json())).collect();
        let peer = PeerPrecision::ALL.map(|p| (p.name().to_owned(), json!(self.peer.get(&p).map(Side::json))));
        let mut report = self.conditions.json();
        report.extend(FIGURES.map(|(key, figure)| (key.to_owned(), self.ratios(figure))));
        let fields = [
            ("method", json!(self.method)),
            ("preset", json!(self.preset.name())),
            ("ours", ours.into()),
            ("peer", peer.into_iter().collect::<Map<_, _>>().into()),
            ("losses", losses_json(&self.agreements)),
        ];
        report.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        report.into()
    }
}

/// Letters of the longest name of a side.
const NAMES: usize = 16;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.ours.values().next().map_or(0, |side| side.seconds.len());
        f.write_str(&self.conditions.text(&format!("{} {}", self.method, self.preset.name()), steps))?;
        for agreement in &self.agreements {
            f.write_str(&agreement.line(["ours", "PyTorch"]))?;
        }
        write!(f, "\n{}", heading(NAMES))?;
        for precision in Precision::ALL {
            match self.ours.get(&precision) {
                Some(side) => f.write_str(&side.row(&format!("ours {}", precision.name()), NAMES))?,
                None => writeln!(f, "ours {:<11}left out: {}", precision.name(), precision.kernels().explain())?,
            }
        }
        for precision in PeerPrecision::ALL {
            match self.peer.get(&precision) {
                Some(side) => f.write_str(&side.row(&format!("PyTorch {}", precision.name()), NAMES))?,
                None => writeln!(f, "PyTorch {:<8}left out: this processor has no products for it", precision.name())?,
            }
        }
        writeln!(f)?;
        for precision in self.ours.keys().copied() {
            let name = format!("ours {} / PyTorch {}", precision.name(), precision.peer().name());
            f.write_str(&ratios_in_words(&name, FIGURES.map(|(_, figure)| self.ratio(precision, figure))))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Agreement, Report, Side, agree, median};
    use crate::protocol::Losses;
    use crate::{Conditions, Machine, PeerPrecision, Precision, Preset};
    use serde_json::Value;

    fn side(seconds: &[f64], cpu: &[f64], peak: f64) -> Side {
        let (seconds, cpu_seconds) = (seconds.to_vec(), cpu.to_vec());
        Side { seconds, cpu_seconds, peak_mib: Some(peak), ..Side::default() }
    }

    fn conditions() -> Conditions {
        let machine = Machine { cpu: "abacus".into(), features: vec!["beads"] };
        Conditions { threads: 2, warmup: 1, turn: 1, machine, load_before: Some([0.25, 0.5, 1.0]), load_after: None }
    }

    fn report() -> Report {
        Report {
            method: "capi".into(),
            preset: Preset::Tiny,
            conditions: conditions(),
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
        let agreement =
            |ours, peer| Agreement { name: "prediction".into(), ours, peer }.checked(["ours", "the abacus"]);
        assert!(agreement(9.0005, 9.0).is_ok());
        let message = agreement(9.01, 9.0).unwrap_err().to_string();
        assert!(message.contains("ours 9.01") && message.contains("the abacus 9.0"), "{message}");
        assert!(message.contains("prediction"), "{message}");
        assert!(agreement(f64::NAN, 9.0).is_err() && agreement(9.0, f64::NAN).is_err());
        assert!(agreement(0.0, 0.0).is_ok());
    }

    #[test]
    fn losses_are_paired_by_name() {
        let losses = |prediction, clustering| -> Losses {
            [("prediction".to_owned(), prediction), ("clustering".to_owned(), clustering)].into()
        };
        let agree = |ours, peer: &Losses| agree(["ours", "the abacus"], &ours, peer);
        let agreements = agree(losses(9.5, 20.0), &losses(9.5, 20.001)).unwrap();
        assert_eq!(agreements.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["clustering", "prediction"]);
        assert_eq!((agreements[0].ours, agreements[0].peer), (20.0, 20.001));
        assert!(agree(losses(9.5, 20.0), &Losses::new()).is_err());
        assert!(agree(losses(9.5, 20.0), &losses(9.52, 20.0)).is_err());
    }
}
