//! `cargo xtask bench step`: time per step and peak memory, alone or beside PyTorch.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use anyhow::{Context, Result};
use clap::Parser;
use occlude_benches::{Against, Comparison, Figures, Machine, Precision, Preset, StepBench, load_average, serve};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

/// Time per training step and peak memory of one method at a stated size.
#[derive(Parser)]
struct Arguments {
    /// Which method: `capi`, `moca`, `randsac`, `mae`, or `encoder` for the encoder of CAPI alone under a linear head.
    #[arg(long, default_value = "capi")]
    method: String,
    /// At which size; `vit-tiny` where none is given for `randsac` and `mae`, else `vit-s`.
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// In which arithmetic; with `--peer` every one is measured.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    /// Steps that are timed; the median is reported.
    #[arg(long, default_value_t = 9)]
    steps: usize,
    /// Steps before that.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// One JSON object: into FILE, or instead of the text where no FILE is given.
    #[arg(long, value_name = "FILE")]
    json: Option<Option<PathBuf>>,
    /// Compare with our PyTorch program for the same step (`benches/peer`).
    #[arg(long)]
    peer: bool,
    /// With `--peer`: a Python that has torch, numpy and safetensors. `cargo xtask bench step --peer` sets it.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Compare with another preset of the same method.
    #[arg(long, value_enum, value_name = "PRESET", conflicts_with = "peer")]
    against: Option<Preset>,
    /// With `--peer` or `--against`: steps of one side before the other one's turn.
    #[arg(long, default_value_t = 1)]
    turn: usize,
    /// Answer requests on standard input instead (see `benches/src/protocol.rs`).
    #[arg(long, hide = true)]
    serve: bool,
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
    let Arguments { method, preset, precision, steps, warmup, threads, json, peer, python, against, turn, .. } =
        arguments;
    let (preset, turn) = (preset.unwrap_or_else(|| Preset::usual(&method)), turn.max(1));
    let bench = StepBench { method, preset, precision, steps: steps.max(1), warmup, threads: threads.max(1) };
    if arguments.serve {
        return serve(&bench, std::io::stdin().lock(), std::io::stdout().lock());
    }
    let this_program = || std::env::current_exe().context("where this program is");
    if peer {
        let report = Comparison { bench, ours: this_program()?, python, turn }.run()?;
        return show(json, report.to_string(), &report.json());
    }
    if let Some(other) = against {
        let report = Against { bench, other, ours: this_program()?, turn }.run()?;
        return show(json, report.to_string(), &report.json());
    }
    let figures = bench.run()?;
    show(json, text(&bench, &figures), &object(&bench, &figures))
}

/// Text for a person; JSON into a file, or instead of the text.
fn show(json: Option<Option<PathBuf>>, text: String, object: &Value) -> Result<()> {
    match json {
        Some(None) => println!("{object}"),
        Some(Some(path)) => {
            std::fs::write(&path, format!("{object:#}\n")).with_context(|| path.display().to_string())?;
            print!("{text}");
        }
        None => print!("{text}"),
    }
    Ok(())
}

fn object(bench: &StepBench, figures: &Figures) -> Value {
    let machine = Machine::this();
    serde_json::json!({
        "method": bench.method,
        "preset": bench.preset.name(),
        "precision": bench.precision.name(),
        "threads": bench.threads,
        "steps": figures.seconds.len(),
        "seconds_median": figures.median(),
        "seconds_min": figures.fastest(),
        "cpu_seconds_per_step": figures.cpu_per_step,
        "peak_memory_mib": figures.peak_memory_mib,
        "parameters": figures.parameters,
        "cpu": machine.cpu,
        "features": machine.features,
        "load_after": load_average(),
    })
}

fn text(bench: &StepBench, figures: &Figures) -> String {
    let Machine { cpu, features } = Machine::this();
    let StepBench { method, preset, precision, warmup, threads, .. } = bench;
    let precision = precision.kernels().explain();
    let or_unknown =
        |value: Option<f64>, unit: &str| value.map_or_else(|| "unknown".into(), |v| format!("{v:.2} {unit}"));
    let lines = [
        format!("{method} {} {precision} on {cpu} ({})", preset.name(), features.join(", ")),
        format!("{threads} threads, {} steps after {warmup} for warming up", figures.seconds.len()),
        format!("time per step   median {:.3} s, fastest {:.3} s", figures.median(), figures.fastest()),
        format!("CPU per step    {}", or_unknown(figures.cpu_per_step, "s")),
        format!("peak memory     {}\n", or_unknown(figures.peak_memory_mib, "MiB")),
    ];
    lines.join("\n")
}
