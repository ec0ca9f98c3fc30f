//! What sits on an encoder: predictors, decoders, prototype generators and cluster heads.
//!
//! A [`Predictor`] says something about hidden patches: by cross-attention (CAPI's), by self-attention, or fused with the
//! encoder. A [`Head`] turns a prediction into scores over prototypes, or leaves it as a feature. Parameter names are
//! those of the official CAPI checkpoints where these exist. Source: CAPI, predictor, student head and ablations.
//!
//! Invariants: predictions come in the order in which positions were asked for; a cross-attention prediction does not
//! depend on which other positions are asked for.
//! Not here: encoders and blocks (`vit`), losses, where targets come from (`tokenizers`).

mod config;
mod head;
mod moca;
mod predictor;
mod queries;
mod segment;

pub use config::{HeadConfig, HeadKind, HeadSettings, PredictorConfig, PredictorKind, PredictorSettings};
pub use head::{ClusterHead, Head, HeadShape};
pub use moca::{
    Decoder, DecoderConfig, DecoderInput, DecoderSettings, Generated, Generator, GeneratorConfig, GeneratorSettings,
    TargetHead, WordStatistics,
};
pub use predictor::{Pooled, Predictor};
pub use segment::{PixelHead, SegmentDecoder, SegmentDecoderConfig, SegmentDecoderSettings, SkipInit};
