//! A damaged checkpoint is noticed, whatever byte is hit, and the one before it is found.
// Helpers of tests may stop at the first surprise, as tests may.
#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{Device, Tensor};
use occlude_checkpoint::{Checkpoint, Checkpoints, Retention};
use occlude_kernels::StateDict;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::fs;
use std::path::{Path, PathBuf};

fn lay_down(root: &Path) -> PathBuf {
    let checkpoints = Checkpoints::new(root, Retention::default());
    let ramp = Tensor::arange(0_f32, 24.0, &Device::Cpu).unwrap().reshape((4, 6)).unwrap();
    let state: StateDict = [("blocks.0.weight".to_owned(), ramp.clone()), ("scale".to_owned(), ramp)].into();
    for step in [10, 20] {
        let text = serde_json::json!({ "next_step": step, "note": "whole" });
        checkpoints.commit(step, &[("method", &state), ("optimizer", &state)], &text).unwrap();
    }
    root.join("step-00000020")
}

fn files(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn refused_and_fallen_back(root: &Path, damaged: &Path) {
    assert!(Checkpoint::open(damaged).is_err(), "{} was accepted", damaged.display());
    let newest = Checkpoints::new(root, Retention::default()).newest().unwrap();
    assert_eq!(newest.checkpoint.unwrap().step(), 10);
    assert_eq!(newest.skipped.iter().map(|(path, _)| path.as_path()).collect::<Vec<_>>(), [damaged]);
}

/// Runs `damage` on the bytes of each file of one checkpoint in turn, at random places, and mends it again.
fn sweep(damage: impl Fn(&mut Vec<u8>, prop::sample::Index, u8)) {
    let folder = tempfile::tempdir().unwrap();
    let damaged = lay_down(folder.path());
    let files = files(&damaged);
    assert_eq!(files.len(), 4);
    let cases = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let hits = (0..files.len(), any::<prop::sample::Index>(), 1_u8..=255);
    TestRunner::new(cases)
        .run(&hits, |(file, place, change)| {
            let whole = fs::read(&files[file]).unwrap();
            let mut bytes = whole.clone();
            damage(&mut bytes, place, change);
            fs::write(&files[file], bytes).unwrap();
            refused_and_fallen_back(folder.path(), &damaged);
            fs::write(&files[file], whole).unwrap();
            prop_assert!(Checkpoint::open(&damaged).is_ok());
            Ok(())
        })
        .unwrap();
}

#[test]
fn any_changed_byte_is_noticed() {
    sweep(|bytes, place, change| {
        let place = place.index(bytes.len());
        bytes[place] ^= change;
    });
}

#[test]
fn any_changed_length_is_noticed() {
    sweep(
        |bytes, place, change| {
            if change % 2 == 0 { bytes.push(change) } else { bytes.truncate(place.index(bytes.len())) }
        },
    );
}

#[test]
fn a_missing_file_is_noticed() {
    for file in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let damaged = lay_down(folder.path());
        fs::remove_file(&files(&damaged)[file]).unwrap();
        refused_and_fallen_back(folder.path(), &damaged);
    }
}

#[test]
fn a_checkpoint_under_the_name_of_another_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let whole = lay_down(folder.path());
    let renamed = folder.path().join("step-00000030");
    fs::rename(&whole, &renamed).unwrap();
    refused_and_fallen_back(folder.path(), &renamed);
}

#[test]
fn damage_after_opening_is_noticed_at_loading() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(lay_down(folder.path())).unwrap();
    let path = checkpoint.path().join("method.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(checkpoint.load("method", &Device::Cpu).is_err());
    checkpoint.load("optimizer", &Device::Cpu).unwrap();
}

#[test]
fn a_manifest_over_its_limit_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = lay_down(folder.path());
    let manifest = fs::File::options().write(true).open(damaged.join("manifest.json")).unwrap();
    manifest.set_len(occlude_checkpoint::MAX_MANIFEST_BYTES + 1).unwrap();
    let refused = Checkpoint::open(&damaged).unwrap_err();
    assert!(refused.to_string().contains("limit"), "{refused}");
}
