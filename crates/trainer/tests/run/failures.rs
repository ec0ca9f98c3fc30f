//! What goes wrong stops the run with what is needed to go on.

use crate::common::{Line, Noise, SEED, Stopper, straight, trace, train, trainer, trainer_in};
use candle_core::Device;
use occlude_checkpoint::{CommitError, CommitPhase, RunDir};
use occlude_kernels::Precision;
use occlude_methods::Method;
use occlude_trainer::{End, Error, Event, Sink, Stop, replay};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

fn files(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The settings of a run with its seed, as the trainer compares them.
fn identity(run: &RunDir) -> BTreeMap<String, String> {
    let mut identity = trainer(run).identity;
    identity.insert("seed".into(), SEED.to_string());
    identity
}

#[test]
fn a_loss_that_is_not_finite_moves_nothing_and_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut method = Line::new();
    let bad = |step| Ok(Noise { step, bad: Some(12), ..Noise::default() });
    let error = trainer(&run).run(&mut method, bad).unwrap_err();
    let Error::NonFinite { step: 12, what, .. } = &error else { panic!("{error}") };
    assert!(what.starts_with("loss square"), "{what}");
    let bundle = run.replay_dir().join("step-00000012");
    let message = error.to_string();
    assert!(message.contains(&format!("`occlude replay {}`", bundle.display())), "{message}");
    assert!(message.contains("the checkpoint after step 10 stands") && !message.contains('\n'), "{message}");
    assert_eq!(files(&run.checkpoints_dir()), ["step-00000005", "step-00000010"]);

    // The weights are those after 12 steps: of a run that was stopped there.
    let other = tempfile::tempdir().unwrap();
    let stopped = RunDir::create(other.path()).unwrap();
    let mut until = trainer(&stopped);
    let stopper = Stopper(12, until.stop.clone());
    until.sinks.push(Box::new(stopper));
    let mut expected = Line::new();
    until.run(&mut expected, |step| Ok(Noise { step, ..Noise::default() })).unwrap();
    assert_eq!(method.weights(), expected.weights());
    assert!(method.weights().iter().all(|weight| weight.is_finite()));
    let optimizer = "optimizer.safetensors";
    let before = stopped.checkpoints_dir().join("step-00000012").join(optimizer);
    assert_eq!(fs::read(bundle.join(optimizer)).unwrap(), fs::read(before).unwrap());

    let again = replay(&bundle, &identity(&run), &mut Line::new(), &Device::Cpu).unwrap();
    assert_eq!((again.step, again.seed, &again.ids[..]), (12, SEED, &[48, 49, 50, 51][..]));
    assert!(again.losses.get("square").unwrap().is_nan());
    assert_eq!(again.bad_gradients, ["student.w"]);

    // The cause removed, the run goes on from the checkpoint to the same end.
    let outcome = train(trainer(&run)).unwrap();
    assert_eq!(outcome.resumed, Some(10));
    assert_eq!(trace(&run, &outcome.checkpoint), straight());
}

#[test]
fn a_step_of_other_settings_is_not_replayed_and_a_fresh_start_removes_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let bad = |step| Ok(Noise { step, bad: Some(1), ..Noise::default() });
    trainer(&run).run(&mut Line::new(), bad).unwrap_err();
    let bundle = run.replay_dir().join("step-00000001");
    let mut other = identity(&run);
    other.insert("method.dim".into(), "99".into());
    let error = replay(&bundle, &other, &mut Line::new(), &Device::Cpu).unwrap_err();
    assert!(matches!(&error, Error::OtherStep { .. }), "{error}");
    assert!(error.to_string().contains("method.dim (was 12, now 99)"), "{error}");

    let mut fresh = trainer(&run);
    fresh.fresh = true;
    train(fresh).unwrap();
    assert!(files(&run.replay_dir()).is_empty());
}

#[test]
fn a_step_and_its_replay_have_the_precision_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let bad = |step| Ok(Noise { step, bad: Some(2), ..Noise::default() });
    let mut method = Line::new();
    trainer_in("bf16", &run).run(&mut method, bad).unwrap_err();
    assert_eq!(method.precisions, [Precision::Bf16; 3]);
    let mut again = Line::new();
    replay(&run.replay_dir().join("step-00000002"), &identity(&run), &mut again, &Device::Cpu).unwrap();
    assert_eq!((again.precisions, Precision::current()), (vec![Precision::Bf16], Precision::F32));
}

#[test]
fn a_gradient_that_is_not_finite_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut method = Line::new();
    method.poisoned = Some(0);
    let before = method.weights();
    let error = trainer(&run).run(&mut method, |step| Ok(Noise { step, ..Noise::default() })).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { step: 0, what, .. } if what == "the gradient of student.w"), "{error}");
    assert_eq!(method.weights(), before);
    let again = replay(&run.replay_dir().join("step-00000000"), &identity(&run), &mut method, &Device::Cpu).unwrap();
    assert!(again.losses.get("square").unwrap().is_finite());
    assert_eq!(again.bad_gradients, ["student.w"]);
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let first = train(trainer(&run)).unwrap();
    let before = trace(&run, &first.checkpoint);
    let mut other = trainer(&run);
    other.identity.insert("method.dim".into(), "99".into());
    other.streams = occlude_random::Streams::new(5);
    let error = train(other).unwrap_err();
    assert!(matches!(&error, Error::OtherConfig { .. }));
    let message = error.to_string();
    assert!(message.contains("method.dim (was 12, now 99), seed (was 11, now 5)"), "{message}");
    assert!(message.contains("--out") && message.contains("--fresh"), "{message}");
    assert_eq!(trace(&run, &first.checkpoint), before);

    let mut fresh = trainer(&run);
    fresh.identity.insert("method.dim".into(), "99".into());
    fresh.fresh = true;
    let outcome = train(fresh).unwrap();
    assert_eq!(outcome.resumed, None);
    assert_eq!(trace(&run, &outcome.checkpoint).metrics, before.metrics, "files start anew");
}

#[test]
fn damage_to_every_checkpoint_is_not_taken_for_a_new_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    train(trainer(&run)).unwrap();
    let metrics = fs::read(run.metrics_file()).unwrap();
    for name in files(&run.checkpoints_dir()) {
        fs::write(run.checkpoints_dir().join(name).join("method.safetensors"), b"short").unwrap();
    }
    let error = train(trainer(&run)).unwrap_err();
    assert!(matches!(&error, Error::NoWholeCheckpoint { count: 3, .. }), "{error}");
    assert!(error.to_string().contains("--fresh"));
    assert_eq!(fs::read(run.metrics_file()).unwrap(), metrics);
}

#[test]
fn a_full_disk_while_saving_stops_the_run_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut full = trainer(&run);
    let saves = AtomicU32::new(0);
    full.checkpoints = full.checkpoints.observed(move |phase| {
        let third = phase == CommitPhase::Begun && saves.fetch_add(1, Ordering::Relaxed) == 2;
        if third { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    let error = train(full).unwrap_err();
    assert!(matches!(error, Error::Commit(CommitError::NotCommitted { .. })), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    assert_eq!(files(&run.checkpoints_dir()), ["step-00000005", "step-00000010"]);
    let outcome = train(trainer(&run)).unwrap();
    assert_eq!(outcome.resumed, Some(10));
    assert_eq!(trace(&run, &outcome.checkpoint), straight());
}

/// A disk that is full when the row of some step is written.
struct FullAt(u64);

impl Sink for FullAt {
    fn name(&self) -> &str {
        "metrics.jsonl"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Step { row, .. } if row.step == self.0 => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_full_disk_while_writing_metrics_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut full = trainer(&run);
    full.sinks = vec![Box::new(FullAt(7))];
    let message = train(full).unwrap_err().to_string();
    assert!(message.starts_with("metrics.jsonl: ") && message.contains("free some space"), "{message}");
}

#[test]
fn images_that_vanish_end_the_run_with_every_step_saved() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let ends = |step| Ok(Noise { step, ends: Some(13), ..Noise::default() });
    let error = trainer(&run).run(&mut Line::new(), ends).unwrap_err();
    assert!(matches!(error, Error::Data(_)), "{error}");
    let outcome = train(trainer(&run)).unwrap();
    assert_eq!(outcome.resumed, Some(13));
    assert_eq!(trace(&run, &outcome.checkpoint), straight());
}

/// Sends this process a signal after some steps.
struct Raise(u64, i32);

impl Sink for Raise {
    fn name(&self) -> &str {
        "raise"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Step { row, .. } if row.step == self.0 => signal_hook::low_level::raise(self.1),
            _ => Ok(()),
        }
    }
}

#[cfg(unix)]
#[test]
fn signals_finish_the_step_and_save() {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
    // One after the other: signals belong to the process.
    for signal in [SIGINT, SIGTERM, SIGUSR2] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let mut first = trainer(&run);
        first.stop = Stop::on_signals().unwrap();
        first.sinks.push(Box::new(Raise(7, signal)));
        let outcome = train(first).unwrap();
        assert_eq!((outcome.end, outcome.step), (End::Interrupted, 7), "signal {signal}");
        let outcome = train(trainer(&run)).unwrap();
        assert_eq!(outcome.resumed, Some(7));
        assert_eq!(trace(&run, &outcome.checkpoint), straight());
    }
}

#[cfg(unix)]
#[test]
fn released_signals_end_the_process() {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "OCCLUDE_TEST_RAISES_RELEASED";
    if let Some(signal) = std::env::var(CHILD).ok().and_then(|signal| signal.parse().ok()) {
        let stop = Stop::on_signals().unwrap();
        stop.release();
        drop(stop);
        signal_hook::low_level::raise(signal).unwrap();
        unreachable!("a released signal must end the process");
    }
    for signal in [SIGINT, SIGTERM, SIGUSR2] {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "failures::released_signals_end_the_process"])
            .env(CHILD, signal.to_string())
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(signal), "{}", String::from_utf8_lossy(&child.stdout));
    }
}

#[cfg(unix)]
#[test]
fn a_second_interrupt_ends_the_process_at_once() {
    const CHILD: &str = "OCCLUDE_TEST_RAISES_TWICE";
    if std::env::var_os(CHILD).is_some() {
        let stop = Stop::on_signals().unwrap();
        signal_hook::low_level::raise(signal_hook::consts::SIGINT).unwrap();
        assert!(stop.requested());
        signal_hook::low_level::raise(signal_hook::consts::SIGINT).unwrap();
        unreachable!("the second interrupt must end the process");
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "failures::a_second_interrupt_ends_the_process_at_once"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.code(), Some(130), "{}", String::from_utf8_lossy(&child.stdout));
}

#[test]
fn a_damaged_bundle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let bad = |step| Ok(Noise { step, bad: Some(1), ..Noise::default() });
    let message = trainer(&run).run(&mut Line::new(), bad).unwrap_err().to_string();
    assert!(message.contains("there was no checkpoint yet"), "{message}");
    let bundle = run.replay_dir().join("step-00000001");
    let mut bytes = fs::read(bundle.join("batch.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(bundle.join("batch.safetensors"), bytes).unwrap();
    let mut method = Line::new();
    let before = method.state()["student.w"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(matches!(replay(&bundle, &identity(&run), &mut method, &Device::Cpu), Err(Error::Checkpoint(_))));
    assert_eq!(method.weights(), before, "a damaged bundle changes nothing");
}
