//! Drives the real `occlude` from outside, as a person does: every module is one promise of the README.
// Helpers outside `#[test]` functions are test code too: they stop and say so like one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod bad_input;
mod config;
mod diverged;
mod export;
mod features;
mod help;
mod moca;
mod randsac;
mod report;
mod repro;
mod resume;
mod tensorboard;
