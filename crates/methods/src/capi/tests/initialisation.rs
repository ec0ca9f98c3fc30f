//! Start values: the distributions of the public code, and a teacher that copies the student.

use super::{build, tiny};
use crate::Method;
use crate::capi::{Capi, CapiConfig};
use candle_core::{DType, Device, Tensor};
use occlude_golden::set;
use occlude_random::Streams;
use occlude_settings::Ruler;
use serde_json::Value;

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// One block each, sizes read off the recorded shapes.
fn recorded_config(stats: &Value) -> CapiConfig {
    let shape = |name: &str, axis: usize| {
        let value = &stats[name]["shape"][axis];
        usize::try_from(value.as_u64().unwrap_or_else(|| panic!("{name}"))).unwrap()
    };
    let mut config = CapiConfig::default();
    let head_dim = shape("backbone.encoder.blocks.0.residual1.fn.rope.freqs", 1);
    config.encoder.dim = shape("backbone.patch_embed.weight", 0);
    let registers = stats.get("backbone.registers").is_some();
    config.encoder.registers = if registers { shape("backbone.registers", 1) } else { 0 };
    let hidden = shape("backbone.encoder.blocks.0.residual2.fn.fc1.weight", 0);
    config.encoder.mlp_ratio = (hidden as f64 + 0.5) / config.encoder.dim as f64; // the product is truncated
    config.encoder.patch = shape("backbone.patch_embed.weight", 2);
    (config.encoder.depth, config.predictor.depth) = (1, 1);
    config.encoder.heads = config.encoder.dim / head_dim;
    config.predictor.dim = shape("backbone.mask_token", 1);
    config.predictor.heads = config.predictor.dim / shape("backbone.decoder.blocks.0.residual1.fn.rope.freqs", 1);
    config.clustering.prototypes = shape("clustering.layer.weight", 0);
    config
}

#[test]
fn golden_capi_start_values() {
    let Some(stats) = set("capi").json("init_stats.json") else { return };
    let config = recorded_config(&stats);
    let ruler = Ruler { steps_per_epoch: 1.0, total_steps: 10 };
    let settings = config.check(config.encoder.patch * 8, 1024, ruler).unwrap();
    let capi = Capi::new(&settings, Streams::new(0), DType::F32, &Device::Cpu).unwrap();
    let state = capi.state();
    for (name, expected) in stats.as_object().unwrap() {
        let ours = match name.strip_prefix("clustering.") {
            Some(rest) => format!("teacher.head.{rest}"),
            None => format!("student.{name}"),
        };
        let got = values(state.get(&ours).unwrap_or_else(|| panic!("{ours} is not a parameter")));
        check_distribution(name, &got, expected);
    }
}

/// Mean and deviation within seven standard errors; the ends of a uniform range within 5 % (more where few numbers are
/// drawn: of n the outermost is about 2 / n of the range short of its end), extremes of a normal sample roughly.
fn check_distribution(name: &str, got: &[f64], expected: &Value) {
    let number = |key: &str| expected[key].as_f64().unwrap();
    let count = got.len() as f64;
    let mean = got.iter().sum::<f64>() / count;
    let std = (got.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt();
    let (low, high) = got.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
    if number("std") == 0.0 || name.ends_with("rope.freqs") {
        for (got, key) in [(mean, "mean"), (std, "std"), (low, "min"), (high, "max")] {
            assert!((got - number(key)).abs() <= 1e-5 * number("max").abs(), "{name}: {key} {got}");
        }
        return;
    }
    let error = number("std") / count.sqrt();
    assert!((mean - number("mean")).abs() < 7.0 * error, "{name}: mean {mean}");
    assert!((std - number("std")).abs() < 7.0 * error, "{name}: deviation {std}, expected {}", number("std"));
    // A uniform distribution has bounds at sqrt(3) deviations; a normal one goes further.
    let uniform = number("max") < 1.8 * number("std");
    for (got, key) in [(low, "min"), (high, "max")] {
        let slack = if uniform { f64::max(0.05, 30.0 / count) } else { 0.8 };
        assert!((got / number(key) - 1.0).abs() < slack, "{name}: {key} {got}, expected {}", number(key));
    }
}

#[test]
fn the_teacher_starts_as_a_copy_of_the_student() {
    let state = build(&tiny()).state();
    let mut compared = 0;
    for (name, tensor) in &state {
        let Some(rest) = name.strip_prefix("student.") else { continue };
        assert_eq!(values(tensor), values(&state[&format!("student_ema.{rest}")]), "{name}");
        compared += 1;
    }
    assert!(compared > 10);
}

#[test]
fn the_seed_decides_the_start() {
    let settings = tiny().check(super::TINY_IMAGE, super::TINY_BATCH, super::TINY_RULER).unwrap();
    let start = |seed| {
        let capi = Capi::new(&settings, Streams::new(seed), DType::F32, &Device::Cpu).unwrap();
        values(&capi.state()["student.backbone.registers"])
    };
    assert_eq!(start(1), start(1));
    assert_ne!(start(1), start(2));
}
