//! Files that describe a run: its settings, and what ran where.

use anyhow::Result;
use occlude_checkpoint::RunDir;
use occlude_config::RunConfig;
use occlude_trainer::{Event, Sink};
use std::io;

/// Writes `config.toml` and `run.json` when a run starts, which is after a run of other settings was refused.
pub(crate) struct Described {
    dir: RunDir,
    settings: String,
    run: String,
    fresh: bool,
}

impl Described {
    pub(crate) fn new(dir: &RunDir, config: &RunConfig, fresh: bool) -> Result<Self> {
        let run = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "seed": config.seed,
            "device": config.device,
            "threads": config.threads.unwrap_or_else(cores),
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
            for stale in [self.dir.summary_file(), self.dir.report_file()] {
                match std::fs::remove_file(stale) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The command that was typed, less `--fresh`: the one that goes on with the run.
pub(crate) fn command() -> String {
    let words = std::env::args().filter(|word| word != "--fresh").map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
    });
    words.collect::<Vec<_>>().join(" ")
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
