//! Files that describe a run: its settings, and what ran where.

use crate::scores;
use anyhow::{Context, Result};
use occlude_checkpoint::RunDir;
use occlude_config::{RunConfig, is_setting};
use occlude_trainer::{Event, Sink};
use serde::Deserialize;
use std::ffi::OsString;
use std::io;
use std::path::Path;

/// Writes `config.toml` and `run.json` when a run starts, which is after a run of other settings was refused.
pub(crate) struct Described {
    dir: RunDir,
    settings: String,
    run: String,
    fresh: bool,
}

impl Described {
    pub(crate) fn new(dir: &RunDir, config: &RunConfig, images: ImagesOfRun, fresh: bool) -> Result<Self> {
        let run = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "seed": config.seed,
            "device": config.device,
            "threads": config.threads.unwrap_or_else(cores),
            "images": images.images,
            "image_sets": images.image_sets,
            "command": command(),
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "cpu": processor(),
        });
        let run = format!("{}\n", serde_json::to_string_pretty(&run)?);
        Ok(Self { dir: dir.clone(), settings: config.to_toml()?, run, fresh })
    }
}

impl Sink for Described {
    fn name(&self) -> &str {
        "description"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        let Event::Started { step, .. } = event else { return Ok(()) };
        self.dir.write("config.toml", self.settings.as_bytes()).map_err(io::Error::other)?;
        self.dir.write("run.json", self.run.as_bytes()).map_err(io::Error::other)?;
        if self.fresh || *step == 0 {
            let stale = [self.dir.summary_file(), self.dir.file(scores::FILE), self.dir.report_file()];
            stale.iter().try_for_each(|stale| remove(stale))?;
        }
        Ok(())
    }
}

/// What a run says about its images.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImagesOfRun {
    /// Training images.
    pub(crate) images: usize,
    /// How many there are of each split, and a fingerprint of each: a run goes on with the same ones only.
    pub(crate) image_sets: String,
}

impl ImagesOfRun {
    /// Reads `run.json`.
    pub(crate) fn read(dir: &RunDir) -> Result<Self> {
        let path = dir.run_file();
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
    }
}

/// Removes a file that may be missing.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The command that was typed, less `--fresh`, after the settings it found in the environment: what goes on with the run.
pub(crate) fn command() -> String {
    let text = |words: OsString| words.to_string_lossy().into_owned();
    let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    let mut variables: Vec<_> = variables.filter(|(name, _)| is_setting(name)).collect();
    variables.sort();
    let variables = variables.into_iter().map(|(name, value)| format!("{name}={}", quoted(value)));
    let words = std::env::args_os().map(text).filter(|word| word != "--fresh").map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it.
fn quoted(word: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Name of the processor, where the system tells.
fn processor() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
