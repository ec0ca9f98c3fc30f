//! The optimizer against AdamW written out in f64, and what it promises around a step.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use occlude_kernels::{Factors, Gradients, Init, Param, ParamStore, StateDict};
use occlude_optim::{Ema, Optimizer, ParamGroup, Schedule, ScheduleConfig, StepReport};
use occlude_random::{Streams, unit};
use occlude_settings::{Ruler, Span};

const FACTORS: [(&str, Factors); 3] =
    [("plain", Factors::ONE), ("bias", Factors::NO_DECAY), ("slow", Factors { lr: 0.2, wd: 0.5 })];

fn store(seed: u64, dtype: DType) -> ParamStore {
    let mut store = ParamStore::trainable(Streams::new(seed), dtype, &Device::Cpu);
    let mut root = store.root();
    root.constant("table", &[4], &Init::Normal { std: 1.0 }).unwrap();
    for (name, factors) in FACTORS {
        root.trained(name, &[5, 3], &Init::Normal { std: 1.0 }, factors).unwrap();
    }
    store
}

fn lr() -> Schedule {
    Schedule::warmup_cosine(0.05, 3, 6)
}

fn momentum() -> Schedule {
    let config = ScheduleConfig { start: 0.9, base: 0.7, warmup: Span::Steps(3), ..ScheduleConfig::momentum(0.7) };
    config.check(Ruler { steps_per_epoch: 1.0, total_steps: 6 }).unwrap()
}

fn group(student: &ParamStore, teacher: &ParamStore) -> ParamGroup {
    let ema = Ema { averages: teacher.params().to_vec(), momentum: momentum() };
    ParamGroup { ema: Some(ema), ..ParamGroup::adamw("main", student.params(), lr()) }
}

/// Gradients of `step` for every trained parameter, the same in every run.
fn gradients(store: &ParamStore, step: u64) -> Gradients {
    let mut gradients = Gradients::default();
    for (index, param) in store.trained().enumerate() {
        let mut stream = Streams::new(9).stream("gradient", step, index as u64);
        let values: Vec<f64> = (0..param.tensor.elem_count()).map(|_| unit(&mut stream) - 0.5).collect();
        let tensor = Tensor::from_vec(values, param.tensor.dims(), &Device::Cpu).unwrap();
        gradients.accumulate(param.tensor.id(), tensor.to_dtype(param.tensor.dtype()).unwrap()).unwrap();
    }
    gradients
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn all_values(params: &[Param]) -> Vec<Vec<f64>> {
    params.iter().map(|param| values(&param.tensor)).collect()
}

fn copied(state: &StateDict) -> StateDict {
    state.iter().map(|(name, tensor)| (name.clone(), tensor.copy().unwrap())).collect()
}

/// AdamW and the average, written out.
struct Plain {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    average: Vec<f64>,
    factors: Factors,
}

impl Plain {
    fn step(&mut self, gradient: &[f64], scale: f64, step: u64) {
        let (lr, wd) = (lr().at(step) * self.factors.lr, 0.1 * self.factors.wd);
        let (t, ema) = ((step + 1) as i32, momentum().at(step));
        for i in 0..self.p.len() {
            let g = gradient[i] * scale;
            self.m[i] = 0.9 * self.m[i] + 0.1 * g;
            self.v[i] = 0.95 * self.v[i] + 0.05 * g * g;
            let (m, v) = (self.m[i] / (1.0 - 0.9_f64.powi(t)), self.v[i] / (1.0 - 0.95_f64.powi(t)));
            self.p[i] -= lr * wd * self.p[i];
            self.p[i] -= lr * m / (v.sqrt() + 1e-8);
            self.average[i] = ema * self.average[i] + (1.0 - ema) * self.p[i];
        }
    }
}

/// Five steps of the optimizer and of the written-out form, compared after each.
fn compare(dtype: DType, clip: Option<f64>, tolerance: f64) -> Vec<StepReport> {
    let (student, teacher) = (store(1, dtype), store(2, dtype));
    let mut optimizer = Optimizer::new(vec![group(&student, &teacher)], clip).unwrap();
    let mut plain: Vec<Plain> = FACTORS
        .iter()
        .map(|(name, factors)| {
            let (p, average) = (values(student.get(name).unwrap()), values(teacher.get(name).unwrap()));
            Plain { m: vec![0.0; p.len()], v: vec![0.0; p.len()], p, average, factors: *factors }
        })
        .collect();
    let mut reports = Vec::new();
    for step in 0..5 {
        let gradients = gradients(&student, step);
        let by_name = |name: &str| values(gradients.get(student.get(name).unwrap()).unwrap());
        let norm = FACTORS.iter().flat_map(|(name, _)| by_name(name)).map(|g| g * g).sum::<f64>().sqrt();
        let scale = clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        reports.push(optimizer.step(&gradients, step).unwrap());
        for ((name, _), plain) in FACTORS.iter().zip(&mut plain) {
            plain.step(&by_name(name), scale, step);
            for (got, expected) in [(&student, &plain.p), (&teacher, &plain.average)] {
                for (a, b) in values(got.get(name).unwrap()).iter().zip(expected) {
                    assert!((a - b).abs() <= tolerance, "{name} after step {step}: {a} against {b}");
                }
            }
        }
    }
    reports
}

#[test]
fn steps_are_adamw_with_factors_and_averages() {
    compare(DType::F64, None, 1e-14);
    let reports = compare(DType::F32, None, 1e-6);
    assert_eq!(
        reports[2],
        StepReport { grad_norm: None, lrs: vec![("main", lr().at(2))], momenta: vec![("main", momentum().at(2))] }
    );
}

#[test]
fn clipping_scales_all_gradients_by_one_factor() {
    let clipped = compare(DType::F64, Some(0.3), 1e-14);
    let norm = clipped[0].grad_norm.unwrap();
    assert!(norm > 0.3, "the test must clip: {norm}");
    let loose = compare(DType::F64, Some(1e3), 1e-14);
    assert_eq!(loose[0].grad_norm, Some(norm), "the norm is of the gradients as given");
}

#[test]
fn a_constant_is_averaged_and_equal_constants_stay_equal() {
    let (student, teacher) = (store(1, DType::F32), store(2, DType::F32));
    let before = [values(student.get("table").unwrap()), values(teacher.get("table").unwrap())];
    let mut optimizer = Optimizer::new(vec![group(&student, &teacher)], None).unwrap();
    optimizer.step(&gradients(&student, 0), 0).unwrap();
    let after = [values(student.get("table").unwrap()), values(teacher.get("table").unwrap())];
    assert_eq!(after[0], before[0]);
    for i in 0..4 {
        assert!((after[1][i] - (0.9 * before[1][i] + 0.1 * before[0][i])).abs() < 1e-6);
    }
    teacher.load(&student.state()).unwrap();
    for step in 1..50 {
        optimizer.step(&gradients(&student, step), step).unwrap();
    }
    assert_eq!(values(teacher.get("table").unwrap()), before[0]);
}

#[test]
fn a_resumed_run_is_equal_bit_for_bit() {
    let straight = {
        let (student, teacher) = (store(1, DType::F32), store(2, DType::F32));
        let mut optimizer = Optimizer::new(vec![group(&student, &teacher)], Some(0.5)).unwrap();
        (0..6).for_each(|step| drop(optimizer.step(&gradients(&student, step), step).unwrap()));
        (all_values(student.params()), all_values(teacher.params()))
    };
    let saved = {
        let (student, teacher) = (store(1, DType::F32), store(2, DType::F32));
        let mut optimizer = Optimizer::new(vec![group(&student, &teacher)], Some(0.5)).unwrap();
        (0..3).for_each(|step| drop(optimizer.step(&gradients(&student, step), step).unwrap()));
        [student.state(), teacher.state(), optimizer.state()].map(|state| copied(&state))
    };
    let (student, teacher) = (store(7, DType::F32), store(8, DType::F32));
    student.load(&saved[0]).unwrap();
    teacher.load(&saved[1]).unwrap();
    let mut optimizer = Optimizer::new(vec![group(&student, &teacher)], Some(0.5)).unwrap();
    optimizer.load(&saved[2]).unwrap();
    (3..6).for_each(|step| drop(optimizer.step(&gradients(&student, step), step).unwrap()));
    assert_eq!((all_values(student.params()), all_values(teacher.params())), straight);
}

#[test]
fn state_names_are_stable() {
    let (student, teacher) = (store(1, DType::F32), store(2, DType::F32));
    let optimizer = Optimizer::new(vec![group(&student, &teacher)], None).unwrap();
    let names: Vec<String> = optimizer.state().into_keys().collect();
    let expected =
        ["main.m.bias", "main.m.plain", "main.m.slow", "main.step", "main.v.bias", "main.v.plain", "main.v.slow"];
    assert_eq!(names, expected);
}

#[test]
fn nothing_changes_on_error() {
    let (student, teacher) = (store(1, DType::F32), store(2, DType::F32));
    let mut optimizer = Optimizer::new(vec![group(&student, &teacher)], Some(1.0)).unwrap();
    optimizer.step(&gradients(&student, 0), 0).unwrap();
    let snapshot = |optimizer: &Optimizer| {
        let moments: Vec<Vec<f64>> = optimizer.state().values().map(values).collect();
        (all_values(student.params()), all_values(teacher.params()), moments)
    };
    let before = snapshot(&optimizer);

    let mut missing = Gradients::default();
    for name in ["plain", "bias"] {
        let tensor = student.get(name).unwrap();
        missing.accumulate(tensor.id(), tensor.ones_like().unwrap()).unwrap();
    }
    let with_last = |gradient: Tensor| {
        let mut gradients = Gradients::default();
        for (name, _) in &FACTORS[..2] {
            let tensor = student.get(name).unwrap();
            gradients.accumulate(tensor.id(), tensor.ones_like().unwrap()).unwrap();
        }
        gradients.accumulate(student.get("slow").unwrap().id(), gradient).unwrap();
        gradients
    };
    let reshaped = with_last(Tensor::ones((3, 5), DType::F32, &Device::Cpu).unwrap());
    let double = with_last(Tensor::ones((5, 3), DType::F64, &Device::Cpu).unwrap());
    let own = with_last(student.get("slow").unwrap().detach());
    let averages = with_last(teacher.get("slow").unwrap().detach());
    let infinite = with_last(Tensor::full(f32::INFINITY, (5, 3), &Device::Cpu).unwrap());
    for (gradients, named) in [
        (missing, "slow has no gradient"),
        (reshaped, "gradient of slow is [3, 5]"),
        (double, "gradient of slow is [5, 3] F64"),
        (own, "gradient of slow lies in memory"),
        (averages, "gradient of slow lies in memory"),
        (infinite, "norm is inf"),
    ] {
        let message = optimizer.step(&gradients, 1).unwrap_err().to_string();
        assert!(message.contains(named), "{message}");
        assert_eq!(snapshot(&optimizer), before);
    }

    let good = copied(&optimizer.state());
    let without = |name: &str| {
        let mut state = good.clone();
        state.remove(name);
        state
    };
    let with = |name: &str, tensor: Tensor| {
        let mut state = good.clone();
        state.insert(name.to_owned(), tensor);
        state
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let negative = Tensor::new(-1_i64, &Device::Cpu).unwrap();
    for (state, named) in [
        (without("main.v.bias"), "main.v.bias is missing"),
        (with("other.step", zeros(&[])), "other.step is not part"),
        (with("main.m.slow", zeros(&[3, 5])), "main.m.slow has shape"),
        (with("main.step", negative), "main.step is not a count"),
    ] {
        let message = optimizer.load(&state).unwrap_err().to_string();
        assert!(message.contains(named), "{message}");
        assert_eq!(snapshot(&optimizer), before);
    }
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let (student, teacher) = (store(1, DType::F32), store(2, DType::F32));
    let base = || ParamGroup::adamw("main", student.params(), lr());
    let refused = |groups: Vec<ParamGroup>, clip| Optimizer::new(groups, clip).unwrap_err().to_string();
    let other = store(3, DType::F32);
    let same_name = ParamGroup::adamw("main", other.params(), lr());
    assert!(refused(vec![base(), same_name], None).contains("two groups are called main"));
    assert!(refused(vec![base(), ParamGroup { name: "again", ..base() }], None).contains("table is in two groups"));
    assert!(refused(vec![base()], Some(0.0)).contains("clip 0"));
    assert!(refused(vec![base()], Some(f64::NAN)).contains("clip NaN"));
    assert!(refused(vec![ParamGroup { betas: (0.9, 1.0), ..base() }], None).contains("second beta 1"));
    assert!(
        refused(vec![ParamGroup { weight_decay: Schedule::constant(f64::NAN), ..base() }], None)
            .contains("weight decay NaN")
    );
    let short = Ema { averages: teacher.params()[1..].to_vec(), momentum: momentum() };
    assert!(refused(vec![ParamGroup { ema: Some(short), ..base() }], None).contains("3 averages for 4 parameters"));
    let wide = store(2, DType::F64);
    let wide = Ema { averages: wide.params().to_vec(), momentum: momentum() };
    assert!(refused(vec![ParamGroup { ema: Some(wide), ..base() }], None).contains("table"));
    let shared = Ema { averages: student.params().to_vec(), momentum: momentum() };
    assert!(refused(vec![ParamGroup { ema: Some(shared), ..base() }], None).contains("table is in two groups"));
    let turned = |param: &Param| Param { tensor: param.tensor.copy().unwrap().t().unwrap(), ..param.clone() };
    let gaps: Vec<Param> = student.params()[1..2].iter().map(turned).collect();
    assert!(refused(vec![ParamGroup::adamw("main", &gaps, lr())], None).contains("plain has gaps"));
}
