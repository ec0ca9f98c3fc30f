//! The Python environment of `cargo xtask bench step --peer`: `peer` in the target folder, made once.
#![allow(clippy::print_stderr)]

use crate::start;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the programs in `benches/peer` import.
const PACKAGES: [&str; 3] = ["torch", "numpy", "safetensors"];

/// A Python that has them. An environment that is there already is used as it is.
pub(crate) fn python() -> Result<PathBuf> {
    let folder = start::workspace()?.target_directory.into_std_path_buf().join("peer");
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if imports(&python) {
        eprintln!("peer: PyTorch of {}", folder.display());
        return Ok(python);
    }
    eprintln!("peer: installing {} into {} (once; some 5 GB)", PACKAGES.join(", "), folder.display());
    let outer = if cfg!(windows) { "python" } else { "python3" };
    let made = runs(Command::new(outer).args(["-m", "venv", "--clear"]).arg(&folder))
        .with_context(|| format!("could not start {outer}: --peer needs Python 3.10 or newer"))?;
    if !made {
        bail!("`{outer} -m venv` failed: install the venv module (Debian: apt install python3-venv)");
    }
    let mut pip = Command::new(&python);
    // Its progress goes beside ours: standard output may be a report that somebody parses.
    pip.args(["-m", "pip", "install"]).args(PACKAGES).stdout(std::io::stderr());
    let installed = runs(&mut pip).with_context(|| format!("could not start {}", python.display()))?;
    if !installed {
        bail!(
            "pip could not install {}, see above: it needs PyPI or a mirror (PIP_INDEX_URL), and the disk space. \
             A Python that has them can be named instead: --python PATH",
            PACKAGES.join(", ")
        );
    }
    if !imports(&python) {
        bail!("PyTorch was installed but cannot be imported: delete {} and try again", folder.display());
    }
    Ok(python)
}

/// Whether this Python exists and has the packages.
fn imports(python: &Path) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", &format!("import {}", PACKAGES.join(", "))]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    runs(&mut command).unwrap_or(false)
}

/// Whether it ended well; an error where it could not be started.
fn runs(command: &mut Command) -> std::io::Result<bool> {
    Ok(command.status()?.success())
}
