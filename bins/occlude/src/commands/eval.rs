//! `occlude eval`: scores a trained run.

use super::WhichWeights;
use crate::open::{self, Images};
use crate::scores::{self, Scoring};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Score a run: k-NN with average and predictor pooling, linear probe, beside random weights and raw pixels.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude eval runs/quickstart
  occlude eval runs/quickstart --weights student
  occlude eval runs/quickstart/checkpoints/step-00000500")]
pub(crate) struct Eval {
    /// Folder of a run (its newest checkpoint is taken) or of one checkpoint.
    run: PathBuf,
    /// Which weights; without it, what the config says (`eval.weights`).
    #[arg(long)]
    weights: Option<WhichWeights>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        let opened = open::open(&self.run)?;
        let images = Images::open(&opened.run)?;
        let weights = self.weights.map_or(opened.run.eval.weights, Into::into);
        let scoring = Scoring { run: &opened.run, images: &images, device: &opened.device, weights };
        let rows = scoring.of(&*opened.method, &|doing| tracing::info!("{doing}"))?.rows();
        if self.json {
            let entries = rows.iter().map(|row| (row.name.clone(), row.percent.into()));
            println!("{}", serde_json::Value::Object(entries.collect()));
        } else {
            println!("{} after step {}", opened.dir.path().display(), opened.checkpoint.step());
            scores::print(&rows);
        }
        Ok(())
    }
}
