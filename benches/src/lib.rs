//! Whole-step benchmarks: what a training step costs in time and memory at a size that is stated with the figure, alone
//! or beside a PyTorch program of ours (`benches/peer`) that does the very same step. Also how fast views of images are made
//! ([`ViewsBench`]).
//!
//! A comparison runs both sides as servers, each in a process of its own, that wait on their input while the other one
//! works: ours and PyTorch ([`Comparison`]), or two presets of ours ([`Against`]). Before anything is timed, sides that make
//! the same step must give the same losses on the same weights.
//!
//! Not here: benchmarks of single operators (`crates/kernels/benches`), the Python environment (`xtask`).

mod against;
mod compare;
mod conditions;
mod encoder;
mod machine;
mod mae;
mod moca;
mod precision;
mod preset;
mod protocol;
mod randsac;
mod report;
mod serve;
mod server;
mod step;
mod subject;
mod turns;
mod views;

pub use against::{Against, AgainstReport};
pub use compare::Comparison;
pub use conditions::Conditions;
pub use machine::{Machine, cpu_seconds, load_average, peak_memory_mib};
pub use precision::{PeerPrecision, Precision};
pub use preset::Preset;
pub use protocol::{Losses, Reply, Request};
pub use report::{Agreement, Report, Side, median};
pub use serve::serve;
pub use step::{Figures, StepBench};
pub use views::{ViewsBench, ViewsReport};
