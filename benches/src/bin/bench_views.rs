//! `cargo xtask bench views`: images per second and core, alone or beside torchvision.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use anyhow::Result;
use clap::Parser;
use occlude_benches::ViewsBench;
use std::path::PathBuf;
use std::process::ExitCode;

/// How fast the two views of MOCA are made of decoded images, on one core.
#[derive(Parser)]
struct Arguments {
    /// Images: `synthetic`, or whatever `data.source.path` takes.
    #[arg(long, default_value = "synthetic")]
    data: String,
    /// How many images.
    #[arg(long, default_value_t = 256)]
    images: usize,
    /// Side of a view in pixels.
    #[arg(long, default_value_t = 224)]
    size: usize,
    /// Passes over all images; medians are reported.
    #[arg(long, default_value_t = 9)]
    turns: usize,
    /// Compare with torchvision and Pillow (`benches/peer/views.py`).
    #[arg(long)]
    peer: bool,
    /// With `--peer`: a Python that has torch, torchvision and pillow. `cargo xtask bench views --peer` sets it.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let Arguments { data, images, size, turns, peer, python } = arguments;
    let python = peer.then_some(python);
    print!("{}", ViewsBench { data, images: images.max(1), size, turns: turns.max(1), python }.run()?);
    Ok(())
}
