//! `cargo xtask bench`: builds the benchmarks in release form and runs one.

use crate::{peer, start};
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
        /// Everything `bench-step` takes: `--method capi|moca|randsac|mae|encoder [--preset vit-s|vit-tiny|quickstart|..]
        /// [--steps N] [--threads N] [--json FILE]`, `--against PRESET` for a comparison with another preset, and `--peer` for
        /// one with PyTorch, which is installed into `target/peer` at the first use.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Images per second and core of MOCA's views.
    Views {
        /// Everything `bench-views` takes: `[--data PATH] [--size 224] [--images N] [--turns N]`, and `--peer` for a comparison
        /// with torchvision and Pillow, which are installed into `target/peer` at the first use.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
}

impl Bench {
    /// Does not return on success: this process becomes the benchmark.
    pub(crate) fn run(self) -> Result<()> {
        match self.what {
            What::Step { cuda, arguments } => {
                start::release("bench-step", cuda, &with_python(arguments, &peer::STEPS)?)
            }
            What::Views { arguments } => start::release("bench-views", false, &with_python(arguments, &peer::VIEWS)?),
        }
    }
}

/// The arguments, with a Python for `--peer`; one of one's own, given by `--python`, is used as it is.
fn with_python(mut arguments: Vec<String>, packages: &[peer::Package]) -> Result<Vec<String>> {
    if arguments.iter().any(|argument| argument == "--peer") && !has_python(&arguments) {
        arguments.extend(["--python".to_owned(), peer::python(packages)?.display().to_string()]);
    }
    Ok(arguments)
}

fn has_python(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument == "--python" || argument.starts_with("--python="))
}
