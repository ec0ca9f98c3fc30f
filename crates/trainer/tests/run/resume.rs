//! A run that was interrupted ends as one that was not, bit for bit.

use crate::common::{Breaker, Line, Noise, Stopper, straight, trace, train, trainer};
use occlude_checkpoint::{Checkpoint, RunDir};
use occlude_trainer::{End, Error, MatrixRow, ProbeRow, StepRow, Stop, Summary, TimingRow};
use std::fs;

#[test]
fn metrics_hold_one_row_for_each_step_due_and_each_probe_and_epoch() {
    let trace = straight();
    let rows: Vec<serde_json::Value> = trace.metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (shown, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.get("matrix").is_some());
    let (probes, steps): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.get("scores").is_some());
    let shown: Vec<MatrixRow> = shown.into_iter().map(|row| serde_json::from_value(row).unwrap()).collect();
    let steps: Vec<StepRow> = steps.into_iter().map(|row| serde_json::from_value(row).unwrap()).collect();
    let probes: Vec<ProbeRow> = probes.into_iter().map(|row| serde_json::from_value(row).unwrap()).collect();
    assert_eq!(steps.iter().map(|row| row.step).collect::<Vec<_>>(), [1, 3, 6, 9, 12, 15, 18, 20]);
    assert_eq!(probes.iter().map(|row| row.step).collect::<Vec<_>>(), [0, 4, 8, 12, 16, 20]);
    assert_eq!(shown.iter().map(|row| (row.step, row.epoch)).collect::<Vec<_>>(), [(0, 0.0), (10, 1.0), (20, 2.0)]);
    assert!(shown.iter().all(|row| row.matrix == "line" && row.rows * row.cols == row.values.len()));
    assert_ne!(shown[0].values, shown[2].values);
    let last = steps.last().unwrap();
    assert_eq!((last.epoch, last.lr.get("student"), last.momentum.get("student")), (2.0, Some(0.02), Some(0.9)));
    assert!(last.losses.get("square").unwrap() < steps[0].losses.get("square").unwrap());
    assert!(last.grad_norm.unwrap() > 0.0 && last.metrics.get("noise").is_some());
}

#[test]
fn a_run_stopped_at_any_step_goes_on_exactly() {
    let expected = straight();
    for stop_after in [1, 4, 5, 7, 12, 19] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let mut first = trainer(&run);
        first.stop = Stop::new();
        let stopper = Stopper(stop_after, first.stop.clone());
        first.sinks.push(Box::new(stopper));
        let outcome = train(first).unwrap();
        assert_eq!((outcome.end, outcome.step, outcome.resumed), (End::Interrupted, stop_after, None));
        assert!(!outcome.summary.finished);
        let outcome = train(trainer(&run)).unwrap();
        assert_eq!((outcome.end, outcome.step, outcome.resumed), (End::Finished, 20, Some(stop_after)));
        assert_eq!(trace(&run, &outcome.checkpoint), expected, "stopped after {stop_after}");
    }
}

#[test]
fn a_run_that_broke_off_goes_on_from_its_checkpoint_without_double_rows() {
    let expected = straight();
    for (broke_after, resumes_after) in [(3, None), (9, Some(5)), (13, Some(10)), (20, Some(15))] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let mut first = trainer(&run);
        first.sinks.push(Box::new(Breaker(broke_after)));
        assert!(matches!(train(first), Err(Error::Sink { .. })));
        let outcome = train(trainer(&run)).unwrap();
        assert_eq!(outcome.resumed, resumes_after);
        assert_eq!(trace(&run, &outcome.checkpoint), expected, "broke off after {broke_after}");
    }
}

#[test]
fn a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let mut first = trainer(&run);
    first.sinks.push(Box::new(Breaker(18)));
    train(first).unwrap_err();
    let newest = run.checkpoints_dir().join("step-00000015/optimizer.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();
    let outcome = train(trainer(&run)).unwrap();
    assert_eq!(outcome.resumed, Some(10));
    assert_eq!(trace(&run, &outcome.checkpoint), straight());
}

#[test]
fn a_stop_before_the_first_step_repeats_no_score() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let first = trainer(&run);
    first.stop.request();
    let outcome = train(first).unwrap();
    assert_eq!((outcome.end, outcome.step), (End::Interrupted, 0));
    let outcome = train(trainer(&run)).unwrap();
    assert_eq!(outcome.resumed, Some(0));
    assert_eq!(trace(&run, &outcome.checkpoint), straight());
}

#[test]
fn a_finished_run_started_again_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let first = train(trainer(&run)).unwrap();
    let before = trace(&run, &first.checkpoint);
    let timing = fs::read(run.timing_file()).unwrap();
    let mut asked = false;
    let again = trainer(&run)
        .run(&mut Line::new(), |step| {
            asked = true;
            Ok(Noise { step, ..Noise::default() })
        })
        .unwrap();
    assert!(!asked, "no batch is needed");
    assert_eq!((again.end, again.resumed, &again.checkpoint), (End::Finished, Some(20), &first.checkpoint));
    assert_eq!(trace(&run, &again.checkpoint), before);
    assert_eq!(fs::read(run.timing_file()).unwrap(), timing);
    assert_eq!((again.summary.knn, again.summary.final_loss), (first.summary.knn, first.summary.final_loss));
}

#[test]
fn the_summary_counts_all_starts() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::create(folder.path()).unwrap();
    let first = trainer(&run);
    let stopper = Stopper(8, first.stop.clone());
    let mut first = first;
    first.sinks.push(Box::new(stopper));
    let seconds = train(first).unwrap().summary.seconds;
    let summary = train(trainer(&run)).unwrap().summary;
    assert!(summary.finished && summary.seconds > seconds && summary.images_per_second > 0.0);
    assert_eq!((summary.steps, summary.seed), (20, crate::common::SEED));
    assert!(summary.knn_random_weights.is_some() && summary.knn.is_some() && summary.linear.is_none());
    assert_eq!(summary.final_loss, summary.final_losses.get("square").copied());
    // A killed run leaves no summary; its checkpoint knows the same numbers.
    let newest = Checkpoint::open(run.checkpoints_dir().join("step-00000020")).unwrap();
    let stored = Summary::of_checkpoint(&newest).unwrap();
    assert_eq!((stored.finished, stored.steps, stored.knn), (false, 20, summary.knn));
    assert_eq!((stored.final_losses, stored.seed), (summary.final_losses, summary.seed));
    let timing = fs::read_to_string(run.timing_file()).unwrap();
    let rows: Vec<TimingRow> = timing.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row.step).collect::<Vec<_>>(), [1, 3, 6, 9, 12, 15, 18, 20]);
    assert!(rows.windows(2).all(|pair| pair[0].seconds <= pair[1].seconds), "the clock goes on after a restart");
}
