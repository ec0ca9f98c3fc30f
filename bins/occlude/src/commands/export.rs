//! `occlude export`: weights for other tools.

use super::WhichWeights;
use crate::layout::Layout;
use crate::open;
use anyhow::{Result, bail};
use candle_core::DType;
use clap::{Args, ValueEnum};
use occlude_checkpoint::layouts::{Model, capi, moca, plain};
use std::path::PathBuf;

/// Write weights under the names that other tools expect.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude export runs/quickstart --layout capi --out weights.safetensors
  occlude export runs/quickstart --layout capi --dtype bf16 --weights student --out student.safetensors
  occlude export runs/moca --layout moca --out teacher.safetensors
  occlude export runs/moca --layout moca --full --out training.safetensors
  occlude export runs/randsac --layout randsac --out encoder.safetensors
  occlude train my.toml --init-from weights.safetensors          reads such a file again")]
pub(crate) struct Export {
    /// Folder of a run (its newest checkpoint is taken) or of one checkpoint.
    run: PathBuf,
    /// Whose names: those of the run's method.
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
    /// All that the method holds, not one encoder (not with `--layout capi`).
    #[arg(long, conflicts_with_all = ["dtype", "weights"])]
    full: bool,
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
        let layout = Layout::of(&opened.config.method);
        if self.layout != layout {
            bail!("{}: a run of another method; give --layout {layout}", self.run.display());
        }
        let model = match self.weights {
            WhichWeights::Teacher => Model::Average,
            WhichWeights::Student => Model::Student,
        };
        let dtype = match self.dtype {
            NumberType::F32 => DType::F32,
            NumberType::Bf16 => DType::BF16,
        };
        let state = opened.method.state();
        match layout {
            Layout::Capi if self.full => bail!("--full is not for --layout capi, which holds one model"),
            Layout::Capi => capi::write(&self.out, &state, model, dtype)?,
            Layout::Moca if self.full => moca::write_all(&self.out, &state)?,
            Layout::Moca => moca::write(&self.out, &state, model, dtype)?,
            // One network, whichever weights are asked for.
            Layout::Randsac | Layout::Mae if self.full => plain::write_all(&self.out, &state)?,
            Layout::Randsac | Layout::Mae => plain::write(&self.out, &state, dtype)?,
        }
        println!("{}: weights after step {}", self.out.display(), opened.checkpoint.step());
        Ok(())
    }
}
