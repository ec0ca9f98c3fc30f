//! `cargo xtask bench`: builds the benchmarks in release form and runs one.

use crate::start;
use anyhow::Result;
use clap::{Args, Subcommand};

/// Build and run a benchmark.
#[derive(Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time per training step and peak memory of a method at a stated size.
    Step {
        /// Build for NVIDIA GPUs too (needs the CUDA toolkit).
        #[arg(long)]
        cuda: bool,
        /// Everything `bench-step` takes: `--method capi [--steps N] [--threads N] [--json]`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
}

impl Bench {
    /// Does not return on success: this process becomes the benchmark.
    pub(crate) fn run(self) -> Result<()> {
        match self.what {
            What::Step { cuda, arguments } => start::release("occlude-benches", "bench-step", cuda, &arguments),
        }
    }
}
