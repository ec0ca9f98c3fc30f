//! Commits under every kind of interruption, and pruning.
// Helpers of tests may stop at the first surprise, as tests may.
#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{Device, Tensor};
use occlude_checkpoint::{Checkpoint, Checkpoints, CommitError, CommitPhase, Error, Retention};
use occlude_kernels::StateDict;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

const PHASES: [CommitPhase; 4] =
    [CommitPhase::Begun, CommitPhase::PartsWritten, CommitPhase::Written, CommitPhase::Published];

fn weights(value: f32) -> StateDict {
    [("w".to_owned(), Tensor::full(value, (2, 3), &Device::Cpu).unwrap())].into()
}

fn commit(checkpoints: &Checkpoints, step: u64, value: f32) -> Result<(), CommitError> {
    checkpoints.commit(step, &[("method", &weights(value)), ("optimizer", &weights(-value))], &step).map(drop)
}

fn value(checkpoint: &Checkpoint) -> f32 {
    checkpoint.load("method", &Device::Cpu).unwrap()["w"].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
}

fn newest(checkpoints: &Checkpoints) -> Option<(u64, f32)> {
    checkpoints.newest().unwrap().checkpoint.map(|checkpoint| (checkpoint.step(), value(&checkpoint)))
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn what_was_committed_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), Retention::default());
    assert!(newest(&checkpoints).is_none(), "a folder that is not there holds no checkpoint");
    let path = checkpoints.commit(7, &[("method", &weights(1.5)), ("optimizer", &weights(2.5))], &"state").unwrap();
    let checkpoint = Checkpoint::open(path).unwrap();
    assert_eq!(checkpoint.parts().collect::<Vec<_>>(), ["method", "optimizer"]);
    assert_eq!(checkpoint.state::<String>().unwrap(), "state");
    assert!(matches!(checkpoint.state::<u64>(), Err(Error::Mismatch { .. })));
    assert!(matches!(checkpoint.load("teacher", &Device::Cpu), Err(Error::Mismatch { .. })));
    assert_eq!(value(&checkpoint), 1.5);
}

/// The folder as a process killed at each phase leaves it.
fn snapshots(step: u64) -> Vec<(CommitPhase, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let plain = Checkpoints::new(folder.path(), Retention::default());
    commit(&plain, 10, 1.0).unwrap();
    commit(&plain, 20, 2.0).unwrap();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (root, into) = (folder.path().to_owned(), Arc::clone(&taken));
    let observed = plain.observed(move |phase| {
        let copy = tempfile::tempdir()?;
        copy_tree(&root, copy.path());
        into.lock().unwrap().push((phase, copy));
        Ok(())
    });
    commit(&observed, step, 3.0).unwrap();
    drop(observed);
    Arc::try_unwrap(taken).unwrap().into_inner().unwrap()
}

#[test]
fn a_kill_at_any_phase_leaves_the_old_or_the_new_checkpoint() {
    let taken = snapshots(30);
    assert_eq!(taken.iter().map(|(phase, _)| *phase).collect::<Vec<_>>(), PHASES);
    for (phase, copy) in taken {
        let left = Checkpoints::new(copy.path(), Retention::default());
        let expected = if phase == CommitPhase::Published { (30, 3.0) } else { (20, 2.0) };
        assert_eq!(newest(&left), Some(expected), "{phase:?} before clearing up");
        left.recover().unwrap();
        assert_eq!(newest(&left), Some(expected), "{phase:?} after clearing up");
        assert!(names(copy.path()).iter().all(|name| name.starts_with("step-")), "{:?}", names(copy.path()));
        commit(&left, 30, 4.0).unwrap();
        assert_eq!(newest(&left), Some((30, 4.0)));
    }
}

#[test]
fn a_kill_while_a_step_is_replaced_loses_nothing() {
    let taken = snapshots(20);
    assert!(taken.iter().any(|(phase, _)| *phase == CommitPhase::MovedAside));
    for (phase, copy) in taken {
        let left = Checkpoints::new(copy.path(), Retention::default());
        left.recover().unwrap();
        let expected = if phase == CommitPhase::Published { 3.0 } else { 2.0 };
        assert_eq!(newest(&left), Some((20, expected)), "{phase:?}");
    }
}

#[test]
fn a_full_disk_at_any_phase_is_an_error_and_the_last_checkpoint_stands() {
    for (step, failing) in [(30, CommitPhase::Begun), (30, CommitPhase::PartsWritten), (30, CommitPhase::Written)]
        .into_iter()
        .chain([(20, CommitPhase::MovedAside)])
    {
        let folder = tempfile::tempdir().unwrap();
        let plain = Checkpoints::new(folder.path(), Retention::default());
        commit(&plain, 20, 2.0).unwrap();
        let full = plain
            .clone()
            .observed(move |phase| if phase == failing { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) });
        let refused = commit(&full, step, 3.0).unwrap_err();
        assert!(matches!(refused, CommitError::NotCommitted { .. }), "{refused}");
        assert!(refused.to_string().contains("free some space"), "{refused}");
        assert_eq!(newest(&plain), Some((20, 2.0)), "{failing:?}");
        assert_eq!(names(folder.path()), ["step-00000020"], "{failing:?}");
    }
}

#[test]
fn a_part_whose_name_leaves_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path().join("inside"), Retention::default());
    assert!(checkpoints.commit(1, &[("../out", &weights(1.0))], &()).is_err());
    assert_eq!(names(folder.path()), ["inside"]);
}

#[test]
fn pruning_keeps_the_last_and_the_round_ones() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path(), Retention { keep_last: 2, keep_every: Some(20) });
    for step in (5..=50).step_by(5) {
        commit(&checkpoints, step, step as f32).unwrap();
    }
    assert_eq!(names(folder.path()), ["step-00000020", "step-00000040", "step-00000045", "step-00000050"]);
}

#[test]
fn pruning_never_removes_the_one_just_written() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path(), Retention { keep_last: 0, keep_every: None });
    // Steps 20 and 30 are from before a damaged checkpoint; training went back to 5 and saves at 10.
    let keep_all = Checkpoints::new(folder.path(), Retention { keep_last: 9, keep_every: None });
    [5, 20, 30].into_iter().for_each(|step| commit(&keep_all, step, 0.0).unwrap());
    commit(&checkpoints, 10, 1.0).unwrap();
    assert_eq!(names(folder.path()), ["step-00000010", "step-00000020", "step-00000030"]);
    checkpoints.clear().unwrap();
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_checkpoint_that_cannot_be_removed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path(), Retention::default());
    commit(&checkpoints, 5, 0.0).unwrap();
    // What is removed is renamed first, and nothing is renamed onto a folder that holds something.
    fs::create_dir_all(folder.path().join(".tmp-pruned-step-00000005/held")).unwrap();
    let error = checkpoints.clear().unwrap_err().to_string();
    assert!(error.contains("step-00000005"), "{error}");
}
