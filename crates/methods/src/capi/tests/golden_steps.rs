//! Losses, targets, gradients and updated parameters of three steps.

use super::{Golden, assert_number, scalar};
use crate::Method;
use crate::capi::Capi;
use candle_core::{DType, Tensor};
use occlude_golden::{Tensors, assert_close, set};
use occlude_optim::Optimizer;
use occlude_vit::DropPath;

#[test]
fn golden_capi_gradients() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("grads")) else { return };
    let capi = golden.capi(&golden.capi_config(), DType::F32);
    let output = capi.step_with(&golden.images(DType::F32), &golden.mask(0), &mut DropPath::off()).unwrap();
    let mut compared = 0;
    for (name, expected) in &reference {
        let parameter = name.strip_prefix("grad.").unwrap();
        // Frequency tables are constants here: their learning rate is 0 in the reference.
        if parameter.ends_with("rope.freqs") {
            continue;
        }
        let store = if parameter.starts_with("teacher.") { &capi.clustering } else { &capi.trained };
        let tensor = store.get(parameter).unwrap_or_else(|| panic!("{parameter} is not a parameter"));
        assert_close(name, output.gradients.get(tensor).unwrap(), expected, 5e-5);
        compared += 1;
    }
    assert_eq!(compared, output.gradients.len(), "every gradient has its reference");
}

/// Runs the recorded steps; after each, `check` sees the step's index, losses and metrics, and learning rates.
fn run(golden: &Golden, dtype: DType, steps: usize, mut check: impl FnMut(usize, &[(&str, f64)])) -> Capi {
    let capi = golden.capi(&golden.capi_config(), dtype);
    let mut optimizer = Optimizer::new(capi.groups(), None).unwrap();
    let start = golden.config["schedule"]["first_step_iteration"].as_u64().unwrap();
    for step in 0..steps {
        let output = capi.step_with(&golden.images(dtype), &golden.mask(step), &mut DropPath::off()).unwrap();
        let report = optimizer.step(&output.gradients, start + step as u64).unwrap();
        let mut numbers: Vec<(&str, f64)> = output.losses.iter().chain(&output.metrics).copied().collect();
        let rate = |name: &str| report.lrs.iter().find(|(group, _)| *group == name).unwrap().1;
        numbers.extend([("lr", rate("student")), ("clustering_lr", rate("clustering"))]);
        numbers.push(("momentum", report.momenta[0].1));
        check(step, &numbers);
    }
    capi
}

fn number(numbers: &[(&str, f64)], name: &str) -> f64 {
    numbers.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} is not reported")).1
}

fn check_numbers(reference: &Tensors, step: usize, numbers: &[(&str, f64)], losses: f64) {
    for (ours, theirs) in [("prediction", "capi_loss"), ("clustering", "clustering_loss")] {
        let name = format!("step{step}.{theirs}");
        assert_number(&name, number(numbers, ours), scalar(&reference[&name]), losses);
    }
    let others = [("target_entropy", 1e-4), ("lr", 1e-12), ("momentum", 1e-12), ("clustering_lr", 1e-12)];
    for (name, bound) in others {
        let Some(expected) = reference.get(&format!("step{step}.{name}")) else { continue };
        assert_number(name, number(numbers, name), scalar(expected), bound);
    }
}

#[test]
fn golden_capi_losses() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("losses")) else { return };
    run(&golden, DType::F32, 3, |step, numbers| check_numbers(&reference, step, numbers, 2e-6));
}

#[test]
fn golden_capi_targets_of_the_first_step() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("losses")) else { return };
    let capi = golden.capi(&golden.capi_config(), DType::F32);
    let seen = capi.teacher().encode(&golden.images(DType::F32)).unwrap();
    let goal = capi.targets.assign(capi.teacher(), &seen, &golden.mask(0)).unwrap();
    assert_close("step0.targets", &goal.targets, &reference["step0.targets"], 1e-4);
}

#[test]
fn golden_capi_losses_in_f64() {
    let (Some(golden), Some(reference)) = (Golden::find(), set("capi").tensors("losses_f64")) else { return };
    // Start values are f32 in both runs; only the arithmetic differs.
    run(&golden, DType::F64, 3, |step, numbers| check_numbers(&reference, step, numbers, 1e-9));
}

/// Updated parameters: nearly all entries within 2e-6, none further off than the learning rate (the first Adam steps
/// divide by |gradient|, so an entry whose gradient is near 1e-8 may move differently).
fn check_parameters(capi: &Capi, reference: &Tensors, lr: f64) {
    let state = capi.state();
    assert_eq!(state.len(), reference.len());
    let (mut far, mut entries) = (0, 0);
    for (name, expected) in reference {
        let got = state.get(name).unwrap_or_else(|| panic!("{name} is not a parameter"));
        if name.ends_with("rope.freqs") {
            assert_close(name, got, expected, 1e-6);
            continue;
        }
        assert_eq!(got.dims(), expected.dims(), "{name}");
        for (a, b) in values(got).into_iter().zip(values(expected)) {
            let difference = (a - b).abs();
            assert!(difference <= lr, "{name}: {a} against {b}, further apart than the learning rate {lr:.2e}");
            far += usize::from(difference > 2e-6);
            entries += 1;
        }
    }
    assert!(far * 1000 <= entries, "{far} of {entries} entries are further off than 2e-6");
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn golden_capi_parameters_after_steps() {
    let Some(golden) = Golden::find() else { return };
    for (steps, file) in [(1, "after_step1"), (3, "after_step3")] {
        let Some(reference) = set("capi").tensors(file) else { return };
        let capi = run(&golden, DType::F32, steps, |_, _| ());
        check_parameters(&capi, &reference, golden.config["schedule"]["lr"].as_f64().unwrap());
    }
}
