//! Runs that are interrupted, states that do not fit, settings.

use super::{ARCHITECTURES, BATCH, IMAGES, RULER, SIDE, build, context, images, of, tiny};
use crate::randsac::{Randsac, RandsacConfig};
use crate::{BatchSize, Method, MethodConfig, ViewBatch};
use candle_core::{DType, Device, Tensor};
use occlude_golden::set;
use occlude_kernels::StateDict;
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_settings::{Ruler, Span};

fn all(state: &StateDict) -> Vec<(String, Vec<f64>)> {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    state.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

fn copied(state: StateDict) -> StateDict {
    state.into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect()
}

fn advance(method: &mut Randsac, optimizer: &mut Optimizer, step: u64) -> Vec<(&'static str, f64)> {
    let batch = ViewBatch { views: vec![images(step)], ids: Vec::new() };
    let output = method.step(&batch, &context(step)).unwrap();
    optimizer.step(&output.gradients, step).unwrap();
    method.after_step(&context(step)).unwrap();
    output.losses.into_iter().chain(output.metrics).collect()
}

#[test]
fn a_resumed_run_takes_the_same_steps() {
    for architecture in ARCHITECTURES {
        let mut whole = build(&of(architecture));
        let mut optimizer = Optimizer::new(whole.groups(), None).unwrap();
        for step in 0..3 {
            advance(&mut whole, &mut optimizer, step);
        }
        let mut resumed = build(&of(architecture));
        resumed.load(&copied(whole.state())).unwrap();
        let mut second = Optimizer::new(resumed.groups(), None).unwrap();
        second.load(&copied(optimizer.state())).unwrap();
        for step in 3..6 {
            let (a, b) = (advance(&mut whole, &mut optimizer, step), advance(&mut resumed, &mut second, step));
            assert_eq!(a, b, "{architecture:?}, step {step}");
        }
        assert_eq!(all(&whole.state()), all(&resumed.state()));
        assert_eq!(all(&optimizer.state()), all(&second.state()));
    }
}

#[test]
fn a_bad_state_changes_nothing() {
    let mut method = build(&tiny());
    let before = all(&method.state());
    let mut refused = |change: &dyn Fn(&mut StateDict)| {
        let mut state: StateDict =
            copied(method.state()).into_iter().map(|(name, tensor)| (name, tensor.zeros_like().unwrap())).collect();
        change(&mut state);
        let message = method.load(&state).unwrap_err().to_string();
        assert_eq!(all(&method.state()), before, "{message}");
        message
    };
    let message = refused(&|state| drop(state.remove("skip.weight")));
    assert!(message.contains("skip.weight is missing"), "{message}");
    let message = refused(&|state| drop(state.insert("cls_token".into(), Tensor::new(1_f32, &Device::Cpu).unwrap())));
    assert!(message.contains("cls_token is not a parameter"), "{message}");
}

#[test]
fn each_refusal_names_its_field() {
    let refused = |change: fn(&mut RandsacConfig)| {
        let mut config = tiny();
        change(&mut config);
        config.check(SIDE, BATCH, RULER).unwrap_err().to_string()
    };
    for (change, start) in [
        ((|c| c.encoder.heads = 3) as fn(&mut RandsacConfig), "encoder.heads = 3: must divide"),
        (|c| c.decoder.heads = 5, "decoder.heads = 5: must divide"),
        (|c| c.segments.blobs = vec![1], "segments.blobs = [1]: must be between 2"),
        (|c| c.optimizer.base_lr = f64::NAN, "optimizer.base_lr = NaN: must be at least 0"),
        (|c| c.optimizer.betas = (0.9, 1.0), "optimizer.betas = 1: must be at least 0 and below 1"),
        (|c| c.optimizer.warmup = Span::Steps(21), "optimizer.warmup = 21: steps must fit into the run of 20 steps"),
    ] {
        let message = refused(change);
        assert!(message.starts_with(start), "{message}");
    }
}

/// Learning rates of all recipes, at every quarter of an epoch.
#[test]
fn golden_randsac_schedules() {
    let Some(tables) = set("randsac").tensors("tables") else { return };
    for (name, peak, warmup, batch, base_lr) in [
        ("lr.cifar10_t1_7", 2e-3, 10.0, 512, 1e-3),
        ("lr.cifar_1600", 2e-3, 10.0, 512, 1e-3),
        ("lr.in100", 2.4e-3, 40.0, 4096, 1.5e-4),
        ("lr.in1k", 2.4e-3, 40.0, 4096, 1.5e-4),
    ] {
        let expected: Vec<f64> = tables[name].to_vec1().unwrap();
        let total_steps = expected.len() as u64 - 1;
        let ruler = Ruler { steps_per_epoch: 4.0, total_steps };
        let mut config = tiny();
        (config.optimizer.base_lr, config.optimizer.warmup) = (base_lr, Span::Epochs(warmup));
        let batch = BatchSize { micro: batch / 2, accumulate: 2 };
        let method =
            Randsac::new(&config.check(SIDE, batch, ruler).unwrap(), Streams::new(0), DType::F32, &Device::Cpu);
        for group in method.unwrap().groups() {
            for (step, expected) in expected.iter().enumerate() {
                let got = group.lr.at(step as u64);
                assert!((got - expected).abs() <= 1e-12 * peak, "{name} at {step}: {got} against {expected}");
            }
        }
    }
}

#[test]
fn a_method_is_built_from_its_config_and_shows_its_segments() {
    let config = MethodConfig::Randsac(Box::new(tiny()));
    let checked = config.check(SIDE, BATCH, RULER).unwrap();
    let method = checked.build(Streams::new(7), DType::F32, &Device::Cpu).unwrap();
    assert_eq!((method.name(), checked.patch_size(), config.views()), (config.name(), 4, 1));
    assert!(!checked.has_teacher() && config.classes().is_none());
    let said = "RandSAC (skip): an encoder of 3 blocks, 16 wide, patches of 4 pixels, segments: 5 -> 3 blobs";
    assert_eq!(config.describe(), said);
    let masks = checked.masks(IMAGES, |image| Streams::new(1).stream("shown", 0, image as u64)).unwrap();
    for mask in &masks {
        assert!(!mask.predicted.is_empty() && mask.predicted.iter().all(|patch| mask.hidden[*patch]));
        assert!(mask.hidden.iter().any(|hidden| !hidden), "something comes before the middle");
    }
    assert_eq!(masks.len(), IMAGES);
}
