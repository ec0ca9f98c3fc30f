//! `cargo xtask`: starts what a person starts. Each command is one file and only builds, runs and reports.
//!
//! Not here: anything worth testing about the product (that belongs to a crate).
// The one program of the workspace, next to `occlude`, whose purpose is to talk to a terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod ci;
mod eval;
mod peer;
mod repro;
mod sanitize;
mod start;
mod tidy;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Build and run Occlude the way its own checks do.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Train),
    Eval(eval::Eval),
    Repro(repro::Repro),
    Bench(bench::Bench),
    Ci(ci::Ci),
    Tidy(tidy::Tidy),
    Sanitize(sanitize::Sanitize),
}

fn main() -> ExitCode {
    let done = match Xtask::parse().command {
        Command::Train(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Repro(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Ci(command) => command.run(),
        Command::Tidy(command) => command.run(),
        Command::Sanitize(command) => command.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
