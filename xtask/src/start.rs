//! Starting cargo: the same cargo that started this program.

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};
use std::process::Command;

/// `cargo`, as found by the cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Packages and folders of this workspace, without their dependencies' packages.
pub(crate) fn workspace() -> Result<Metadata> {
    MetadataCommand::new().no_deps().exec().context("cargo metadata: run this inside the repository")
}

/// Builds a release binary of `package` and runs it with `arguments`.
///
/// Plain release code is meant for every CPU: the kernels choose their instructions at run time, and
/// `-C target-cpu=native` on top was measured to gain nothing.
pub(crate) fn release(package: &str, bin: &str, cuda: bool, arguments: &[String]) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--release", "--package", package, "--bin", bin]);
    if cuda {
        command.args(["--features", "cuda"]);
    }
    command.arg("--").args(arguments);
    replace_with(command)
}

/// Becomes `command`, so that signals reach it directly and its exit code is ours.
#[cfg(unix)]
fn replace_with(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(command.exec()).with_context(|| format!("could not start {}", command.get_program().display()))
}

#[cfg(not(unix))]
fn replace_with(command: Command) -> Result<()> {
    run(command)
}

/// Runs `command` to its end; a failure is an error that shows it.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start {}", shown(&command)))?;
    if !status.success() {
        bail!("`{}`: {status}", shown(&command));
    }
    Ok(())
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    std::iter::once("cargo".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}
