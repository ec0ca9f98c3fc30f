//! Steps of several micro-batches.

use crate::common::{BATCH, Breaker, Line, Noise, SEED, Stopper, trace, train, trainer_of_micros};
use candle_core::{Device, Tensor};
use occlude_checkpoint::{Checkpoint, RunDir};
use occlude_kernels::Gradients;
use occlude_methods::{Method, StepContext, ViewBatch};
use occlude_optim::Optimizer;
use occlude_random::Streams;
use occlude_trainer::{Batches, End, Error, replay};

const MICROS: usize = 3;

fn trainer(run: &RunDir) -> occlude_trainer::Trainer<'_> {
    trainer_of_micros(MICROS, run)
}

#[test]
fn a_step_is_called_in_this_order() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut method = Line::new();
    let outcome = trainer(&run).run(&mut method, |step| Ok(Noise { step, ..Noise::default() })).unwrap();
    let of_step = |step| {
        let last = MICROS - 1;
        [
            ("step", step, 0),
            ("step", step, 1),
            ("before_update", step, last),
            ("step", step, last),
            ("after_step", step, last),
        ]
    };
    assert_eq!(method.calls, (0..20).flat_map(of_step).collect::<Vec<_>>());
    let state: serde_json::Value = Checkpoint::open(&outcome.checkpoint).unwrap().state().unwrap();
    assert_eq!(state["spent"]["images"], 20 * MICROS * BATCH);
}

#[test]
fn gradients_and_losses_are_means() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut trained = Line::new();
    let outcome = trainer_of_micros(2, &run).run(&mut trained, |step| Ok(Noise { step, ..Noise::default() })).unwrap();

    // The same, by hand: two batches, the mean of their gradients, one step.
    let mut method = Line::new();
    let mut optimizer = Optimizer::new(method.groups(), Some(1.0)).unwrap();
    let mut noise = Noise::default();
    let mut losses = Vec::new();
    for step in 0..20 {
        let mut outputs = Vec::new();
        for micro in 0..2 {
            let ctx = StepContext { micro, micros: 2, ..StepContext::single(step, Streams::new(SEED)) };
            let batch = Batches::next(&mut noise).unwrap();
            let view = Tensor::from_vec(batch.views[0].clone(), &batch.shape, &Device::Cpu).unwrap();
            if micro == 1 {
                method.before_update(&ctx).unwrap();
            }
            outputs.push(method.step(&ViewBatch { views: vec![view], ids: batch.ids }, &ctx).unwrap());
        }
        let weight = method.groups()[0].params[0].tensor.clone();
        let [first, second] = [0, 1].map(|micro| outputs[micro].gradients.get(&weight).unwrap());
        let mut mean = Gradients::default();
        mean.accumulate(weight.id(), ((first + second).unwrap() / 2.0).unwrap()).unwrap();
        optimizer.step(&mean, step).unwrap();
        method
            .after_step(&StepContext { micro: 1, micros: 2, ..StepContext::single(step, Streams::new(SEED)) })
            .unwrap();
        losses = outputs.iter().map(|output| output.losses[0].1).collect();
    }
    assert_eq!(trained.weights(), method.weights());
    assert_eq!(outcome.summary.final_loss, Some((losses[0] + losses[1]) / 2.0));
}

#[test]
fn an_interrupted_run_ends_as_one_in_one_go() {
    let straight = || {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let outcome = train(trainer(&run)).unwrap();
        trace(&run, &outcome.checkpoint)
    };
    let expected = straight();
    for stop_after in [1, 5, 12] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let mut first = trainer(&run);
        let stopper = Stopper(stop_after, first.stop.clone());
        first.sinks.push(Box::new(stopper));
        assert_eq!(train(first).unwrap().end, End::Interrupted);
        let outcome = train(trainer(&run)).unwrap();
        assert_eq!(outcome.resumed, Some(stop_after));
        assert_eq!(trace(&run, &outcome.checkpoint), expected, "stopped after {stop_after}");
    }
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut first = trainer(&run);
    first.sinks.push(Box::new(Breaker(13)));
    train(first).unwrap_err();
    let outcome = train(trainer(&run)).unwrap();
    assert_eq!(outcome.resumed, Some(10));
    assert_eq!(trace(&run, &outcome.checkpoint), expected, "broke off");
}

#[test]
fn a_micro_batch_that_went_wrong_is_replayed_as_it_was() {
    for (micro, name) in [(0, "1 of 3"), (1, "2 of 3"), (2, "3 of 3")] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let mut method = Line::new();
        let number = 4 * MICROS as u64 + micro;
        method.poisoned = Some(number);
        let mut identity = trainer(&run).identity;
        let error = trainer(&run).run(&mut method, |step| Ok(Noise { step, ..Noise::default() })).unwrap_err();
        let Error::NonFinite { step: 4, what, .. } = &error else { panic!("{error}") };
        assert_eq!(*what, format!("the gradient of student.w in micro-batch {name}"));

        identity.insert("seed".into(), SEED.to_string());
        let mut again = Line::new();
        again.poisoned = Some(number);
        let replayed = replay(&run.replay_dir().join("step-00000004"), &identity, &mut again, &Device::Cpu).unwrap();
        assert_eq!((replayed.step, replayed.micro, replayed.micros), (4, micro as usize, MICROS));
        let first = BATCH as u64 * number;
        assert_eq!(replayed.ids, (first..first + BATCH as u64).collect::<Vec<_>>());
        assert_eq!(replayed.losses.get("square"), method.loss, "micro-batch {name}");
        assert_eq!(replayed.bad_gradients, ["student.w"]);
    }
}

#[test]
fn a_run_whose_images_vanish_saves_whole_steps_only() {
    let straight = {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let outcome = train(trainer(&run)).unwrap();
        trace(&run, &outcome.checkpoint)
    };
    for (micro, resumes_after) in [(0, 7), (1, 5)] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let ends = Some(7 * MICROS as u64 + micro);
        let error =
            trainer(&run).run(&mut Line::new(), |step| Ok(Noise { step, ends, ..Noise::default() })).unwrap_err();
        assert!(matches!(error, Error::Data(_)), "{error}");
        let outcome = train(trainer(&run)).unwrap();
        assert_eq!(outcome.resumed, Some(resumes_after), "micro-batch {micro}");
        assert_eq!(trace(&run, &outcome.checkpoint), straight);
    }
}
