//! Weights under the official names, out and in again.

use candle_core::{DType, Device};
use occlude_e2e::Lab;
use std::collections::HashMap;

type Weights = HashMap<String, candle_core::Tensor>;

fn weights(lab: &Lab, name: &str) -> Weights {
    candle_core::safetensors::load(lab.path(name), &Device::Cpu).unwrap()
}

fn assert_equal(one: &Weights, other: &Weights) {
    assert_eq!(one.len(), other.len());
    for (name, tensor) in one {
        let flat = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap();
        let values = |tensor: &candle_core::Tensor| flat(tensor).to_vec1::<f32>().unwrap();
        assert_eq!(values(tensor), values(&other[name]), "{name}");
    }
}

#[test]
fn official_names_make_the_round_trip() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").succeeds();
    lab.occlude("export run --layout capi --out official.safetensors").succeeds();
    let exported = weights(&lab, "official.safetensors");
    for name in ["backbone.mask_token", "backbone.patch_embed.bias", "head.last_layer.weight_v"] {
        assert!(exported.contains_key(name), "{name} in {:?}", exported.keys());
    }
    assert!(exported.keys().all(|name| name.starts_with("backbone.") || name.starts_with("head.")));
    // A run that begins with these weights and learns nothing exports them again.
    let still = "--set method.optimizer.lr=0 --set method.optimizer.momentum.base=1 --set method.clustering.lr=0 --set train.length.steps=1";
    lab.occlude(&format!("train tiny.toml --out again --init-from official.safetensors {still}")).succeeds();
    lab.occlude("export again --layout capi --out again.safetensors").succeeds();
    assert_equal(&exported, &weights(&lab, "again.safetensors"));
    lab.occlude("export again --layout capi --weights student --out student.safetensors").succeeds();
    assert_equal(&exported, &weights(&lab, "student.safetensors"));
}

#[test]
fn student_and_teacher_differ_and_bf16_halves_the_file() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").succeeds();
    lab.occlude("export run --layout capi --out teacher.safetensors").succeeds();
    lab.occlude("export run --layout capi --weights student --out student.safetensors").succeeds();
    lab.occlude("export run --layout capi --dtype bf16 --out half.safetensors").succeeds();
    let name = "backbone.encoder.blocks.0.residual1.fn.q_proj.weight";
    let values = |file: &str| weights(&lab, file)[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_ne!(values("teacher.safetensors"), values("student.safetensors"));
    assert!(weights(&lab, "half.safetensors").values().all(|tensor| tensor.dtype() == DType::BF16));
}

#[test]
fn a_file_that_does_not_fit_is_refused() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").succeeds();
    lab.occlude("export run --layout capi --out official.safetensors").succeeds();
    let error = lab
        .occlude("train tiny.toml --out wide --init-from official.safetensors --set method.encoder.dim=24 --set method.encoder.heads=3")
        .refuses();
    assert!(error.contains("official.safetensors") && error.contains("shape"), "{error}");
    let error = lab.occlude("export run --layout moca --out other.safetensors").refuses();
    assert!(error.contains("--layout capi"), "{error}");
    let error = lab.occlude("export run --layout capi --full --out other.safetensors").refuses();
    assert!(error.contains("--full"), "{error}");
    assert!(!lab.path("other.safetensors").exists());
    lab.write("noise.safetensors", "not tensors");
    let error = lab.occlude("train tiny.toml --out other --init-from noise.safetensors").refuses();
    assert!(error.contains("noise.safetensors"), "{error}");
}
