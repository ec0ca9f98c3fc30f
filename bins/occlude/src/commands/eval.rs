//! `occlude eval`: scores a trained run.

use super::WhichWeights;
use crate::log::one_line;
use crate::open::{self, Images, Opened};
use crate::pictures::Pictures;
use crate::report;
use crate::scores::{self, Scores};
use crate::scoring::Scoring;
use crate::stages::Stages;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use occlude_eval::Protocol;
use std::path::PathBuf;

/// Score a run: k-NN beside random weights and raw pixels, linear probes, low-shot classification. The scores of a run's
/// newest weights also go into its `scores.json`, `summary.json` and report; those of a checkpoint that is named, or of
/// other weights than the config's, are only printed.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude eval runs/quickstart
  occlude eval runs/quickstart --weights student
  occlude eval runs/quickstart/checkpoints/step-00000500
  occlude eval runs/quickstart --protocol lowshot --set eval.lowshot.shots=[1,5,20]
  occlude eval runs/quickstart --protocol knn --set eval.knn.neighbours=[10,20] --set eval.knn.temperatures=[0.04,0.1]
  occlude eval runs/quickstart --protocol linear --set eval.linear.protocol=moca --json")]
pub(crate) struct Eval {
    /// Folder of a run (its newest checkpoint is taken) or of one checkpoint.
    run: PathBuf,
    /// Which weights; without it, what the config says (`eval.weights`).
    #[arg(long)]
    weights: Option<WhichWeights>,
    /// What to score; without it, what the config says (`eval.protocols`). Several: `knn,linear`.
    #[arg(long, value_delimiter = ',')]
    protocol: Vec<WhichProtocol>,
    /// Change a setting of the evaluation (`eval.*`, `data.eval`); may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One JSON object instead of a table: each line of the table, and under `details` every setting that was tried.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhichProtocol {
    /// Nearest neighbours vote.
    Knn,
    /// A linear classifier on all training images.
    Linear,
    /// A linear classifier on a few training images of each class.
    Lowshot,
}

impl From<WhichProtocol> for Protocol {
    fn from(which: WhichProtocol) -> Self {
        match which {
            WhichProtocol::Knn => Self::Knn,
            WhichProtocol::Linear => Self::Linear,
            WhichProtocol::Lowshot => Self::LowShot,
        }
    }
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        if let Some(other) = self.set.iter().find(|set| !is_of_evaluation(set)) {
            bail!("--set {other}: only settings of the evaluation (`eval.*`, `data.eval`) may change");
        }
        let opened = open::open(&self.run)?;
        let mut run = opened.changed(&self.set)?;
        if !self.protocol.is_empty() {
            run.eval.protocols = self.protocol.iter().copied().map(Protocol::from).collect();
        }
        let images = Images::open(&run)?;
        let weights = self.weights.map_or(run.eval.weights, Into::into);
        let step = opened.checkpoint.step();
        let scoring = Scoring { run: &run, images: &images, device: &opened.device, weights, step };
        let scores = scoring.of(&*opened.method, &Stages::new())?;
        let rows = scores.rows();
        if self.json {
            let mut entries: serde_json::Map<_, _> =
                rows.iter().map(|row| (row.name.clone(), row.percent.into())).collect();
            entries.insert("details".to_owned(), serde_json::to_value(&scores)?);
            println!("{}", serde_json::Value::Object(entries));
        } else {
            println!("{} after step {step}", opened.dir.path().display());
            scores::print(&rows);
        }
        if opened.newest && weights == opened.run.eval.weights {
            enter(scores, &opened, &images)?;
        }
        Ok(())
    }
}

/// Whether `KEY=VALUE` leaves what was trained as it is.
fn is_of_evaluation(set: &str) -> bool {
    let key = set.split('=').next().unwrap_or(set).trim();
    key.starts_with("eval.") || key == "data.eval" || key.starts_with("data.eval.")
}

/// Puts the scores into the run, beside older ones of the same weights, and makes its report again.
fn enter(scores: Scores, opened: &Opened, images: &Images) -> Result<()> {
    let Opened { dir, config, run, device, checkpoint, method, .. } = opened;
    let _lock = match dir.lock() {
        Ok(lock) => lock,
        Err(error) => {
            tracing::warn!("the scores are not entered into the run: {}", one_line(&error.into()));
            return Ok(());
        }
    };
    let scores = match Scores::read(dir, checkpoint.step())? {
        Some(older) => scores.over(older),
        None => scores,
    };
    scores.write(dir)?;
    let mut summary = report::summary(dir, checkpoint)?;
    scores.enter(&mut summary);
    summary.write(&dir.summary_file())?;
    if dir.report_file().exists() {
        let (images, random) = (images.seen_by(run)?, open::fresh(run, device)?);
        let pictures = Pictures { run, images: &images, device, method: &**method, random: &*random };
        report::write(dir, config, &summary, &pictures)?;
    }
    Ok(())
}
