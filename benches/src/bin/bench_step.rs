//! `cargo xtask bench step`: time per step and peak memory.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use anyhow::Result;
use clap::Parser;
use occlude_benches::{Figures, Machine, StepBench};
use std::process::ExitCode;

/// Time per training step and peak memory of one method: dim 384, depth 12, 6 heads, predictor depth 6, patch 16,
/// 224 px, batch 8, 65 % hidden, 7 predictions, 16 registers, 16384 prototypes, drop path 0.2, f32.
#[derive(Parser)]
struct Arguments {
    /// Which method.
    #[arg(long, default_value = "capi")]
    method: String,
    /// Steps that are timed; the median is reported.
    #[arg(long, default_value_t = 9)]
    steps: usize,
    /// Steps before that.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let bench = StepBench {
        method: arguments.method.clone(),
        steps: arguments.steps.max(1),
        warmup: arguments.warmup,
        threads: arguments.threads.max(1),
    };
    let figures = bench.run()?;
    if arguments.json {
        println!("{}", json(arguments, &figures))
    } else {
        print(arguments, &figures)
    }
    Ok(())
}

fn json(arguments: &Arguments, figures: &Figures) -> serde_json::Value {
    let machine = Machine::this();
    serde_json::json!({
        "method": arguments.method,
        "threads": arguments.threads,
        "steps": figures.seconds.len(),
        "seconds_median": figures.median(),
        "seconds_min": figures.fastest(),
        "cpu_seconds_per_step": figures.cpu_per_step,
        "peak_memory_mib": figures.peak_memory_mib,
        "parameters": figures.parameters,
        "cpu": machine.cpu,
        "features": machine.features,
    })
}

fn print(arguments: &Arguments, figures: &Figures) {
    let machine = Machine::this();
    let or_unknown =
        |value: Option<f64>, unit: &str| value.map_or_else(|| "unknown".into(), |v| format!("{v:.2} {unit}"));
    println!("{} on {} ({})", arguments.method, machine.cpu, machine.features.join(", "));
    println!(
        "{} threads, {} steps after {} for warming up",
        arguments.threads,
        figures.seconds.len(),
        arguments.warmup
    );
    println!("time per step   median {:.3} s, fastest {:.3} s", figures.median(), figures.fastest());
    println!("CPU per step    {}", or_unknown(figures.cpu_per_step, "s"));
    println!("peak memory     {}", or_unknown(figures.peak_memory_mib, "MiB"));
}
