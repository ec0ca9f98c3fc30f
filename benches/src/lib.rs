//! Whole-step benchmarks: what a training step costs in time and memory at a size that is stated with the figure.
//!
//! Not here: benchmarks of single operators (`crates/kernels/benches`).

mod machine;
mod step;

pub use machine::{Machine, cpu_seconds, peak_memory_mib};
pub use step::{Figures, StepBench};
