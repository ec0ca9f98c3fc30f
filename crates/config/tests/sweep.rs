//! Every config and every preset that ships is read and allowed.
// Helpers outside `#[test]` functions are test code too.
#![allow(clippy::unwrap_used, clippy::panic)]

use occlude_config::{RunConfig, Sources, preset_names, resolve};
use std::path::{Path, PathBuf};

fn configs(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            configs(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
}

fn all() -> Vec<PathBuf> {
    let mut found = Vec::new();
    configs(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs"), &mut found);
    found.sort();
    found
}

fn read(path: &Path) -> RunConfig {
    let sources = Sources { file: Some(path.to_owned()), ..Sources::default() };
    resolve(&sources).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_config_is_allowed() {
    let found = all();
    assert!(found.len() > 30, "{found:?}");
    for path in found {
        read(&path).check(None).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn every_config_says_what_to_expect() {
    for path in all() {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.display();
        for part in ["# Source ", "# Command "] {
            assert!(text.contains(part), "{name} has no line `{part}`");
        }
        assert!(text.starts_with("# "), "{name} begins with a sentence");
    }
}

/// The blocks of settings in the pages of the guide, each with its page.
fn blocks() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide");
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
        found.extend(blocks.map(|block| (path.display().to_string(), block)));
    }
    found
}

#[test]
fn settings_that_the_guide_shows_are_allowed() {
    let found = blocks();
    assert!(found.len() > 3, "{found:?}");
    let folder = tempfile::tempdir().unwrap();
    for (page, block) in found {
        let file = folder.path().join("shown.toml");
        std::fs::write(&file, &block).unwrap();
        read(&file).check(None).unwrap_or_else(|error| panic!("{page}: {error}\n{block}"));
    }
}

#[test]
fn every_preset_is_allowed() {
    for name in preset_names() {
        let set = vec![format!("preset={name}")];
        let config = resolve(&Sources { set, ..Sources::default() }).unwrap();
        config.check(None).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn an_ablation_changes_its_setting_and_no_other() {
    let baseline = all().into_iter().find(|path| path.ends_with("ablations/baseline.toml")).unwrap();
    let base = read(&baseline).identity();
    for path in all().iter().filter(|path| path.components().any(|part| part.as_os_str() == "ablations")) {
        let row = read(path).identity();
        let changed = row.iter().filter(|(key, value)| base.get(*key) != Some(*value)).count();
        assert!(changed <= 3 && (changed > 0 || *path == baseline), "{}: {changed} settings", path.display());
    }
}

#[test]
fn the_quick_start_is_the_file_in_configs() {
    let built_in = resolve(&Sources { quickstart: true, ..Sources::default() }).unwrap();
    let file = all().into_iter().find(|path| path.ends_with("configs/quickstart.toml")).unwrap();
    assert_eq!(built_in, read(&file));
}

#[test]
fn layers_lie_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    std::fs::write(&file, "preset = \"capi-vit-s\"\nseed = 1\n[train]\nbatch = 11\n").unwrap();
    let mut sources = Sources { file: Some(file), ..Sources::default() };
    let dim = |config: &RunConfig| config.identity()["method.encoder.dim"].clone();
    let read = resolve(&sources).unwrap();
    assert_eq!((dim(&read).as_str(), read.seed, read.train.batch), ("384", 1, 11), "file over preset over defaults");
    sources.environment = vec![("OCCLUDE_SEED".into(), "2".into()), ("OCCLUDE_TRAIN__BATCH".into(), "12".into())];
    sources.set = vec!["train.batch=13".into(), "preset=capi-vit-b".into()];
    let read = resolve(&sources).unwrap();
    assert_eq!((dim(&read).as_str(), read.seed, read.train.batch), ("768", 2, 13), "arguments over environment");
}

#[test]
fn an_unknown_preset_names_the_nearest() {
    let set = vec!["preset=capi-vits".into()];
    let message = resolve(&Sources { set, ..Sources::default() }).unwrap_err().to_string();
    assert!(message.contains("did you mean `capi-vit-s`?"), "{message}");
}
