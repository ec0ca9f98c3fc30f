//! `cargo xtask sanitize`: the tests of the one crate that holds `unsafe`, with every access to memory checked.

use crate::start::{self, cargo};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::process::Command;

/// Run the tests of the kernels under the address sanitizer (Linux; builds them once more, some minutes).
///
/// A read or write outside of what was allocated, after it was freed, or a leak ends the run with a report. What only other processors
/// execute is not reached: the tests choose among the instructions that this one has.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask sanitize\n  cargo xtask sanitize tiles::     # only tests with this in their name"
)]
pub(crate) struct Sanitize {
    /// Handed to the tests, as after `cargo test --`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

impl Sanitize {
    pub(crate) fn run(self) -> Result<()> {
        let (host, folder) = (host()?, start::workspace()?.target_directory.join("sanitize"));
        let mut command = cargo();
        // The host is named as the target so that build scripts and macros stay as they are.
        command.args(["test", "--package", "occlude-kernels", "--lib", "--tests", "--target", &host]);
        command.args(["--target-dir", folder.as_str(), "--"]).args(self.arguments);
        // The sanitizers come with the stable compiler, their switch does not; this is the compiler's own way to ask for it.
        command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
        start::run(command)
    }
}

/// The platform that the compiler runs on.
fn host() -> Result<String> {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.arg("-vV");
    let output = command.output().with_context(|| format!("could not start {}", start::shown(&command)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(host) if host.contains("linux") => Ok(host.to_owned()),
        Some(host) => bail!("the address sanitizer is set up for Linux only, and this is {host}"),
        None => bail!("`{}` names no host: {}", start::shown(&command), output.status),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_host_is_found_or_refused_by_name() {
        match super::host() {
            Ok(host) => assert!(host.contains("-linux-"), "{host}"),
            Err(error) => assert!(error.to_string().contains("Linux only"), "{error}"),
        }
    }
}
