//! `cargo xtask repro`: builds the release binary and runs a table of a paper; or writes what is made from such tables.

use crate::start;
use anyhow::Result;
use clap::Args;

/// Build `occlude` and run `occlude repro`.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask repro                                 methods and their tables
  cargo xtask repro moca/T2e --scale tiny           all rows of Table 2e, at the size that fits two cores
  cargo xtask repro moca/T2e --seeds 3 --data ../shared/data/cifar10 --json t2e.json
  cargo xtask repro --write                         config files and lists of rows, from the tables")]
pub(crate) struct Repro {
    /// Build for NVIDIA GPUs too (needs the CUDA toolkit).
    #[arg(long)]
    cuda: bool,
    /// Write the files in `configs` and the lists in `docs/methods` that are made from tables; nothing is run.
    #[arg(long, conflicts_with_all = ["cuda", "arguments"])]
    write: bool,
    /// Everything `occlude repro` takes: `[ROW] [--scale NAME] [--seeds COUNT] [--data PATH] [--json FILE] [--out FOLDER]`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

impl Repro {
    /// Does not return on success unless it writes: this process becomes `occlude repro`.
    pub(crate) fn run(self) -> Result<()> {
        if self.write {
            return written();
        }
        let arguments: Vec<String> = std::iter::once("repro".to_owned()).chain(self.arguments).collect();
        start::release("occlude", self.cuda, &arguments)
    }
}

/// The test that compares those files with their tables writes them first where this variable is set.
fn written() -> Result<()> {
    let mut command = start::cargo();
    command.args(["test", "--quiet", "--workspace", "--test", "rows"]).env("OCCLUDE_TEST_WRITE", "1");
    start::run(command)
}
