//! Where the program is: beside the test that asks, in the same target folder and profile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The `occlude` program that belongs to this build.
///
/// `cargo test --workspace` has built it already (see `bins/occlude/tests`). Where it is missing or older than the
/// sources, as after `cargo test -p occlude-e2e` alone, it is built now; that takes a while, because cargo chooses
/// other features for a single package.
///
/// # Panics
/// It cannot be built.
#[must_use]
pub fn occlude() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows its own path");
        // Tests lie in `<target>/<profile>/deps`.
        let folder = test.ancestors().nth(2).expect("tests lie two folders below the target folder");
        let program = folder.join(format!("occlude{}", std::env::consts::EXE_SUFFIX));
        if modified(&program).is_none_or(|built| built < newest_source()) {
            build(folder);
        }
        program
    })
}

fn build(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = folder.parent().expect("profiles lie in the target folder");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "occlude", "--profile", profile]).env("CARGO_TARGET_DIR", target);
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "the program does not build");
}

/// When the youngest file the program is made of was written.
fn newest_source() -> SystemTime {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut newest = SystemTime::UNIX_EPOCH;
    let crates = std::fs::read_dir(root.join("crates")).expect("crates").flatten().map(|entry| entry.path());
    // `golden` serves tests only and is no part of the program.
    let crates = crates.filter(|path| !path.ends_with("golden")).map(|path| path.join("src"));
    // Presets and the quick start are compiled in.
    let others = ["bins/occlude/src", "crates/config/presets"].map(|folder| root.join(folder));
    crates.chain(others).for_each(|folder| walk(&folder, &mut newest));
    modified(&root.join("configs/quickstart.toml")).map_or(newest, |time| time.max(newest))
}

fn walk(folder: &Path, newest: &mut SystemTime) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, newest);
        } else {
            *newest = modified(&path).map_or(*newest, |time| time.max(*newest));
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}
