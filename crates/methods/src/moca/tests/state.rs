//! First values, and runs that are interrupted, accumulated or spread over ranks.

use super::{TINY_BATCH, TINY_IMAGE, build, context, pictures, tiny};
use crate::moca::{Moca, MocaConfig};
use crate::{Method, StepContext, ViewBatch};
use candle_core::{DType, Device, Tensor};
use occlude_distributed::{Collective, InProcess};
use occlude_kernels::{Gradients, StateDict};
use occlude_optim::Optimizer;
use occlude_random::Streams;

const WORDS: &str = "bow_extractor.bow_extractor.0.";

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn all(state: &StateDict) -> Vec<(String, Vec<f64>)> {
    state.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

fn copied(state: StateDict) -> StateDict {
    state.into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect()
}

fn batch(seed: usize) -> ViewBatch {
    let view = |seed| pictures(seed, TINY_BATCH.micro, TINY_IMAGE);
    ViewBatch { views: vec![view(seed), view(seed + 50)], ids: Vec::new() }
}

/// One step of the optimizer.
fn advance(moca: &mut Moca, optimizer: &mut Optimizer, step: u64) -> Vec<(&'static str, f64)> {
    let ctx = context(step);
    moca.before_update(&ctx).unwrap();
    let output = moca.step(&batch(step as usize), &ctx).unwrap();
    optimizer.step(&output.gradients, step).unwrap();
    moca.after_step(&ctx).unwrap();
    output.losses.into_iter().chain(output.metrics).collect()
}

#[test]
fn the_teacher_starts_as_a_copy_of_the_student() {
    let state = build(&tiny()).state();
    let teacher: Vec<_> =
        state.iter().filter_map(|(name, t)| Some((name.strip_prefix("encoder_teacher.")?, t))).collect();
    assert!(teacher.len() > 10);
    for (name, tensor) in teacher {
        assert_eq!(values(tensor), values(&state[&format!("encoder.{name}")]), "{name}");
    }
}

#[test]
fn first_values_of_the_codebook() {
    let state = build(&tiny()).state();
    for word in state[&format!("{WORDS}_embedding")].to_vec2::<f32>().unwrap() {
        let length: f32 = word.iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-5 && word.iter().all(|v| *v >= 0.0));
    }
    let number = |name: &str| values(&state[&format!("{WORDS}{name}")])[0];
    assert_eq!(
        ["_embedding_ptr", "_track_num_batches", "_dist_norm", "_dist_norm_prev"].map(number),
        [0.0, 0.0, 0.5, 0.5]
    );
}

#[test]
fn a_resumed_run_takes_the_same_steps() {
    let mut whole = build(&tiny());
    let mut optimizer = Optimizer::new(whole.groups(), Some(0.1)).unwrap();
    for step in 0..3 {
        advance(&mut whole, &mut optimizer, step);
    }
    let (weights, moments) = (copied(whole.state()), copied(optimizer.state()));
    let mut resumed = build(&MocaConfig { lambda: 0.25, ..tiny() });
    assert_eq!(resumed.state().len(), weights.len());
    resumed = {
        let mut fresh = build(&tiny());
        fresh.load(&weights).unwrap();
        fresh
    };
    let mut second = Optimizer::new(resumed.groups(), Some(0.1)).unwrap();
    second.load(&moments).unwrap();
    for step in 3..6 {
        let (a, b) = (advance(&mut whole, &mut optimizer, step), advance(&mut resumed, &mut second, step));
        assert_eq!(a, b, "step {step}");
    }
    assert_eq!(all(&whole.state()), all(&resumed.state()));
    assert_eq!(all(&optimizer.state()), all(&second.state()));
}

#[test]
fn a_bad_state_changes_nothing() {
    let mut moca = build(&tiny());
    let before = all(&moca.state());
    let refused = |moca: &mut Moca, change: &dyn Fn(&mut StateDict)| {
        let mut state = copied(build(&MocaConfig { lambda: 0.75, ..tiny() }).state());
        let zeros = state["encoder.cls_token"].zeros_like().unwrap();
        state.insert("encoder.cls_token".into(), zeros);
        change(&mut state);
        moca.load(&state).unwrap_err().to_string()
    };
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let message = refused(&mut moca, &|state| drop(state.remove("norm_cls_pt.bias")));
    assert!(message.contains("norm_cls_pt.bias is missing"), "{message}");
    let message = refused(&mut moca, &|state| {
        state.insert("encoder.surplus".into(), zeros(&[1], DType::F32));
    });
    assert!(message.contains("encoder.surplus is not a parameter"), "{message}");
    let message = refused(&mut moca, &|state| {
        state.insert("norm_cls_pt.bias".into(), zeros(&[3], DType::F32));
    });
    assert!(message.contains("norm_cls_pt.bias is ([3], F32), expected ([16], F32)"), "{message}");
    let pointer = format!("{WORDS}_embedding_ptr");
    let message = refused(&mut moca, &|state| {
        state.insert(pointer.clone(), zeros(&[1], DType::F32));
    });
    assert!(message.contains("_embedding_ptr is ([1], F32), expected ([1], I64)"), "{message}");
    assert_eq!(all(&moca.state()), before);
}

#[test]
fn teacher_and_words_move_once_a_step_and_running_numbers_in_every_micro_batch() {
    let mut moca = build(&tiny());
    let streams = Streams::new(7);
    let number = |moca: &Moca, name: &str| values(&moca.state()[name])[0];
    let mut distances = Vec::new();
    for micro in 0..3 {
        let ctx = StepContext { micro, micros: 3, ..StepContext::single(5, streams) };
        let output = moca.step(&batch(micro), &ctx).unwrap();
        distances.push(output.metrics.iter().find(|(name, _)| *name == "similarity_distance").unwrap().1);
        assert_eq!(moca.seen.words.is_some(), micro == 2, "words of the last micro-batch");
    }
    let seen = moca.seen.distances.clone();
    assert_eq!(seen.len(), 6);
    for (pair, mean) in seen.chunks(2).zip(distances) {
        assert_eq!(0.5 * (pair[0] + pair[1]), mean);
    }
    moca.after_step(&StepContext { micro: 2, micros: 3, ..StepContext::single(5, streams) }).unwrap();
    let running = seen.iter().fold(0.5, |running, distance| 0.99 * running + 0.01 * distance);
    assert!((number(&moca, &format!("{WORDS}_dist_norm")) - running).abs() < 1e-6);
    assert!((number(&moca, &format!("{WORDS}_dist_norm_prev")) - running).abs() < 1e-6);
    assert_eq!(number(&moca, &format!("{WORDS}_track_num_batches")), 1.0);
    assert_eq!(number(&moca, &format!("{WORDS}_embedding_ptr")), 2.0);
    assert_eq!(number(&moca, "encoder_pred.layers_w.0.generator.b0_bn.num_batches_tracked"), 3.0);
}

#[test]
fn micro_batches_have_masks_of_their_own() {
    let moca = build(&tiny());
    let ctx = |micro| StepContext { micro, micros: 2, ..context(5) };
    assert_ne!(moca.rounds(4, &ctx(0)), moca.rounds(4, &ctx(1)));
    assert_ne!(moca.choice(4, &ctx(0)), moca.choice(4, &ctx(1)));
    assert_eq!(moca.rounds(4, &ctx(1)), moca.rounds(4, &ctx(1)));
}

/// A step on one of several ranks, by the mean of all gradients.
fn step_on(collective: &InProcess, seed: usize) -> (f64, Vec<(String, Vec<f64>)>) {
    let mut moca = build(&tiny());
    let mut optimizer = Optimizer::new(moca.groups(), Some(0.1)).unwrap();
    let ctx = StepContext { collective, ..StepContext::single(3, Streams::new(7)) };
    moca.before_update(&ctx).unwrap();
    let output = moca.step(&batch(seed), &ctx).unwrap();
    let mut mean = Gradients::default();
    for param in moca.trained.trained() {
        let gradient = collective.all_reduce_mean(output.gradients.get(&param.tensor).unwrap()).unwrap();
        mean.accumulate(param.tensor.id(), gradient).unwrap();
    }
    let seen = moca.seen.distances[0];
    optimizer.step(&mean, 3).unwrap();
    moca.after_step(&ctx).unwrap();
    (seen, all(&moca.state()))
}

#[test]
fn ranks_agree_after_a_step() {
    let ranks = InProcess::group(2);
    let threads: Vec<_> = ranks
        .into_iter()
        .enumerate()
        .map(|(rank, handle)| std::thread::spawn(move || step_on(&handle, rank)))
        .collect();
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_ne!(results[0].0, results[1].0, "each rank sees images of its own");
    assert_eq!(results[0].1, results[1].1, "parameters, words, running numbers");
}
