//! A training run as a process of its own: its memory is its own, and the command that started it goes on after it.

use anyhow::{Context, Result};
use occlude_config::is_setting;
use occlude_trainer::Stop;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// Trains the config `file` into the folder `out` with this very program. What it prints goes to standard error, and a wish
/// to stop goes to it.
pub(crate) fn train(file: &Path, out: &Path, stop: &Stop) -> Result<ExitStatus> {
    let program = std::env::current_exe().context("this program is not to be found")?;
    let mut command = Command::new(program);
    command.arg("train").arg(file).arg("--out").arg(out).stdout(std::io::stderr());
    // The file holds every setting already.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    let mut child = command.spawn().context("could not start the run")?;
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop.requested() && !told {
            tell(&child);
            told = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks the run to save and end. A signal from the terminal reached it already; asking twice changes nothing.
#[cfg(unix)]
fn tell(child: &Child) {
    let told = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
    if !told.is_ok_and(|status| status.success()) {
        tracing::warn!("the run could not be told to stop; it ends by itself");
    }
}

/// The console tells every process in it.
#[cfg(not(unix))]
fn tell(_: &Child) {}
