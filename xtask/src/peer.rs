//! The Python environment of `cargo xtask bench .. --peer`: `peer` in the target folder, made once.
#![allow(clippy::print_stderr)]

use crate::start;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A package, and how it is imported.
pub(crate) struct Package {
    name: &'static str,
    module: &'static str,
}

const fn package(name: &'static str, module: &'static str) -> Package {
    Package { name, module }
}

/// What the programs of `bench step` import.
pub(crate) const STEPS: [Package; 3] =
    [package("torch", "torch"), package("numpy", "numpy"), package("safetensors", "safetensors")];
/// What the program of `bench views` imports.
pub(crate) const VIEWS: [Package; 3] =
    [package("torch", "torch"), package("torchvision", "torchvision"), package("pillow", "PIL")];

/// A Python that has them. An environment that is there already is used, and given what it lacks.
pub(crate) fn python(packages: &[Package]) -> Result<PathBuf> {
    let folder = start::workspace()?.target_directory.into_std_path_buf().join("peer");
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if imports(&python, packages) {
        eprintln!("peer: packages of {}", folder.display());
        return Ok(python);
    }
    if !imports(&python, &[]) {
        make(&folder)?;
    }
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    eprintln!("peer: installing {} into {} (once; with PyTorch some 5 GB)", names.join(", "), folder.display());
    let mut pip = Command::new(&python);
    // Its progress goes beside ours: standard output may be a report that somebody parses.
    pip.args(["-m", "pip", "install"]).args(&names).stdout(std::io::stderr());
    let installed = runs(&mut pip).with_context(|| format!("could not start {}", python.display()))?;
    if !installed {
        bail!(
            "pip could not install {}, see above: it needs PyPI or a mirror (PIP_INDEX_URL), and the disk space. \
             A Python that has them can be named instead: --python PATH",
            names.join(", ")
        );
    }
    if !imports(&python, packages) {
        bail!("{} cannot be imported though installed: delete {} and try again", names.join(", "), folder.display());
    }
    Ok(python)
}

/// An environment without packages.
fn make(folder: &Path) -> Result<()> {
    let outer = if cfg!(windows) { "python" } else { "python3" };
    let made = runs(Command::new(outer).args(["-m", "venv", "--clear"]).arg(folder))
        .with_context(|| format!("could not start {outer}: --peer needs Python 3.10 or newer"))?;
    if !made {
        bail!("`{outer} -m venv` failed: install the venv module (Debian: apt install python3-venv)");
    }
    Ok(())
}

/// Whether this Python exists and has the packages.
fn imports(python: &Path, packages: &[Package]) -> bool {
    let modules = packages.iter().map(|package| format!("import {}", package.module)).collect::<Vec<_>>();
    let mut command = Command::new(python);
    command.args(["-c", &modules.join("\n")]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    runs(&mut command).unwrap_or(false)
}

/// Whether it ended well; an error where it could not be started.
fn runs(command: &mut Command) -> std::io::Result<bool> {
    Ok(command.status()?.success())
}
