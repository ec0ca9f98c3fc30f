//! What sits on MOCA's student: the generator of prototypes, the decoder, heads of other targets.

mod config;
mod decoder;
mod generator;
mod projection;

pub use config::{DecoderConfig, DecoderInput, DecoderSettings, GeneratorConfig, GeneratorSettings};
pub use decoder::Decoder;
pub use generator::{Generated, Generator, WordStatistics};
pub use projection::TargetHead;

#[cfg(test)]
mod tests;
