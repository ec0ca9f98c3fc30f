//! The loop over a method small enough to run hundreds of steps in a test.
// Helpers of tests may stop at the first surprise, as tests may.
#![allow(clippy::unwrap_used, clippy::panic)]

mod accumulate;
mod board;
mod common;
mod failures;
mod ranks;
mod resume;
