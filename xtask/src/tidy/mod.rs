//! `cargo xtask tidy`: the house rules as a test. Each finding says where it is and how to repair it.

mod rooms;
mod source;

use crate::start;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fmt;
use std::path::Path;
use walkdir::{DirEntry, WalkDir};

/// Check the house rules: dependency direction, module pages, prints, `unsafe`, file length, configs.
#[derive(Args)]
pub(crate) struct Tidy {
    /// Skip reading the files in `configs`, which builds the tests of the workspace first.
    #[arg(long)]
    no_configs: bool,
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// File, or package.
    place: String,
    /// 1-based; 0 when the finding is about the whole.
    line: usize,
    /// What is wrong and how to repair it.
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.message),
            line => write!(f, "{}:{line}: {}", self.place, self.message),
        }
    }
}

impl Tidy {
    pub(crate) fn run(self) -> Result<()> {
        let metadata = start::workspace()?;
        let root = metadata.workspace_root.as_std_path();
        let packages: Vec<rooms::Package> =
            metadata.workspace_packages().into_iter().map(rooms::Package::from).collect();
        let mut findings = rooms::check(&packages);
        findings.extend(sources(root)?);
        for finding in &findings {
            eprintln!("{finding}");
        }
        if !findings.is_empty() {
            bail!("{} broken house rule(s); see CONTRIBUTING.md", findings.len());
        }
        if !self.no_configs {
            configs()?;
        }
        println!("tidy: {} packages follow the house rules", packages.len());
        Ok(())
    }
}

/// Findings in every file of the repository that people write.
fn sources(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for entry in WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(is_ours) {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type().is_file() && is_written(path) {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let place = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/");
            findings.extend(source::check(&place, &text));
        }
    }
    Ok(findings)
}

/// Not build output, not a run, not git's own files.
fn is_ours(entry: &DirEntry) -> bool {
    !(entry.file_type().is_dir() && matches!(entry.file_name().to_str(), Some("target" | "runs" | ".git")))
}

fn is_written(path: &Path) -> bool {
    let known = ["rs", "toml", "md", "py", "html", "yml"];
    path.extension().is_some_and(|extension| known.iter().any(|known| extension == *known)) || path.ends_with(".ci/run")
}

/// Every file in `configs` parses and passes its checks, and those that are made from a table equal it: two tests of the room
/// `config`.
fn configs() -> Result<()> {
    let mut command = start::cargo();
    // With `--workspace` cargo takes the features that all tests are built with; for one package it would choose others
    // and build candle anew.
    command.args(["test", "--quiet", "--workspace", "--test", "sweep", "--test", "rows"]);
    start::run(command)
}
