//! The `occlude` command: the only place that prints, exits and reads the environment.
//!
//! Each command is one file in `commands`; what several share lies beside them. Errors are one line on standard error,
//! exit code 1; a command line that cannot be read is exit code 2.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod child;
mod commands;
mod comparison;
mod device;
mod files;
mod layout;
mod log;
mod open;
mod pause;
mod pictures;
mod probe;
mod report;
mod scores;
mod scoring;
mod settings;
mod stages;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Pre-train Vision Transformers on unlabelled images: hide a part, learn to predict it.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Examples:
  occlude train                                  the built-in quick start: drawn pictures, three minutes
  occlude train my.toml --set data.source.path=photos
  occlude eval runs/my
  occlude features runs/my --data photos --out features.npy
  occlude repro moca/T2e                         a table of a paper, at a size that fits"
)]
struct Occlude {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(commands::Train),
    Eval(commands::Eval),
    Features(commands::Features),
    Report(commands::Report),
    Draw(commands::Draw),
    Config(commands::Config),
    Export(commands::Export),
    Replay(commands::Replay),
    Repro(commands::Repro),
}

fn main() -> ExitCode {
    let Occlude { command } = Occlude::parse();
    log::start();
    let done = match command {
        Command::Train(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Features(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Draw(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Replay(command) => command.run(),
        Command::Repro(command) => command.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", log::one_line(&error));
            ExitCode::FAILURE
        }
    }
}
