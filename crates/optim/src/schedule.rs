//! Values that change over a run: learning rates and momenta.

use occlude_settings::{ConfigError, Ruler, Span, require};

/// A schedule, unchecked: a straight line, then half a cosine wave. The defaults are CAPI's learning rate. A recipe's
/// file has its own keys (`method.optimizer`); its room fills this in.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleConfig {
    /// Value at the first step of the warm-up.
    pub start: f64,
    /// Value at the last step of the warm-up (unless that is also its first) and at the first one after it.
    pub base: f64,
    /// Value the cosine aims at (and reaches where `truncate` is 1), and the value beyond the end.
    pub end: f64,
    /// Length of the straight line from `start` to `base`.
    pub warmup: Span,
    /// Length of a part before the warm-up where the value is 0.
    pub freeze: Span,
    /// Share of the cosine that is run; the rest is cut off, so that one with 0.8 ends near 0.0955 of `base`.
    pub truncate: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self::learning_rate(1e-3)
    }
}

impl ScheduleConfig {
    /// A learning rate that rises from 0 to `base` over a tenth of the run, then follows a truncated cosine.
    #[must_use]
    pub fn learning_rate(base: f64) -> Self {
        Self { start: 0.0, base, end: 0.0, warmup: Span::Percent(10.0), freeze: Span::Steps(0), truncate: 0.8 }
    }

    /// A teacher momentum that falls from 1 to `base` over a tenth of the run, then rises again towards 1.
    #[must_use]
    pub fn momentum(base: f64) -> Self {
        Self { start: 1.0, end: 1.0, ..Self::learning_rate(base) }
    }

    /// The schedule of a run of `ruler.total_steps` steps.
    ///
    /// # Errors
    /// A value that is not finite, a truncation outside (0, 1], a length that does not fit its unit, or a freeze and
    /// warm-up that are together longer than the run.
    pub fn check(&self, ruler: Ruler) -> Result<Schedule, ConfigError> {
        for (field, value) in [("start", self.start), ("base", self.base), ("final", self.end)] {
            require(field, value, "must be a finite number", |v| v.is_finite())?;
        }
        require("truncate", self.truncate, "must be above 0 and at most 1", |t| *t > 0.0 && *t <= 1.0)?;
        let freeze = self.freeze.steps("freeze", ruler)?;
        let warmup = self.warmup.steps("warmup", ruler)?;
        let total = ruler.total_steps;
        let allowed = format!("steps and a freeze of {freeze} steps must fit into the run of {total} steps");
        require("warmup", warmup, &allowed, |w| freeze.saturating_add(*w) <= total)?;
        let Self { start, base, end, truncate, .. } = *self;
        let steps = InSteps { start, base, end, freeze, warmup, total, truncate, closed: false };
        Ok(Schedule { form: Form::Steps(steps) })
    }
}

/// A checked schedule: one value for each step of a run, in f64. Kept as a formula; its values are those of the tables
/// of the public code.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    form: Form,
}

#[derive(Clone, Debug, PartialEq)]
enum Form {
    Steps(InSteps),
    Epochs { curve: InEpochs, steps_per_epoch: f64 },
}

/// A straight line, then half a cosine wave, in whole steps.
#[derive(Clone, Debug, PartialEq)]
struct InSteps {
    start: f64,
    base: f64,
    end: f64,
    freeze: u64,
    warmup: u64,
    total: u64,
    truncate: f64,
    /// Whether the cosine reaches its end at the last step, and not one step after it.
    closed: bool,
}

/// A curve over fractional epochs.
#[derive(Clone, Debug, PartialEq)]
enum InEpochs {
    LinearCosine { peak: f64, warmup: f64, end: f64 },
    Cosine { start: f64, end: f64, length: f64 },
    Wave { start: f64, end: f64, length: f64 },
}

impl Schedule {
    /// The same value at every step.
    #[must_use]
    pub fn constant(value: f64) -> Self {
        Self::closed(value, value, value, 0, u64::MAX)
    }

    /// A straight line from 0 to `base` over `warmup` steps, then half a cosine to 0 at step `total - 1`, both with their
    /// ends: the schedule of CAPI's linear and attentive probes.
    #[must_use]
    pub fn warmup_cosine(base: f64, warmup: u64, total: u64) -> Self {
        Self::closed(0.0, base, 0.0, warmup, total)
    }

    /// A straight line from 0 to `peak` over `warmup` epochs, then half a cosine that reaches 0 at epoch `end`, and 0 from
    /// there on. Epochs are fractions, `step / ruler.steps_per_epoch`; the run may be shorter than `end`.
    #[must_use]
    pub fn linear_cosine(peak: f64, warmup: f64, end: f64, ruler: Ruler) -> Self {
        Self::epochs(InEpochs::LinearCosine { peak, warmup, end }, ruler)
    }

    /// Half a cosine from `start` at epoch 0 to `end` at epoch `length`, and `end` from there on. Epochs are fractions.
    #[must_use]
    pub fn cosine(start: f64, end: f64, length: f64, ruler: Ruler) -> Self {
        Self::epochs(InEpochs::Cosine { start, end, length }, ruler)
    }

    /// As [`Schedule::cosine`], but the wave goes on after epoch `length`: a longer run swings back towards `start`.
    #[must_use]
    pub fn cosine_wave(start: f64, end: f64, length: f64, ruler: Ruler) -> Self {
        Self::epochs(InEpochs::Wave { start, end, length }, ruler)
    }

    fn closed(start: f64, base: f64, end: f64, warmup: u64, total: u64) -> Self {
        let steps = InSteps { start, base, end, freeze: 0, warmup, total, truncate: 1.0, closed: true };
        Self { form: Form::Steps(steps) }
    }

    fn epochs(curve: InEpochs, ruler: Ruler) -> Self {
        Self { form: Form::Epochs { curve, steps_per_epoch: ruler.steps_per_epoch } }
    }

    /// The value at `step` (0-based); beyond the end, the final value.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        match &self.form {
            Form::Steps(steps) => steps.at(step),
            Form::Epochs { curve, steps_per_epoch } => curve.at(step as f64 / steps_per_epoch),
        }
    }
}

impl InSteps {
    fn at(&self, step: u64) -> f64 {
        if step >= self.total {
            return self.end;
        }
        if step < self.freeze {
            return 0.0;
        }
        let step = step - self.freeze;
        if step < self.warmup {
            return line(self.start, self.base, step, self.warmup - 1);
        }
        let length = self.total - self.freeze - self.warmup;
        let last = if self.closed { length - 1 } else { length };
        let part = self.truncate * share(step - self.warmup, last);
        self.end + 0.5 * (self.base - self.end) * (1.0 + (std::f64::consts::PI * part).cos())
    }
}

impl InEpochs {
    fn at(&self, epoch: f64) -> f64 {
        match *self {
            Self::LinearCosine { peak, warmup, .. } if epoch < warmup => peak * epoch / warmup,
            Self::LinearCosine { end, .. } if epoch > end => 0.0,
            Self::LinearCosine { peak, warmup, end } => peak * falling(epoch - warmup, end - warmup),
            Self::Cosine { end, length, .. } if epoch > length => end,
            Self::Cosine { start, end, length } | Self::Wave { start, end, length } => {
                end - falling(epoch, length) * (end - start)
            }
        }
    }
}

/// Half a cosine wave from 1 at 0 to 0 at `length`; 1 where there is no length.
fn falling(at: f64, length: f64) -> f64 {
    let part = if length > 0.0 { at / length } else { 0.0 };
    0.5 * (1.0 + (std::f64::consts::PI * part).cos())
}

/// `i` of `last`; 0 where there is one value only.
fn share(i: u64, last: u64) -> f64 {
    if last == 0 { 0.0 } else { i as f64 / last as f64 }
}

/// Value `i` of a straight line whose value 0 is `from` and whose value `last` is exactly `to`.
fn line(from: f64, to: f64, i: u64, last: u64) -> f64 {
    if i == last && last > 0 { to } else { from + (to - from) * share(i, last) }
}

#[cfg(test)]
mod tests {
    use super::{Schedule, ScheduleConfig};
    use occlude_golden::set;
    use occlude_settings::{Ruler, Span};
    use serde_json::Value;

    fn ruler(total_steps: u64) -> Ruler {
        Ruler { steps_per_epoch: 10.0, total_steps }
    }

    /// The schedule with the arguments of the reference.
    fn from_arguments(arguments: &Value) -> Schedule {
        let number = |name: &str, default: f64| arguments.get(name).map_or(default, |v| v.as_f64().unwrap());
        let steps = |name: &str| Span::Steps(arguments.get(name).map_or(0, |v| v.as_u64().unwrap()));
        let config = ScheduleConfig {
            start: number("start_warmup_value", 0.0),
            base: number("base_value", f64::NAN),
            end: number("final_value", f64::NAN),
            warmup: steps("warmup_iters"),
            freeze: steps("freeze_iters"),
            truncate: number("truncate_cos", 1.0),
        };
        config.check(ruler(arguments["total_iters"].as_u64().unwrap())).unwrap()
    }

    #[test]
    fn golden_capi_schedules() {
        let (Some(tables), Some(config)) = (set("capi").tensors("schedules"), set("capi").config()) else { return };
        let mut schedules: Vec<(String, Schedule)> = config["schedules_file_arguments"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, arguments)| (name.clone(), from_arguments(arguments)))
            .collect();
        assert!(!schedules.is_empty());
        if let Some(steps) = tables.get("probe_lr_factor.steps") {
            // The probes' schedule has no arguments there: a tenth of warm-up, and its last step is listed.
            let total = *steps.to_vec1::<i64>().unwrap().last().unwrap() as u64 + 1;
            schedules.push(("probe_lr_factor".into(), Schedule::warmup_cosine(1.0, total / 10, total)));
        }
        for (name, schedule) in schedules {
            let steps: Vec<i64> = tables[&format!("{name}.steps")].to_vec1().unwrap();
            let values: Vec<f64> = tables[&format!("{name}.values")].to_vec1().unwrap();
            let scale = values.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
            for (step, value) in steps.iter().zip(values) {
                let got = schedule.at(*step as u64);
                assert!((got - value).abs() <= 1e-12 * scale, "{name} at {step}: {got} against {value}");
            }
        }
    }

    #[test]
    fn golden_moca_schedules() {
        let Some(recipes) = set("moca").json("schedules.json") else { return };
        let recipes = recipes.as_object().unwrap();
        assert!(!recipes.is_empty());
        for (name, recipe) in recipes {
            let number = |field: &str| recipe["config"][field].as_f64().unwrap();
            let length = number("max_epochs");
            let end = (number("mul") * length).trunc();
            assert_eq!(end, number("lr_epochs"), "{name}");
            let rows = recipe["rows"].as_array().unwrap();
            assert!(!rows.is_empty());
            for row in rows {
                let value = |field: &str| row[field].as_f64().unwrap();
                // Step 1 of a run whose first epoch ends there lies at this epoch.
                let epoch = value("epoch_float");
                let (step, steps_per_epoch) = if epoch > 0.0 { (1, 1.0 / epoch) } else { (0, 1.0) };
                let ruler = Ruler { steps_per_epoch, total_steps: 2 };
                let (decay, last_decay) = (number("wd"), number("wd_end"));
                for (field, schedule) in [
                    ("lr", Schedule::linear_cosine(number("lr"), number("warmup"), end, ruler)),
                    ("lr_wgen", Schedule::constant(number("lr_wgen"))),
                    ("weight_decay", Schedule::cosine_wave(decay, last_decay, length, ruler)),
                    ("weight_decay_wgen", Schedule::constant(decay)),
                    ("teacher_momentum", Schedule::cosine(number("alpha"), 1.0, length, ruler)),
                ] {
                    let (got, expected) = (schedule.at(step), value(field));
                    let scale = rows.iter().fold(0.0_f64, |most, row| most.max(row[field].as_f64().unwrap()));
                    let close = (got - expected).abs() <= 1e-12 * scale;
                    assert!(close, "{name}: {field} at {epoch}: {got} against {expected}");
                }
            }
        }
    }

    #[test]
    fn curves_over_epochs_hold_their_ends_for_any_length() {
        let ruler = Ruler { steps_per_epoch: 2.5, total_steps: 100 };
        let rate = Schedule::linear_cosine(0.5, 4.0, 12.0, ruler);
        assert_eq!([0, 5, 10, 31, 1_000].map(|step| rate.at(step)), [0.0, 0.25, 0.5, 0.0, 0.0]);
        assert!((rate.at(20) - 0.25).abs() < 1e-15 && rate.at(30) < 1e-15);
        assert_eq!(
            Schedule::linear_cosine(0.5, 0.0, 12.0, ruler).at(0),
            0.5,
            "without a warm-up the cosine starts at once"
        );
        let momentum = Schedule::cosine(0.9, 1.0, 8.0, ruler);
        assert_eq!([20, 21, 1_000].map(|step| momentum.at(step)), [1.0; 3]);
        let wave = Schedule::cosine_wave(0.1, 0.2, 8.0, ruler);
        assert!((wave.at(40) - 0.1).abs() < 1e-15, "the wave is back where it started after twice its length");
        for schedule in [Schedule::linear_cosine(0.5, 4.0, 4.0, ruler), Schedule::cosine_wave(0.1, 0.2, 0.0, ruler)] {
            assert!((0..40).all(|step| schedule.at(step).is_finite()));
        }
    }

    #[test]
    fn ends_of_every_part_are_exact() {
        let config = ScheduleConfig { warmup: Span::Steps(4), freeze: Span::Steps(2), ..ScheduleConfig::default() };
        let schedule = config.check(ruler(30)).unwrap();
        let values: Vec<f64> = [0, 1, 2, 5, 6, 30, 1_000].into_iter().map(|step| schedule.at(step)).collect();
        assert_eq!(values, [0.0, 0.0, 0.0, 1e-3, 1e-3, 0.0, 0.0]);
        let momentum = ScheduleConfig::momentum(0.99).check(ruler(40)).unwrap();
        assert_eq!([0, 3, 4, 40].map(|step| momentum.at(step)), [1.0, 0.99, 0.99, 1.0]);
    }

    #[test]
    fn a_constant_is_the_same_at_every_step() {
        let constant = Schedule::constant(0.7);
        assert_eq!([0, 1, u64::MAX].map(|step| constant.at(step)), [0.7; 3]);
    }

    #[test]
    fn the_probes_schedule_includes_both_ends_of_both_parts() {
        let schedule = Schedule::warmup_cosine(1.0, 5, 50);
        assert_eq!([0, 2, 4, 5].map(|step| schedule.at(step)), [0.0, 0.5, 1.0, 1.0]);
        assert!(schedule.at(49).abs() < 1e-15);
        assert!((5..49).all(|step| schedule.at(step) > schedule.at(step + 1)));
        assert_eq!(Schedule::warmup_cosine(1.0, 0, 1).at(0), 1.0, "a single step is not lost to the warm-up");
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for (warmup, total) in [(0, 1), (1, 1), (1, 2), (2, 2), (0, 0)] {
            let config = ScheduleConfig { warmup: Span::Steps(warmup), ..ScheduleConfig::default() };
            let schedule = config.check(ruler(total)).unwrap();
            let probe = Schedule::warmup_cosine(1.0, warmup, total);
            assert!((0..4).all(|step| schedule.at(step).is_finite() && probe.at(step).is_finite()));
        }
    }

    #[test]
    fn settings_are_refused_by_name() {
        let refused = |config: ScheduleConfig| config.check(ruler(100)).unwrap_err().to_string();
        let base = ScheduleConfig::default;
        assert_eq!(
            refused(ScheduleConfig { warmup: Span::Steps(90), freeze: Span::Steps(20), ..base() }),
            "warmup = 90: steps and a freeze of 20 steps must fit into the run of 100 steps"
        );
        assert!(refused(ScheduleConfig { end: f64::INFINITY, ..base() }).starts_with("final = inf"));
        assert!(refused(ScheduleConfig { truncate: f64::NAN, ..base() }).starts_with("truncate = NaN"));
        assert!(refused(ScheduleConfig { warmup: Span::Percent(120.0), ..base() }).starts_with("warmup.percent"));
    }
}
