//! `occlude replay`: runs a step that went wrong again.

use crate::{device, open};
use anyhow::{Context, Result};
use clap::Args;
use occlude_checkpoint::RunDir;
use std::path::PathBuf;

/// Run a stored step again: the one whose loss or gradient was not finite.
#[derive(Args)]
#[command(after_help = "Example:
  occlude replay runs/my/replay/step-00000123      prints losses and the gradients that are not finite")]
pub(crate) struct Replay {
    /// Folder of the stored step, as the error of the run named it.
    bundle: PathBuf,
}

impl Replay {
    pub(crate) fn run(self) -> Result<()> {
        let run = self
            .bundle
            .ancestors()
            .nth(2)
            .with_context(|| format!("{}: not a folder `replay/step-...` inside a run", self.bundle.display()))?;
        let config = open::settings(&RunDir::open(run)?)?;
        open::threads(&config)?;
        let run = config.check(None)?;
        let device = device::open(&run.device)?;
        let mut method = open::fresh(&run, &device)?;
        let replay = occlude_trainer::replay(&self.bundle, &mut *method, &device)?;
        println!(
            "step {} of seed {}, {} images; stored because of {}",
            replay.step,
            replay.seed,
            replay.ids.len(),
            replay.stored
        );
        println!("images {:?}", replay.ids);
        for (name, value) in replay.losses.0.iter().chain(&replay.metrics.0) {
            println!("{name} = {value}");
        }
        match replay.bad_gradients.as_slice() {
            [] => println!("every gradient is finite"),
            bad => println!("not finite: the gradients of {}", bad.join(", ")),
        }
        Ok(())
    }
}
