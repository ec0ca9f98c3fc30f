//! `occlude replay`: runs a step that went wrong again.

use crate::files::ImagesOfRun;
use crate::{device, open};
use anyhow::Result;
use clap::Args;
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
        let dir = open::run_around(&self.bundle)?;
        let (config, images) = (open::settings(&dir, &[])?, ImagesOfRun::read(&dir)?);
        open::threads(&config)?;
        let run = config.check(Some(images.images))?;
        let device = device::open(&run.device)?;
        let mut method = open::fresh(&run, &device)?;
        let replay = occlude_trainer::replay(&self.bundle, &open::identity(&config, &images), &mut *method, &device)?;
        println!(
            "step {}{} of seed {}, {} images; stored because of {}",
            replay.step,
            if replay.micros > 1 { format!(", micro-batch {}", replay.micro + 1) } else { String::new() },
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
