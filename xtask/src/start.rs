//! Starting cargo, the same that started this program, and what it built.

use anyhow::{Context, Result, bail};
use cargo_metadata::{Message, Metadata, MetadataCommand};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `cargo`, as found by the cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Packages and folders of this workspace, without their dependencies' packages.
pub(crate) fn workspace() -> Result<Metadata> {
    MetadataCommand::new().no_deps().exec().context("cargo metadata: run this inside the repository")
}

/// The packages that `release` builds. Always all of them: alone, each would choose other features of shared crates, and
/// candle would be built once more for every change from one to the other.
const BUILT: [&str; 2] = ["occlude", "occlude-benches"];

/// Builds the release binaries and becomes `bin` with `arguments`.
///
/// Plain release code is meant for every CPU: the kernels choose their instructions at run time, and
/// `-C target-cpu=native` on top was measured to gain nothing.
pub(crate) fn release(bin: &str, cuda: bool, arguments: &[String]) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--release", "--bins", "--message-format=json-render-diagnostics"]);
    for package in BUILT {
        command.args(["--package", package]);
        if cuda {
            command.args(["--features", &format!("{package}/cuda")]);
        }
    }
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("could not start {}", shown(&command)))?;
    if !output.status.success() {
        bail!("`{}`: {}", shown(&command), output.status);
    }
    let program = executable(&output.stdout, bin)?;
    let mut command = Command::new(program);
    command.args(arguments);
    replace_with(command)
}

/// Where cargo says that it put `bin`, out of its messages.
fn executable(messages: &[u8], bin: &str) -> Result<PathBuf> {
    for message in Message::parse_stream(messages) {
        match message.context("reading what cargo built")? {
            Message::CompilerArtifact(artifact) if artifact.target.name == bin => {
                if let Some(program) = artifact.executable {
                    return Ok(program.into_std_path_buf());
                }
            }
            _ => {}
        }
    }
    bail!("cargo built no program `{bin}`")
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

/// The command as a person would type it: the program without its folder.
pub(crate) fn shown(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn the_program_is_found_among_the_messages() {
        let artifact = |name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"p","manifest_path":"/p/Cargo.toml","target":{{"name":"{name}",
                "kind":["bin"],"crate_types":["bin"],"src_path":"/p/main.rs"}},"profile":{{"opt_level":"3","debuginfo":0,
                "debug_assertions":false,"overflow_checks":false,"test":false}},"features":[],"filenames":[],
                "executable":{executable},"fresh":true}}"#
            )
            .replace('\n', "")
        };
        let messages =
            [artifact("occlude", "null"), artifact("bench-step", "\"/t/b\""), artifact("occlude", "\"/t/o\"")]
                .join("\n");
        assert_eq!(executable(messages.as_bytes(), "occlude").unwrap().to_str(), Some("/t/o"));
        assert_eq!(executable(messages.as_bytes(), "bench-step").unwrap().to_str(), Some("/t/b"));
        assert!(executable(messages.as_bytes(), "other").unwrap_err().to_string().contains("`other`"));
    }
}
