//! `cargo xtask train`: builds the release binary and trains.

use crate::start;
use anyhow::Result;
use clap::Args;

/// Build `occlude` and run `occlude train`; without a config, the quick start.
#[derive(Args)]
pub(crate) struct Train {
    /// Build for NVIDIA GPUs too (needs the CUDA toolkit).
    #[arg(long)]
    cuda: bool,
    /// Everything `occlude train` takes: `[CONFIG] [--set KEY=VALUE]... [--out DIR] [--fresh]`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

impl Train {
    /// Does not return on success: this process becomes the training run.
    pub(crate) fn run(self) -> Result<()> {
        let arguments: Vec<String> = std::iter::once("train".to_owned()).chain(self.arguments).collect();
        start::release("occlude", self.cuda, &arguments)
    }
}
