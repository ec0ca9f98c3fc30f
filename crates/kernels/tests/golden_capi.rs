//! Heads, losses and optimizer steps of CAPI against the reference tensors, at the tolerances of their README.
#![allow(clippy::unwrap_used, clippy::panic)] // a test stops at the first surprise

use candle_core::{DType, Tensor, Var};
use occlude_golden::{Tensors, assert_close};
use occlude_kernels::{
    AdamWStep, Factors, adamw_step, backward, gather_rows, l2_normalize, linear, mean_row_entropy, sinkhorn,
    soft_cross_entropy, weight_norm,
};
use serde_json::Value;

/// Block outputs, features, logits.
const FORWARD: f64 = 2e-5;
const ASSIGNMENTS: f64 = 1e-4;
const LOSSES: f64 = 2e-6;
const GRADIENTS: f64 = 5e-5;
/// One AdamW step fed with the recorded gradients, absolute.
const STEP: f64 = 1e-6;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn scalar(tensors: &Tensors, name: &str) -> f64 {
    tensors[name].to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn assert_number(name: &str, got: f64, expected: f64, bound: f64) {
    assert!((got / expected - 1.0).abs() <= bound, "{name}: {got}, expected {expected}");
}

fn var(tensor: &Tensor) -> Tensor {
    Var::from_tensor(tensor).unwrap().into_inner()
}

#[test]
fn golden_capi_student_head_and_main_loss() {
    let set = occlude_golden::set("capi");
    let (Some(weights), Some(forward), Some(config)) = (set.tensors("weights"), set.tensors("forward"), set.config())
    else {
        return;
    };
    let (Some(losses), Some(grads)) = (set.tensors("losses"), set.tensors("grads")) else { return };
    let length = var(&weights["student.head.last_layer.weight_g"]); // [k, 1]
    let direction = var(&weights["student.head.last_layer.weight_v"]); // [k, width]
    let unit = l2_normalize(&forward["student.predictor_out"], 1e-12).unwrap();
    let logits = linear(&unit, &weight_norm(&direction, &length, 1e-8).unwrap(), None).unwrap();
    assert_close("head_out", &logits, &forward["student.head_out"], FORWARD);

    let targets = &losses["step0.targets"];
    let loss = soft_cross_entropy(&logits, targets, number(&config["student_temp"])).unwrap();
    let value = f64::from(loss.to_scalar::<f32>().unwrap());
    assert_number("main loss", value, scalar(&losses, "step0.capi_loss"), LOSSES);
    let entropy = mean_row_entropy(targets).unwrap();
    assert_number("target entropy", entropy, scalar(&losses, "step0.target_entropy"), LOSSES);

    let gradients = backward(&loss).unwrap();
    for (name, tensor) in [("weight_g", &length), ("weight_v", &direction)] {
        let expected = &grads[&format!("grad.student.head.last_layer.{name}")];
        assert_close(name, gradients.get(tensor).unwrap(), expected, GRADIENTS);
    }
}

#[test]
fn golden_capi_clustering() {
    let set = occlude_golden::set("capi");
    let (Some(weights), Some(forward), Some(config)) = (set.tensors("weights"), set.tensors("forward"), set.config())
    else {
        return;
    };
    let (Some(losses), Some(grads), Some(batch)) = (set.tensors("losses"), set.tensors("grads"), set.tensors("batch"))
    else {
        return;
    };
    let clustering = &config["clustering"];
    let prototypes = var(&weights["teacher.head.layer.weight"]); // [k, dim]
    let bias = var(&weights["teacher.head.layer.bias"]); // [k]
    let features = forward["teacher.patch_out"].transpose(0, 1).unwrap(); // [patches, batch, dim]
    let logits = linear(&l2_normalize(&features, 1e-7).unwrap(), &prototypes, Some(&bias)).unwrap();
    assert_close("logits", &logits, &forward["teacher.cluster_logits"], FORWARD);

    let iterations = clustering["n_sk_iter"].as_u64().unwrap() as usize;
    let assigned = sinkhorn(&logits, number(&clustering["target_temp"]), iterations).unwrap();
    assert_close("assignments", &assigned, &forward["teacher.assignments"], ASSIGNMENTS);
    let (patches, images, k) = assigned.dims3().unwrap();
    let by_image = assigned.transpose(0, 1).unwrap().reshape((images * patches, k)).unwrap();
    let predict: Vec<u32> = batch["step0.predict_indices"].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    assert_close("targets", &gather_rows(&by_image, &predict).unwrap(), &losses["step0.targets"], ASSIGNMENTS);

    let rows = logits.reshape((patches * images, k)).unwrap();
    let assigned = assigned.reshape((patches * images, k)).unwrap();
    let loss = soft_cross_entropy(&rows, &assigned, number(&clustering["pred_temp"])).unwrap();
    let value = f64::from(loss.to_scalar::<f32>().unwrap());
    assert_number("clustering loss", value, scalar(&losses, "step0.clustering_loss"), LOSSES);
    let gradients = backward(&loss).unwrap();
    for (name, tensor) in [("weight", &prototypes), ("bias", &bias)] {
        let expected = &grads[&format!("grad.teacher.head.layer.{name}")];
        assert_close(name, gradients.get(tensor).unwrap(), expected, GRADIENTS);
    }
}

/// Factors by name, specification section 12.
fn factors(name: &str, config: &Value) -> Factors {
    match name {
        _ if name.contains("patch_embed.weight") => Factors { lr: number(&config["patch_embed_lr_mult"]), wd: 1.0 },
        _ if name.contains("patch_embed.bias") => Factors { lr: number(&config["patch_embed_lr_mult"]), wd: 0.0 },
        _ if name.contains("rope") => Factors { lr: number(&config["rope_lr_mult"]), wd: 1.0 },
        _ if name.contains("norm.weight") => Factors { lr: 1.0, wd: number(&config["layernorm_wd_mult"]) },
        _ => Factors::ONE,
    }
}

/// Settings of one parameter at the first step. The clustering head has an optimizer of its own, without averages.
fn first_step(name: &str, config: &Value, losses: &Tensors) -> AdamWStep {
    let clusters = name.starts_with("teacher.head");
    let (table, lr) = if clusters { ("clustering_optimizer", "clustering_lr") } else { ("optimizer", "lr") };
    let config = &config[table];
    let factors = if clusters { Factors::ONE } else { factors(name, config) };
    AdamWStep {
        lr: factors.lr * scalar(losses, &format!("step0.{lr}")),
        weight_decay: factors.wd * number(&config["weight_decay"]),
        beta1: number(&config["betas"][0]),
        beta2: number(&config["betas"][1]),
        eps: number(&config["eps"]),
        step: 1,
        grad_scale: 1.0,
        ema_momentum: (!clusters).then(|| scalar(losses, "step0.momentum")),
    }
}

fn assert_within(name: &str, got: &Tensor, expected: &Tensor) {
    let differences = (got - expected).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    // Every element is asked: the largest of several passes over a NaN.
    let within = differences.iter().all(|&difference| f64::from(difference) <= STEP);
    assert!(within, "{name}: off by more than {STEP:e}, or not a number");
}

#[test]
fn golden_capi_adamw() {
    let set = occlude_golden::set("capi");
    let (Some(config), Some(losses), Some(grads)) = (set.config(), set.tensors("losses"), set.tensors("grads")) else {
        return;
    };
    let (Some(weights), Some(after)) = (set.tensors("weights"), set.tensors("after_step1")) else { return };
    let mut seen = std::collections::BTreeSet::new();
    for (full, gradient) in &grads {
        let name = full.strip_prefix("grad.").unwrap();
        let settings = first_step(name, &config, &losses);
        let param = weights[name].copy().unwrap();
        let (m, v) = (param.zeros_like().unwrap(), param.zeros_like().unwrap());
        let average_name = name.replacen("student.", "student_ema.", 1);
        let average = settings.ema_momentum.map(|_| weights[&average_name].copy().unwrap());
        adamw_step(&param, gradient, &m, &v, average.as_ref(), &settings).unwrap();
        assert_within(name, &param, &after[name]);
        seen.insert(name.to_owned());
        if let Some(average) = average {
            assert_within(&average_name, &average, &after[&average_name]);
            seen.insert(average_name);
        }
    }
    let missed: Vec<_> = after.keys().filter(|name| !seen.contains(*name) && after[*name].elem_count() > 0).collect();
    assert!(missed.is_empty(), "not updated: {missed:?}");
}
