//! `occlude export`: weights for other tools.

use super::WhichWeights;
use crate::open;
use anyhow::Result;
use candle_core::DType;
use clap::{Args, ValueEnum};
use occlude_checkpoint::layouts::capi::{self, Model};
use std::path::PathBuf;

/// Write weights under the names that other tools expect.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude export runs/quickstart --layout capi --out weights.safetensors
  occlude export runs/quickstart --layout capi --dtype bf16 --weights student --out student.safetensors
  occlude train my.toml --init-from weights.safetensors          reads such a file again")]
pub(crate) struct Export {
    /// Folder of a run (its newest checkpoint is taken) or of one checkpoint.
    run: PathBuf,
    /// Whose names.
    #[arg(long)]
    layout: Layout,
    /// File to write, safetensors.
    #[arg(long)]
    out: PathBuf,
    /// Type of the numbers.
    #[arg(long, default_value = "f32")]
    dtype: NumberType,
    /// Which weights.
    #[arg(long, default_value = "teacher")]
    weights: WhichWeights,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    /// The official CAPI files: `backbone.*`, `head.*`.
    Capi,
}

#[derive(Clone, Copy, ValueEnum)]
enum NumberType {
    /// 32 bits.
    F32,
    /// 16 bits, as in the published files.
    Bf16,
}

impl Export {
    pub(crate) fn run(self) -> Result<()> {
        let opened = open::open(&self.run)?;
        let model = match self.weights {
            WhichWeights::Teacher => Model::Average,
            WhichWeights::Student => Model::Student,
        };
        let dtype = match self.dtype {
            NumberType::F32 => DType::F32,
            NumberType::Bf16 => DType::BF16,
        };
        let Layout::Capi = self.layout;
        capi::write(&self.out, &opened.method.state(), model, dtype)?;
        println!("{}: weights after step {}", self.out.display(), opened.checkpoint.step());
        Ok(())
    }
}
