//! A laboratory for the real program: a scratch folder, a scrubbed environment, and on failure everything a person
//! needs to see what went wrong (command, files, exit code, both streams).
//!
//! Not here: the tests themselves (`e2e/`), and any shortcut into the program's libraries.
// This crate serves tests only and stops like a test does.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod image;
mod lab;
mod run;

pub use binary::occlude;
pub use image::speckles;
pub use lab::Lab;
pub use run::{Outcome, Paused, Run};
