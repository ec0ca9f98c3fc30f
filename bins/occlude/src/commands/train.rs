//! `occlude train`: trains a run, or goes on with it.

use crate::open::{self, Images};
use crate::pause::Pause;
use crate::pictures::Pictures;
use crate::probe::KnnProbe;
use crate::scores::{self, Scoring};
use crate::settings::ConfigArgs;
use crate::{device, files, report};
use anyhow::{Context, Result};
use candle_core::Device;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use occlude_checkpoint::RunDir;
use occlude_checkpoint::layouts::capi::{self, Model, Scope};
use occlude_config::{Run, RunConfig};
use occlude_data::{Loader, Split};
use occlude_methods::Method;
use occlude_random::Streams;
use occlude_trainer::{End, MetricsSink, Outcome, ProgressSink, Stop, Summary, TensorBoardSink, TimingSink, Trainer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Train. The same command again goes on where the run stopped.
#[derive(Args)]
#[command(after_help = "Examples:
  occlude train                                               the quick start: drawn pictures, three minutes
  occlude train configs/capi/folder-96.toml --set data.source.path=photos
  occlude train my.toml --set train.batch=64 --set seed=1 --out runs/seed1
  OCCLUDE_TRAIN__BATCH=64 occlude train my.toml               a setting from the environment
  occlude train my.toml --fresh                               starts over
  occlude train my.toml --init-from weights.safetensors       begins with official weights")]
pub(crate) struct Train {
    #[command(flatten)]
    settings: ConfigArgs,
    /// Folder of the run; without it, `runs/<name of the config>`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Start over: checkpoints of an earlier run in this folder are removed.
    #[arg(long)]
    fresh: bool,
    /// Weights in the official layout to begin with (safetensors, or PyTorch's zip form).
    #[arg(long, value_name = "FILE")]
    init_from: Option<String>,
}

impl Train {
    pub(crate) fn run(self) -> Result<()> {
        let mut config = self.settings.resolve()?;
        if self.init_from.is_some() {
            config.init_from.clone_from(&self.init_from);
        }
        open::threads(&config)?;
        let prepared = Prepared::new(config)?;
        let out = self.out.clone().unwrap_or_else(|| Path::new("runs").join(self.settings.name()));
        let dir = RunDir::create(out)?;
        let _lock = dir.lock()?;
        let mut method = prepared.method(&dir, self.fresh)?;
        let done = prepared.train(&dir, &mut *method, self.fresh)?;
        prepared.finish(&dir, &*method, done)
    }
}

/// Everything a run needs, opened and checked before its folder is touched.
struct Prepared {
    config: RunConfig,
    run: Run,
    device: Device,
    images: Images,
}

impl Prepared {
    fn new(config: RunConfig) -> Result<Self> {
        // Opening a large data set takes time; a mistake in the settings should not have to wait for it.
        let quiet = tracing::subscriber::NoSubscriber::new();
        let early = tracing::subscriber::with_default(quiet, || config.check(None))?;
        let device = device::open(&early.device)?;
        let train = occlude_data::open(&early.source, Split::Train)?;
        let run = config.check(Some(train.len()))?;
        let images = Images::around(&run, train)?;
        Ok(Self { config, run, device, images })
    }

    /// The method with the weights the run begins with. A run that goes on loads its own later.
    fn method(&self, dir: &RunDir, fresh: bool) -> Result<Box<dyn Method>> {
        let mut method = open::fresh(&self.run, &self.device)?;
        let begins = fresh || dir.checkpoints(self.run.training.retention()).list()?.is_empty();
        if let Some(file) = self.config.init_from.as_ref().filter(|_| begins) {
            let file = Path::new(file);
            let student = capi::read(file, &method.state(), Model::Student, Scope::All)?;
            let both = capi::read(file, &student.state, Model::Average, Scope::All)?;
            if !both.missing.is_empty() {
                tracing::warn!("{}: {} tensors are missing and stay random", file.display(), both.missing.len());
            }
            method.load(&both.state).with_context(|| file.display().to_string())?;
        }
        Ok(method)
    }

    fn train(&self, dir: &RunDir, method: &mut dyn Method, fresh: bool) -> Result<Outcome> {
        let streams = Streams::new(self.run.seed);
        let mut trainer = Trainer::new(dir, self.run.training.clone(), streams, self.device.clone());
        trainer.identity = self.config.identity();
        trainer.fresh = fresh;
        trainer.stop = Stop::on_signals()?;
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        crate::log::above(Some(bar.clone()));
        trainer.sinks = vec![
            Box::new(files::Described::new(dir, &self.config, fresh)?),
            Box::new(MetricsSink::open(&dir.metrics_file())?),
            Box::new(TimingSink::open(&dir.timing_file())?),
            Box::new(TensorBoardSink::open(dir.path())?),
            Box::new(ProgressSink::new(bar, Duration::from_secs(10))),
        ];
        if let Some(pause) = Pause::from_environment() {
            let (sink, observer) = pause.parts();
            trainer.sinks.push(Box::new(sink));
            trainer.checkpoints = trainer.checkpoints.observed(observer);
        }
        trainer.probes.extend(self.probe());
        let batches = |first_step| {
            let (dataset, crop) = (Arc::clone(&self.images.train), Arc::clone(&self.run.crop));
            Loader::start(dataset, crop, self.run.loader, streams, first_step)
        };
        let done = trainer.run(method, batches);
        crate::log::above(None);
        Ok(done?)
    }

    fn probe(&self) -> Option<Box<dyn occlude_trainer::Probe>> {
        if self.run.probe.every == 0 {
            return None;
        }
        if let Some(why) = self.images.unfit_for_scores(&self.run) {
            tracing::info!("no scores for this run: {why}");
            return None;
        }
        Some(Box::new(KnnProbe {
            settings: self.run.probe.clone(),
            knn: self.run.eval.knn.clone(),
            images: self.images.clone(),
            device: self.device.clone(),
            streams: Streams::new(0),
            random_start: self.config.init_from.is_none(),
        }))
    }

    /// Scores, summary, report, and what to do next.
    fn finish(&self, dir: &RunDir, method: &dyn Method, done: Outcome) -> Result<()> {
        let mut summary = done.summary;
        let stored = Summary::read(&dir.summary_file()).ok().filter(|stored| stored.finished);
        if done.end == End::Interrupted {
            summary.write(&dir.summary_file())?;
            println!("stopped after step {} and saved; go on with: {}", done.step, files::command());
            return Ok(());
        }
        if done.resumed == Some(done.step) && stored.is_some() && dir.report_file().exists() {
            println!("{}: already finished after {} steps; --fresh trains again", dir.path().display(), done.step);
            return Ok(());
        }
        if self.images.unfit_for_scores(&self.run).is_none() {
            let weights = self.run.eval.weights;
            let scoring = Scoring { run: &self.run, images: &self.images, device: &self.device, weights };
            let scores = scoring.of(method, &|doing| tracing::info!("scoring: {doing}"))?;
            scores.enter(&mut summary);
            scores::print(&scores.rows());
        }
        // The report reads it; it says "finished" only when the report is there as well.
        let random = open::fresh(&self.run, &self.device)?;
        let (run, images, device) = (&self.run, &self.images, &self.device);
        summary.write(&dir.summary_file())?;
        report::write(dir, &self.config, &Pictures { run, images, device, method, random: &*random })?;
        self.tell(dir, &summary, &done.checkpoint);
        Ok(())
    }

    fn tell(&self, dir: &RunDir, summary: &Summary, checkpoint: &Path) {
        println!(
            "{} steps in {:.0} s, {:.0} images/s, {:.0} % of the time waiting for images",
            summary.steps,
            summary.seconds,
            summary.images_per_second,
            100.0 * summary.wait_share
        );
        println!("  report       {}", dir.report_file().display());
        println!("  checkpoint   {}", checkpoint.display());
        println!("  summary      {}", dir.summary_file().display());
        println!("  weights      occlude export {} --layout capi --out weights.safetensors", dir.path().display());
    }
}
