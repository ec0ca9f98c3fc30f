//! `occlude config`: shows and checks settings without training.

use crate::settings::ConfigArgs;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use occlude_config::{NOMINAL_IMAGES, RunConfig};
use std::path::PathBuf;

/// Show or check settings.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude config show                                   the quick start, every setting
  occlude config show my.toml --set train.batch=64      what a run would use
  occlude config check configs/capi/*.toml              each file: is every value allowed?
  occlude config presets                                names for `preset = \"...\"`")]
pub(crate) struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print all settings as TOML: defaults, preset, file, environment and `--set` in that order.
    Show(ConfigArgs),
    /// Read and check config files; nothing is trained and no image is opened.
    Check {
        /// Config files; without any, the quick start.
        files: Vec<PathBuf>,
    },
    /// Names of the presets.
    Presets,
}

impl Config {
    pub(crate) fn run(self) -> Result<()> {
        match self.what {
            What::Show(arguments) => {
                let config = arguments.resolve()?;
                print!("{}", config.to_toml()?);
                Ok(())
            }
            What::Check { files } => check(&files),
            What::Presets => {
                occlude_config::preset_names().for_each(|name| println!("{name}"));
                Ok(())
            }
        }
    }
}

/// Without its images a length in epochs is only estimated; a refusal says so.
fn allowed(config: &RunConfig) -> Result<()> {
    let checked = config.check(None).map(drop);
    if config.counts_epochs() {
        return checked.with_context(|| format!("taking an epoch for {NOMINAL_IMAGES} images"));
    }
    Ok(checked?)
}

fn check(files: &[PathBuf]) -> Result<()> {
    let all: Vec<Option<PathBuf>> =
        if files.is_empty() { vec![None] } else { files.iter().cloned().map(Some).collect() };
    let mut bad = Vec::new();
    for config in &all {
        let arguments = ConfigArgs { config: config.clone(), set: Vec::new() };
        let place = config.as_ref().map_or_else(|| "quickstart".to_owned(), |path| path.display().to_string());
        match arguments.resolve().and_then(|config| allowed(&config)) {
            Ok(()) => println!("{place}: ok"),
            Err(error) => bad.push((place, crate::log::one_line(&error))),
        }
    }
    for (place, message) in &bad {
        // An error about a value does not know its file; one about a key names it already.
        let message = if message.contains(place.as_str()) { message.clone() } else { format!("{place}: {message}") };
        println!("{message}");
    }
    if !bad.is_empty() {
        bail!("{} of {} configs: not allowed as they are ({})", bad.len(), all.len(), bad[0].0);
    }
    Ok(())
}
