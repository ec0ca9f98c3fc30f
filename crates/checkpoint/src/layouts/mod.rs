//! Weights under the names that other people's tools expect, one module for each published system.

pub mod capi;
