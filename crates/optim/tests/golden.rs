//! One step of the reference: its gradients in, its parameters and averages out.
// clippy.toml frees test functions; helpers beside them need it said.
#![allow(clippy::unwrap_used)]

use candle_core::{Tensor, Var};
use occlude_golden::{Tensors, set};
use occlude_kernels::{Factors, Gradients, Param, Role};
use occlude_optim::{Ema, Optimizer, ParamGroup, Schedule, ScheduleConfig};
use occlude_settings::{Ruler, Span};
use serde_json::Value;

/// The factors of CAPI by official name (specification, optimisers).
fn role(name: &str, optimizer: &Value) -> Role {
    let number = |name: &str| optimizer[name].as_f64().unwrap();
    if name.ends_with("rope.freqs") {
        Role::Constant
    } else if name.contains("patch_embed") {
        let wd = if name.ends_with("bias") { 0.0 } else { 1.0 };
        Role::Trained(Factors { lr: number("patch_embed_lr_mult"), wd })
    } else if name.contains("norm.weight") {
        Role::Trained(Factors { lr: 1.0, wd: number("layernorm_wd_mult") })
    } else {
        Role::Trained(Factors::ONE)
    }
}

fn params(weights: &Tensors, prefix: &str, optimizer: &Value) -> Vec<Param> {
    let named = weights.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
    named
        .map(|(name, tensor)| Param {
            name: name.to_owned(),
            tensor: Var::from_tensor(tensor).unwrap().into_inner(),
            role: if prefix.starts_with("student") { role(name, optimizer) } else { Role::Trained(Factors::ONE) },
        })
        .collect()
}

fn group(name: &'static str, params: &[Param], lr: &ScheduleConfig, settings: &Value, ruler: Ruler) -> ParamGroup {
    let number = |value: &Value| value.as_f64().unwrap();
    ParamGroup {
        weight_decay: Schedule::constant(number(&settings["weight_decay"])),
        betas: (number(&settings["betas"][0]), number(&settings["betas"][1])),
        eps: number(&settings["eps"]),
        ..ParamGroup::adamw(name, params, lr.check(ruler).unwrap())
    }
}

fn assert_all_close(prefix: &str, params: &[Param], expected: &Tensors) {
    assert!(!params.is_empty());
    for param in params {
        let name = format!("{prefix}{}", param.name);
        assert_eq!(param.tensor.dims(), expected[&name].dims(), "{name}");
        let flat = |tensor: &Tensor| -> Vec<f32> { tensor.flatten_all().unwrap().to_vec1().unwrap() };
        for (got, wanted) in flat(&param.tensor).into_iter().zip(flat(&expected[&name])) {
            assert!((got - wanted).abs() <= 1e-6, "{name}: {got} against {wanted}");
        }
    }
}

#[test]
fn golden_capi_adamw_and_averages() {
    let reference = set("capi");
    let files = (reference.tensors("weights"), reference.tensors("grads"), reference.tensors("after_step1"));
    let ((Some(weights), Some(grads), Some(after)), Some(config)) = (files, reference.config()) else { return };
    let schedule = &config["schedule"];
    let number = |name: &str| schedule[name].as_f64().unwrap();
    let whole = |name: &str| schedule[name].as_u64().unwrap();
    let ruler = Ruler { steps_per_epoch: 1.0, total_steps: whole("total_iters") };
    let shape = |config: ScheduleConfig| ScheduleConfig {
        warmup: Span::Steps(whole("warmup_iters")),
        truncate: number("truncate_cos"),
        ..config
    };
    let momentum = ScheduleConfig {
        start: number("momentum_start"),
        end: number("momentum_final"),
        ..shape(ScheduleConfig::momentum(number("momentum_base")))
    };

    let settings = &config["optimizer"];
    let student = params(&weights, "student.", settings);
    let teacher = params(&weights, "student_ema.", settings);
    let clustering = params(&weights, "teacher.", settings);
    let lr = shape(ScheduleConfig::learning_rate(number("lr")));
    let clustering_lr = shape(ScheduleConfig::learning_rate(number("clustering_lr")));
    let ema = Ema { averages: teacher.clone(), momentum: momentum.check(ruler).unwrap() };
    let groups = vec![
        ParamGroup { ema: Some(ema), ..group("student", &student, &lr, settings, ruler) },
        group("clustering", &clustering, &clustering_lr, &config["clustering_optimizer"], ruler),
    ];

    let mut gradients = Gradients::default();
    for (prefix, params) in [("student.", &student), ("teacher.", &clustering)] {
        for param in params.iter().filter(|param| param.role != Role::Constant) {
            let gradient = grads[&format!("grad.{prefix}{}", param.name)].clone();
            gradients.accumulate(param.tensor.id(), gradient).unwrap();
        }
    }
    Optimizer::new(groups, None).unwrap().step(&gradients, whole("first_step_iteration")).unwrap();
    for (prefix, params) in [("student.", &student), ("student_ema.", &teacher), ("teacher.", &clustering)] {
        assert_all_close(prefix, params, &after);
    }
}
