//! Two presets of ours, step by step in turn: what one costs beside the other.

use crate::protocol::{Losses, Request};
use crate::report::{Agreement, FIGURES, Side, agree, heading, losses_json, ratio, ratios_in_words};
use crate::turns::{Runner, alternate, our_server};
use crate::{Conditions, Precision, Preset, StepBench};
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;

/// A comparison of two presets of one method, in one precision. Where they are two forms of one step, told by ranks and by
/// tables of pairs, their losses must be equal up to rounding.
#[derive(Clone, Debug)]
pub struct Against {
    /// What is measured.
    pub bench: StepBench,
    /// The preset that it is compared with.
    pub other: Preset,
    /// This very program, able to `--serve`.
    pub ours: PathBuf,
    /// Steps of one side before the other one's turn.
    pub turn: usize,
}

/// What such a comparison gives.
#[derive(Clone, Debug)]
pub struct AgainstReport {
    method: String,
    precision: Precision,
    conditions: Conditions,
    /// The preset that was asked for, then the other one.
    sides: [(Preset, Side); 2],
    /// Losses before anything moved, of two forms of one step.
    agreements: Vec<Agreement>,
}

impl Against {
    /// Checks the losses where they must be equal, then times both presets, a turn each at a time.
    ///
    /// # Errors
    /// A preset of another method, a side that fails, losses that differ.
    pub fn run(&self) -> Result<AgainstReport> {
        let StepBench { method, preset, precision, warmup, steps, .. } = &self.bench;
        let presets = [*preset, self.other];
        presets.iter().try_for_each(|preset| preset.check(method))?;
        let conditions = Conditions::before(&self.bench, self.turn);
        let agreements = self.agreements(presets)?;
        let [mut first, mut second] = [self.runner(presets[0])?, self.runner(presets[1])?];
        alternate(vec![&mut first, &mut second], *warmup, *steps, self.turn)?;
        Ok(AgainstReport {
            method: method.clone(),
            precision: *precision,
            conditions: conditions.after(),
            sides: [(presets[0], first.side), (presets[1], second.side)],
            agreements,
        })
    }

    fn runner(&self, preset: Preset) -> Result<Runner> {
        let bench = StepBench { preset, ..self.bench.clone() };
        Ok(Runner::new(our_server(preset.name(), &self.ours, &bench)?))
    }

    fn agreements(&self, presets: [Preset; 2]) -> Result<Vec<Agreement>> {
        let [first, second] = presets;
        if first.by_ranks() != second.by_ranks() {
            return Ok(Vec::new());
        }
        // In processes of their own: what looking takes is no part of a step's memory.
        let losses = |preset| -> Result<Losses> { Ok(self.runner(preset)?.server.ask(&Request::Loss)?.losses) };
        agree(presets.map(Preset::name), &losses(first)?, &losses(second)?)
    }
}

impl AgainstReport {
    /// Ratios of time, CPU time and memory, the first preset over the other one.
    fn ratios(&self) -> [Option<f64>; 3] {
        let [(_, first), (_, second)] = &self.sides;
        FIGURES.map(|(_, figure)| ratio(figure, first, second))
    }

    fn names(&self) -> [&'static str; 2] {
        [self.sides[0].0.name(), self.sides[1].0.name()]
    }

    /// The whole report. Ratios are the preset's over that of `against`; `ratios` is wall time, of medians.
    #[must_use]
    pub fn json(&self) -> Value {
        let ([preset, against], precision) = (self.names(), self.precision.name());
        let keys = FIGURES.map(|(key, _)| key.to_owned());
        let mut report = self.conditions.json();
        report.extend(keys.into_iter().zip(self.ratios().map(|ratio| json!({ precision: ratio }))));
        let fields = [
            ("method", json!(self.method)),
            ("preset", json!(preset)),
            ("against", json!(against)),
            ("ours", json!({ precision: self.sides[0].1.json() })),
            ("other", json!({ precision: self.sides[1].1.json() })),
            ("losses", losses_json(&self.agreements)),
        ];
        report.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        report.into()
    }
}

/// Letters of the longest name of a preset.
const NAMES: usize = 20;

impl fmt::Display for AgainstReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (names, precision) = (self.names(), self.precision.kernels().explain());
        let steps = self.sides[0].1.seconds.len();
        f.write_str(&self.conditions.text(&format!("{} {precision}", self.method), steps))?;
        for agreement in &self.agreements {
            f.write_str(&agreement.line(names))?;
        }
        write!(f, "\n{}", heading(NAMES))?;
        for (preset, side) in &self.sides {
            f.write_str(&side.row(preset.name(), NAMES))?;
        }
        write!(f, "\n{}", ratios_in_words(&names.join(" / "), self.ratios()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Against, AgainstReport};
    use crate::report::Side;
    use crate::{Conditions, Machine, Precision, Preset, StepBench};

    fn report() -> AgainstReport {
        let side = |seconds: f64, peak| Side {
            seconds: vec![seconds; 3],
            cpu_seconds: vec![2.0 * seconds],
            peak_mib: Some(peak),
            ..Side::default()
        };
        let machine = Machine { cpu: "abacus".into(), features: Vec::new() };
        AgainstReport {
            method: "randsac".into(),
            precision: Precision::F32,
            conditions: Conditions { threads: 2, warmup: 1, turn: 1, machine, load_before: None, load_after: None },
            sides: [(Preset::Pixels, side(1.0, 300.0)), (Preset::PixelsDense, side(2.0, 1200.0))],
            agreements: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_the_presets_over_the_other() {
        let json = report().json();
        let ratios = ["ratios", "cpu_ratios", "memory_ratios"].map(|key| json[key]["f32"].as_f64());
        assert_eq!(ratios, [Some(0.5), Some(0.5), Some(0.25)]);
        assert_eq!((json["preset"].as_str(), json["against"].as_str()), (Some("pixels"), Some("pixels-dense")));
        assert_eq!(json["ours"]["f32"]["seconds_median"], 1.0);
        assert_eq!(json["threads"], 2);
        assert_eq!(json["other"]["f32"]["peak_memory_mib"], 1200.0);
    }

    #[test]
    fn the_text_says_the_same() {
        let text = report().to_string();
        for part in ["randsac", "abacus", "3 steps", "pixels / pixels-dense: time 0.50, CPU 0.50, memory 0.25"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_preset_of_another_method_is_refused_before_anything_starts() {
        let (method, preset, precision) = ("moca".to_owned(), Preset::VitS, Precision::F32);
        let bench = StepBench { method, preset, precision, steps: 1, warmup: 0, threads: 1 };
        let error = Against { bench, other: Preset::Pixels, ours: "no-such-program".into(), turn: 1 }.run();
        let error = error.unwrap_err().to_string();
        assert!(error.contains("pixels") && error.contains("randsac"), "{error}");
    }
}
