//! One file a command.

mod config;
mod draw;
mod eval;
mod export;
mod features;
mod replay;
mod report;
mod repro;
mod train;

pub(crate) use config::Config;
pub(crate) use draw::Draw;
pub(crate) use eval::Eval;
pub(crate) use export::Export;
pub(crate) use features::Features;
pub(crate) use replay::Replay;
pub(crate) use report::Report;
pub(crate) use repro::Repro;
pub(crate) use train::Train;

use clap::ValueEnum;
use occlude_eval::WeightsChoice;

/// Which network of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhichWeights {
    /// The moving average: what is meant unless said otherwise.
    Teacher,
    /// The network that is trained by gradient.
    Student,
}

impl From<WhichWeights> for WeightsChoice {
    fn from(which: WhichWeights) -> Self {
        match which {
            WhichWeights::Teacher => Self::Teacher,
            WhichWeights::Student => Self::Student,
        }
    }
}
