//! `occlude train`: trains a run, or goes on with it.

use crate::layout::Layout;
use crate::log::one_line;
use crate::open::{self, Images};
use crate::pause::Pause;
use crate::pictures::Pictures;
use crate::probe::KnnProbe;
use crate::scores::{self, Scores};
use crate::scoring::Scoring;
use crate::settings::ConfigArgs;
use crate::stages::Stages;
use crate::{device, files, report};
use anyhow::{Context, Result};
use candle_core::Device;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use occlude_checkpoint::RunDir;
use occlude_config::{Run, RunConfig};
use occlude_data::Loader;
use occlude_eval::Protocol;
use occlude_kernels::Precision;
use occlude_methods::Method;
use occlude_random::Streams;
use occlude_trainer::{End, MetricsSink, Outcome, ProgressSink, Stop, Summary, TensorBoardSink, TimingSink, Trainer};
use std::io;
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
        let named = || Path::new("runs").join(self.settings.name(&prepared.config));
        let out = self.out.clone().unwrap_or_else(named);
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
        // Opening a large data set takes time; a mistake in the settings should not have to wait for it. What an epoch
        // allows is known only then.
        if !config.counts_epochs() {
            let quiet = tracing::subscriber::NoSubscriber::new();
            tracing::subscriber::with_default(quiet, || config.check(None))?;
        }
        let device = device::open(&config.device)?;
        let source = config.data.source.check().map_err(|error| error.inside("data.source"))?;
        let both = occlude_data::open_both(&source)?;
        let run = config.check(Some(both.0.len()))?;
        let images = Images::of(&run, both)?;
        Ok(Self { config, run, device, images })
    }

    /// The method with the weights the run begins with. A run that goes on loads its own later.
    fn method(&self, dir: &RunDir, fresh: bool) -> Result<Box<dyn Method>> {
        let mut method = open::fresh(&self.run, &self.device)?;
        let begins = fresh || dir.checkpoints(self.run.training.retention()).list()?.is_empty();
        if let Some(file) = self.config.init_from.as_ref().filter(|_| begins) {
            let file = Path::new(file);
            let imported = Layout::of(&self.config.method).read(file, &method.state())?;
            let told = [
                (&imported.missing, "the model are missing in the file and stay random"),
                (&imported.ignored, "the file are unused"),
            ];
            for (names, what) in told {
                if let Some(first) = names.first() {
                    tracing::warn!("{}: {} tensors of {what}, the first: {first}", file.display(), names.len());
                }
            }
            method.load(&imported.state).with_context(|| file.display().to_string())?;
        }
        Ok(method)
    }

    fn train(&self, dir: &RunDir, method: &mut dyn Method, fresh: bool) -> Result<Outcome> {
        let streams = Streams::new(self.run.seed);
        let mut trainer = Trainer::new(dir, self.run.training.clone(), streams, self.device.clone());
        let images = self.images.described();
        trainer.identity = open::identity(&self.config, &images);
        trainer.fresh = fresh;
        let stop = Stop::on_signals()?;
        trainer.stop = stop.clone();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        crate::log::above(Some(bar.clone()));
        trainer.sinks = vec![
            Box::new(files::Described::new(dir, &self.config, images, fresh)?),
            Box::new(opened(&dir.metrics_file(), MetricsSink::open)?),
            Box::new(opened(&dir.timing_file(), TimingSink::open)?),
            Box::new(opened(dir.path(), TensorBoardSink::open)?),
            Box::new(ProgressSink::new(bar, Duration::from_secs(10))),
        ];
        if let Some(pause) = Pause::from_environment() {
            let (sink, observer) = pause.parts();
            trainer.sinks.push(Box::new(sink));
            trainer.checkpoints = trainer.checkpoints.observed(observer);
        }
        trainer.probes.extend(self.probe());
        let precision = self.run.training.precision();
        if precision != Precision::F32 {
            tracing::info!("train.precision = {precision}: matrix products are {}", precision.explain());
        }
        let batches = |first| {
            let (dataset, views) = (Arc::clone(&self.images.train), Arc::clone(&self.run.views));
            Loader::start(dataset, views, self.run.loader, streams, first)
        };
        let done = trainer.run(method, batches);
        crate::log::above(None);
        // What follows is short and can be done again: from here a signal ends the program.
        stop.release();
        let done = done?;
        Ok(if stop.requested() { Outcome { end: End::Interrupted, ..done } } else { done })
    }

    fn probe(&self) -> Option<Box<dyn occlude_trainer::Probe>> {
        if self.run.probe.every == 0 {
            return None;
        }
        if let Some(why) = self.images.unfit_for_scores(&self.run, &[Protocol::Knn, Protocol::Linear]) {
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

    /// Summary, scores, report, and what to do next. A run counts as finished when its report is there.
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
        files::remove(&dir.report_file()).with_context(|| dir.report_file().display().to_string())?;
        summary.write(&dir.summary_file())?;
        let scores = self.scores(method, done.step)?;
        if let Some(scores) = &scores {
            scores.write(dir)?;
            scores.enter(&mut summary);
            summary.write(&dir.summary_file())?;
        }
        let random = open::fresh(&self.run, &self.device)?;
        let (run, images, device) = (&self.run, &self.images, &self.device);
        report::write(dir, &self.config, &summary, &Pictures { run, images, device, method, random: &*random })?;
        if let Some(scores) = &scores {
            scores::print(&scores.rows());
        }
        self.tell(dir, &summary, &done.checkpoint);
        Ok(())
    }

    /// Scores of the trained model; `None` where there are none to be had, after a warning if they should have been.
    fn scores(&self, method: &dyn Method, step: u64) -> Result<Option<Scores>> {
        if let Some(pause) = Pause::from_environment() {
            pause.at("scoring")?;
        }
        if self.images.unfit_for_scores(&self.run, &self.run.eval.protocols).is_some() {
            return Ok(None);
        }
        let weights = self.run.eval.weights;
        let scoring = Scoring { run: &self.run, images: &self.images, device: &self.device, weights, step };
        let scores = scoring.of(method, &Stages::new());
        // The run is trained and saved; `occlude eval` can score it later.
        Ok(scores.inspect_err(|error| tracing::warn!("no scores: {}", one_line(error))).ok())
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
        let layout = Layout::of(&self.config.method);
        println!("  weights      occlude export {} --layout {layout} --out weights.safetensors", dir.path().display());
    }
}

/// A sink that writes to `path`, which the error names.
fn opened<S>(path: &Path, open: impl Fn(&Path) -> io::Result<S>) -> Result<S> {
    open(path).with_context(|| path.display().to_string())
}
