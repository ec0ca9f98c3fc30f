//! Other objectives, masks and architectures, and a step of two micro-batches.

use super::golden_step::{
    GRADIENTS, STATE, check_gradients, check_losses, check_rounds, check_state, check_targets, close,
};
use super::{Golden, choice, context, rounds, single, under, views};
use crate::moca::Moca;
use crate::{Method, StepContext};
use occlude_golden::{Tensors, assert_close, set, with_split_attention};
use occlude_kernels::{Gradients, global_norm};
use occlude_optim::Optimizer;
use occlude_random::Streams;

/// One step against its record, and the codebook after it.
fn check_step(moca: &mut Moca, step: u64, inputs: &Tensors, record: &Tensors) {
    check_targets(moca, inputs, record);
    check_rounds(moca, inputs, record);
    let rounds = rounds(moca, inputs);
    let output = moca.step_with(views(inputs), &rounds, Some(&choice(inputs))).unwrap();
    check_losses(&output.losses, record);
    assert!(check_gradients(moca, &output.gradients, under(record, "grad.")) > 0);
    let all = moca.trained.trained().map(|param| output.gradients.get(&param.tensor).unwrap());
    close(record, "grad_total_norm", &single(global_norm(all).unwrap()), GRADIENTS);
    moca.after_step(&context(step)).unwrap();
    let state = moca.state();
    let after = [
        ("codebook_after", "_embedding"),
        ("codebook_ptr_after", "_embedding_ptr"),
        ("dist_norm_after", "_dist_norm"),
        ("dist_norm_prev_after", "_dist_norm_prev"),
    ];
    for (theirs, ours) in after {
        close(record, theirs, &state[&format!("bow_extractor.bow_extractor.0.{ours}")], STATE);
    }
}

#[test]
fn golden_moca_variants() {
    let (Some(golden), Some(records)) = (Golden::find(), set("moca").tensors("variants")) else { return };
    let variants = golden.config["variants"].as_object().unwrap();
    assert!(!variants.is_empty());
    for (name, changes) in variants {
        let config = golden.moca_config(&golden.with(changes));
        let mut moca = golden.moca(&config, &golden.state);
        // The images are those of the first step; masks and words are the variant's own. The teacher stays.
        let record = under(&records, &format!("{name}/"));
        let mut inputs = record.clone();
        inputs.extend(["x1", "x2"].map(|view| (view.to_owned(), golden.inputs[view].clone())));
        check_step(&mut moca, golden.step(1), &inputs, &record);
    }
}

#[test]
fn golden_moca_other_architectures() {
    let Some(golden) = Golden::find() else { return };
    let variants = golden.config["arch_variants"].as_object().unwrap();
    assert!(!variants.is_empty());
    for (name, changes) in variants {
        let Some(record) = set("moca").tensors(&format!("arch_{name}")) else { return };
        let mut config = golden.moca_config(&golden.with(changes));
        let momentum = record["sched_teacher_momentum"].to_vec1::<f64>().unwrap()[0];
        (config.optimizer.momentum, config.optimizer.momentum_end) = (momentum, momentum);
        let mut moca = golden.moca(&config, &with_split_attention(under(&record, "state/")));
        moca.before_update(&context(golden.step(1))).unwrap();
        check_step(&mut moca, golden.step(1), &record, &record);
    }
}

#[test]
fn golden_moca_accumulation() {
    let (Some(golden), Some(record)) = (Golden::find(), set("moca").tensors("accumulation")) else { return };
    let mut moca = golden.moca(&golden.moca_config(&golden.settings), &golden.state);
    let mut optimizer = Optimizer::new(moca.groups(), golden.settings["clip_grad"].as_f64()).unwrap();
    let micros = (1..).map(|micro| under(&record, &format!("micro{micro}/"))).take_while(|of| !of.is_empty());
    let micros: Vec<Tensors> = micros.collect();
    let mut gradients = Gradients::default();
    let mut running = moca.codebook.distance().unwrap();
    for (micro, record) in micros.iter().enumerate() {
        let single_process = context(golden.step(1));
        let ctx = StepContext { micro, micros: micros.len(), streams: Streams::new(0), ..single_process };
        let last = ctx.is_last_micro();
        if last {
            moca.before_update(&ctx).unwrap();
        }
        check_targets(&moca, record, record);
        let (rounds, choice) = (rounds(&moca, record), last.then(|| choice(record)));
        let output = moca.step_with(views(record), &rounds, choice.as_ref()).unwrap();
        check_losses(&output.losses, record);
        for param in moca.trained.trained() {
            // The mean over micro-batches, as the trainer takes it.
            let gradient = (output.gradients.get(&param.tensor).unwrap() / micros.len() as f64).unwrap();
            gradients.accumulate(param.tensor.id(), gradient).unwrap();
        }
        // What the running distance will be, once the step is done.
        for (distance, name) in
            moca.seen.distances[2 * micro..].iter().zip(["dist_norm_after_v1", "dist_norm_after_v2"])
        {
            running = 0.99 * running + 0.01 * distance;
            assert_close(name, &single(running), &record[name], STATE);
        }
    }
    let ctx = context(golden.step(1));
    let report = optimizer.step(&gradients, ctx.step).unwrap();
    moca.after_step(&ctx).unwrap();
    check_state(&moca, under(&record, "after/"), &report.lrs);
}
