//! The settings of a command: a config file, the environment, `--set`.

use anyhow::Result;
use clap::Args;
use occlude_config::{RunConfig, Sources};
use std::path::PathBuf;

/// The environment, as far as it is text: what is not is none of ours.
pub(crate) fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// Where settings come from.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigArgs {
    /// Config file; without one, the built-in quick start (or the preset that `--set preset=NAME` names).
    pub(crate) config: Option<PathBuf>,
    /// Change one setting; may be repeated. Values are TOML, words need no quotes.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

impl ConfigArgs {
    /// The settings, not yet checked.
    pub(crate) fn resolve(&self) -> Result<RunConfig> {
        let sources = Sources {
            file: self.config.clone(),
            quickstart: self.config.is_none(),
            environment: environment(),
            set: self.set.clone(),
        };
        Ok(occlude_config::resolve(&sources)?)
    }

    /// What the run of these settings, read as `config`, is called: the name of its file, else of its preset.
    pub(crate) fn name(&self, config: &RunConfig) -> String {
        match self.config.as_deref().and_then(|path| path.file_stem()) {
            Some(stem) => stem.to_string_lossy().into_owned(),
            None => config.preset.clone().unwrap_or_else(|| "quickstart".to_owned()),
        }
    }
}
