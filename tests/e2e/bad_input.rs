//! Bad input: one clear line with the remedy, exit code not 0, nothing lost.

use occlude_e2e::{Lab, speckles};
use std::process::Command;

fn refused(lab: &Lab, arguments: &str, expected: &[&str]) {
    let error = lab.occlude(&format!("train tiny.toml --out run {arguments}")).refuses();
    for part in expected {
        assert!(error.contains(part), "`{part}` in: {error}");
    }
}

#[test]
fn a_missing_folder() {
    refused(&Lab::new(), "--set data.source.path=nowhere", &["nowhere", "no such file or folder"]);
}

#[test]
fn an_empty_folder() {
    let lab = Lab::new();
    lab.write("empty/readme.txt", "nothing here");
    refused(&lab, "--set data.source.path=empty", &["empty", "no images"]);
}

#[test]
fn a_missing_config() {
    let error = Lab::new().occlude("train nowhere.toml").refuses();
    assert!(error.contains("nowhere.toml"), "{error}");
}

#[test]
fn a_truncated_picture_is_counted_and_named_and_training_goes_on() {
    let lab = Lab::new().images(40);
    cut(&lab, "images/a/cut.jpg");
    let source = "--set data.source.path=images --set data.loader.max_corrupt_share=0.5";
    let outcome = lab.occlude(&format!("train tiny.toml --out run {source}")).succeeds();
    let said = outcome.said();
    assert!(said.contains("unreadable image left out") && said.contains("cut.jpg"), "{}", outcome.report());
    let timing = lab.text("run/timing.jsonl");
    let last: serde_json::Value = serde_json::from_str(timing.lines().last().unwrap()).unwrap();
    assert_eq!(last["corrupt"], 1, "{timing}");
}

#[test]
fn too_many_truncated_pictures_stop_the_run() {
    let lab = Lab::new().images(8);
    for n in 0..8 {
        cut(&lab, &format!("images/a/cut{n}.jpg"));
    }
    let source = "--set data.source.path=images --set data.loader.max_corrupt_share=0.1 --set probe.every.steps=0";
    refused(&lab, source, &["unreadable images", "max_corrupt_share"]);
}

/// A JPEG file that ends in the middle.
fn cut(lab: &Lab, name: &str) {
    let path = lab.path(name);
    speckles(&path, 64, 1);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 3]).unwrap();
}

#[test]
fn a_cifar_file_of_the_wrong_length() {
    let lab = Lab::new();
    lab.write("cifar/data_batch_1.bin", vec![0_u8; 3073 * 4 - 5]);
    lab.write("cifar/test_batch.bin", vec![0_u8; 3073]);
    refused(&lab, "--set data.source.path=cifar", &["data_batch_1.bin", "3073"]);
}

#[test]
fn an_unknown_key() {
    refused(&Lab::new(), "--set method.mask.ration=0.5", &["method.mask.ration", "did you mean `method.mask.ratio`?"]);
}

#[test]
fn a_mask_ratio_above_one() {
    refused(&Lab::new(), "--set method.mask.ratio=1.2", &["method.mask.ratio = 1.2", "between 0 and 1"]);
}

#[test]
fn an_unreachable_number_of_prototypes() {
    refused(&Lab::new(), "--set method.clustering.prototypes=0", &["prototypes = 0"]);
    refused(&Lab::new(), "--set method.clustering.prototypes=100000000", &["prototypes = 100000000"]);
}

#[test]
fn a_word_for_a_number() {
    refused(&Lab::new(), "--set train.batch=many", &["train.batch = \"many\"", "whole number"]);
}

#[test]
fn an_unknown_device() {
    refused(&Lab::new(), "--set device=abacus", &["abacus", "cpu"]);
}

#[test]
fn a_run_of_another_config_is_left_alone() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").succeeds();
    let before = lab.weights("run");
    let change = "--set method.encoder.depth=3";
    refused(&lab, change, &["method.encoder.depth", "--fresh", "--out"]);
    assert_eq!(lab.weights("run"), before, "nothing is lost");
}

#[test]
fn a_run_of_other_images_is_left_alone() {
    let lab = Lab::new().images(40);
    let source = "--set data.source.path=images";
    lab.occlude(&format!("train tiny.toml --out run {source}")).succeeds();
    let before = lab.weights("run");
    speckles(&lab.path("images/a/new.png"), 24, 99);
    refused(&lab, source, &["data.images (was 36 ", "now 37 ", "--fresh", "--out"]);
    assert_eq!(lab.weights("run"), before, "nothing is lost");
}

#[test]
fn classes_of_a_few_images_are_no_reason_to_stop() {
    let lab = Lab::new();
    for n in 0..60 {
        let class = ["a", "b"][n as usize % 2];
        let folder =
            if n < 44 { "train".to_owned() } else { format!("{}/{class}", if n < 56 { "train" } else { "val" }) };
        speckles(&lab.path(&format!("images/{folder}/{n}.png")), 24, n);
    }
    // Twelve of 56 training images have a class: too few for twenty neighbours, enough for five.
    let train = "train tiny.toml --set data.source.path=images";
    let few = lab.occlude(&format!("{train} --out few")).succeeds();
    assert!(few.said().contains("no scores for this run: 12 training images have a class"), "{}", few.report());
    let enough = lab.occlude(&format!("{train} --out enough --set eval.knn.neighbours=[1,5]")).succeeds();
    assert!(enough.stdout.contains("against 12 images"), "{}", enough.report());
}

#[test]
fn a_full_disk() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("small")).unwrap();
    let Some(disk) = SmallDisk::mount(&lab, "small", "600k") else { return };
    let outcome = lab.occlude("train tiny.toml --out small/run").output();
    assert_eq!(outcome.code, Some(1), "{}", outcome.report());
    let last = outcome.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("No space left") && last.contains("free some space"), "{}", outcome.report());
    // What was committed before still opens, and the run goes on where there is room.
    disk.grow("64m");
    let resumed = lab.occlude("train tiny.toml --out small/run").succeeds();
    assert!(lab.read("small/run/summary.json").len() > 2, "{}", resumed.report());
}

/// A file system of a few kilobytes, unmounted at the end.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None`, after saying so, where mounting is not permitted.
    fn mount(lab: &Lab, folder: &str, size: &str) -> Option<Self> {
        let path = lab.path(folder);
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        eprintln!("skipped: mounting a small file system is not permitted here");
        None
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}
