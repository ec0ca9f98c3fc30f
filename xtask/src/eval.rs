//! `cargo xtask eval`: builds the release binary and scores a run.

use crate::start;
use anyhow::Result;
use clap::Args;

/// Build `occlude` and run `occlude eval`.
#[derive(Args)]
pub(crate) struct Eval {
    /// Build for NVIDIA GPUs too (needs the CUDA toolkit).
    #[arg(long)]
    cuda: bool,
    /// Everything `occlude eval` takes: `RUN_OR_CHECKPOINT [--weights student|teacher]`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

impl Eval {
    /// Does not return on success: this process becomes the evaluation.
    pub(crate) fn run(self) -> Result<()> {
        let arguments: Vec<String> = std::iter::once("eval".to_owned()).chain(self.arguments).collect();
        start::release("occlude", self.cuda, &arguments)
    }
}
