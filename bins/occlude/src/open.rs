//! Opening a run: its settings, its newest weights, its images.

use crate::device;
use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Device};
use occlude_checkpoint::{Checkpoint, RunDir};
use occlude_config::{Run, RunConfig, Sources};
use occlude_data::{Dataset, EvalTransform, Split};
use occlude_eval::WeightsChoice;
use occlude_methods::{Method, Weights};
use occlude_random::Streams;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A run that was trained, with its weights loaded.
pub(crate) struct Opened {
    pub(crate) dir: RunDir,
    pub(crate) config: RunConfig,
    pub(crate) run: Run,
    pub(crate) device: Device,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) method: Box<dyn Method>,
}

/// Starts the thread pool. Must come before any tensor and any other thread.
pub(crate) fn threads(config: &RunConfig) -> Result<()> {
    occlude_kernels::memory::keep_freed();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(occlude_kernels::threads::init(config.threads.unwrap_or(cores))?)
}

/// The settings stored in a run directory, without those of the environment.
pub(crate) fn settings(dir: &RunDir) -> Result<RunConfig> {
    let file = dir.config_file();
    let sources = Sources { file: Some(file), ..Sources::default() };
    let remedy = || format!("{}: not the folder of a run that `occlude train` wrote", dir.path().display());
    occlude_config::resolve(&sources).with_context(remedy)
}

/// Opens `path`: the folder of a run (its newest whole checkpoint is taken) or one of its checkpoints.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    let (dir, chosen) = locate(path)?;
    let config = settings(&dir)?;
    threads(&config)?;
    let run = config.check(None)?;
    let device = device::open(&run.device)?;
    let checkpoint = match chosen {
        Some(folder) => Checkpoint::open(folder)?,
        None => newest(&dir, &run)?,
    };
    let mut method = fresh(&run, &device)?;
    method.load(&checkpoint.load("method", &device)?)?;
    Ok(Opened { dir, config, run, device, checkpoint, method })
}

/// The run directory of `path`, and the checkpoint if `path` is one.
fn locate(path: &Path) -> Result<(RunDir, Option<PathBuf>)> {
    let is_checkpoint = path.join("manifest.json").is_file();
    let run = if is_checkpoint { path.ancestors().nth(2).unwrap_or(path) } else { path };
    Ok((RunDir::open(run)?, is_checkpoint.then(|| path.to_owned())))
}

fn newest(dir: &RunDir, run: &Run) -> Result<Checkpoint> {
    let found = dir.checkpoints(run.training.retention()).newest()?;
    found.checkpoint.ok_or_else(|| anyhow!("{}: no whole checkpoint; train the run first", dir.path().display()))
}

/// The method with the weights every run of this seed begins with.
pub(crate) fn fresh(run: &Run, device: &Device) -> Result<Box<dyn Method>> {
    Ok(run.method.build(Streams::new(run.seed), DType::F32, device)?)
}

/// The images of a run and how they are shown to a frozen model.
#[derive(Clone)]
pub(crate) struct Images {
    pub(crate) train: Arc<dyn Dataset>,
    /// None where nothing is held out.
    pub(crate) test: Option<Arc<dyn Dataset>>,
    pub(crate) transform: Arc<EvalTransform>,
}

impl Images {
    /// Opens both splits.
    pub(crate) fn open(run: &Run) -> Result<Self> {
        let train = occlude_data::open(&run.source, Split::Train)?;
        Self::around(run, train)
    }

    /// Opens the held-out split beside a training split that is open already.
    pub(crate) fn around(run: &Run, train: Arc<dyn Dataset>) -> Result<Self> {
        let test = match occlude_data::open(&run.source, Split::Test) {
            Ok(test) => Some(test),
            Err(occlude_data::Error::NoTestSplit { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let transform = Arc::new(run.crop.eval_transform(run.eval_mode)?);
        Ok(Self { train, test, transform })
    }

    /// Why these images cannot be scored, if so: something held out, two classes, and as many images as neighbours vote.
    pub(crate) fn unfit_for_scores(&self, run: &Run) -> Option<String> {
        let voters = run.eval.knn.neighbours.last().copied().unwrap_or(1);
        if self.test.is_none() {
            return Some("no images are held out (data.source.test, data.source.holdout)".into());
        }
        if self.train.classes().len() < 2 {
            return Some("images have no classes (folders inside the folder would be taken for classes)".into());
        }
        let images = self.train.len();
        (images < voters).then(|| format!("{images} images are fewer than the {voters} neighbours that vote"))
    }
}

/// The weights meant, as a method knows them.
pub(crate) fn weights(choice: WeightsChoice) -> Weights {
    match choice {
        WeightsChoice::Student => Weights::Student,
        WeightsChoice::Teacher => Weights::Teacher,
    }
}
