//! Opening a run: its settings, its newest weights, its images.

use crate::device;
use crate::files::ImagesOfRun;
use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Device};
use occlude_checkpoint::{Checkpoint, RunDir};
use occlude_config::{LINEAR_PROBE_NEEDS, Run, RunConfig, Sources};
use occlude_data::{Both, Dataset, EvalTransform};
use occlude_eval::{Protocol, WeightsChoice, choose};
use occlude_methods::{Method, Weights};
use occlude_random::Streams;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A run that was trained, with its weights loaded.
pub(crate) struct Opened {
    pub(crate) dir: RunDir,
    pub(crate) config: RunConfig,
    pub(crate) run: Run,
    pub(crate) device: Device,
    pub(crate) checkpoint: Checkpoint,
    /// Whether that is the newest of the run, and not one that was named.
    pub(crate) newest: bool,
    pub(crate) method: Box<dyn Method>,
}

/// Starts the thread pool. Must come before any tensor and any other thread.
pub(crate) fn threads(config: &RunConfig) -> Result<()> {
    occlude_kernels::memory::keep_freed();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(occlude_kernels::threads::init(config.checked_threads()?.unwrap_or(cores))?)
}

/// The settings stored in a run directory, without those of the environment; over them `set`.
pub(crate) fn settings(dir: &RunDir, set: &[String]) -> Result<RunConfig> {
    let file = dir.config_file();
    let sources = Sources { file: Some(file), set: set.to_vec(), ..Sources::default() };
    let remedy = || format!("{}: not the folder of a run that `occlude train` wrote", dir.path().display());
    occlude_config::resolve(&sources).with_context(remedy)
}

/// Settings and images that decide what a run of `config` computes.
pub(crate) fn identity(config: &RunConfig, images: &ImagesOfRun) -> BTreeMap<String, String> {
    let mut identity = config.identity();
    identity.insert("data.images".to_owned(), images.image_sets.clone());
    identity
}

/// Opens `path`: the folder of a run (its newest whole checkpoint is taken) or one of its checkpoints.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    let (dir, chosen) = locate(path)?;
    let config = settings(&dir, &[])?;
    threads(&config)?;
    let run = config.check(Some(ImagesOfRun::read(&dir)?.images))?;
    let device = device::open(&run.device)?;
    let newest_taken = chosen.is_none();
    let checkpoint = match chosen {
        Some(folder) => Checkpoint::open(folder)?,
        None => newest(&dir, &run)?,
    };
    let mut method = fresh(&run, &device)?;
    method.load(&checkpoint.load("method", &device)?)?;
    Ok(Opened { dir, config, run, device, checkpoint, newest: newest_taken, method })
}

impl Opened {
    /// The run as it would be with these settings changed.
    pub(crate) fn changed(&self, set: &[String]) -> Result<Run> {
        Ok(settings(&self.dir, set)?.check(Some(ImagesOfRun::read(&self.dir)?.images))?)
    }
}

/// The run directory of `path`, and the checkpoint if `path` is one.
fn locate(path: &Path) -> Result<(RunDir, Option<PathBuf>)> {
    if !path.join("manifest.json").is_file() {
        return Ok((RunDir::open(path)?, None));
    }
    Ok((run_around(path)?, Some(path.to_owned())))
}

/// The run that holds `folder` (a checkpoint or a stored step) two levels down, wherever one stands when naming it.
pub(crate) fn run_around(folder: &Path) -> Result<RunDir> {
    let shown = folder.display();
    let whole = folder.canonicalize().with_context(|| shown.to_string())?;
    let run = whole.ancestors().nth(2).with_context(|| format!("{shown}: not a folder inside a run"))?;
    Ok(RunDir::open(run)?)
}

fn newest(dir: &RunDir, run: &Run) -> Result<Checkpoint> {
    let found = dir.checkpoints(run.training.retention()).newest()?;
    found.checkpoint.ok_or_else(|| anyhow!("{}: no whole checkpoint; train the run first", dir.path().display()))
}

/// The method with the random weights of the run's seed: those it begins with, unless `--init-from` gave others.
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
        Self::of(run, occlude_data::open_both(&run.source)?)
    }

    /// Of splits that are open already.
    pub(crate) fn of(run: &Run, (train, test): Both) -> Result<Self> {
        let transform = Arc::new(run.crop.eval_transform(run.eval_mode)?);
        Ok(Self { train, test, transform })
    }

    /// The same as another run sees them.
    pub(crate) fn seen_by(&self, run: &Run) -> Result<Self> {
        Ok(Self { transform: Arc::new(run.crop.eval_transform(run.eval_mode)?), ..self.clone() })
    }

    /// What the run remembers of them.
    pub(crate) fn described(&self) -> ImagesOfRun {
        let told = |set: &dyn Dataset| format!("{} ({:016x})", set.len(), set.fingerprint());
        let test = self.test.as_deref().map_or_else(|| "none".to_owned(), told);
        let image_sets = format!("{} to train, {test} held out", told(&*self.train));
        ImagesOfRun { images: self.train.len(), image_sets }
    }

    /// Why these images cannot be scored, if so: something held out, two classes, and as many labelled images as
    /// neighbours vote and a linear probe needs, where these are asked for.
    pub(crate) fn unfit_for_scores(&self, run: &Run, protocols: &[Protocol]) -> Option<String> {
        let needs = |protocol: &Protocol| match protocol {
            Protocol::Knn => run.eval.knn.voters(),
            Protocol::Linear => LINEAR_PROBE_NEEDS,
            Protocol::LowShot => 0,
        };
        let Some(test) = self.test.as_deref() else {
            return Some("no images are held out (data.source.test, data.source.holdout)".into());
        };
        if self.train.classes().len() < 2 {
            return Some("images have no classes (folders inside the folder would be taken for classes)".into());
        }
        if labelled(test).is_empty() {
            return Some("none of the held-out images has a class".into());
        }
        let (images, needed) = (labelled(&*self.train).len(), protocols.iter().map(needs).max().unwrap_or(0));
        (images < needed).then(|| {
            format!("{images} training images have a class; neighbours that vote and the linear probe need {needed}")
        })
    }
}

/// Indices of the images that have a class, ascending.
fn labelled(dataset: &dyn Dataset) -> Vec<usize> {
    (0..dataset.len()).filter(|index| dataset.label(*index).is_some()).collect()
}

/// [`choose`] among the images that have a class; where all have one, the same images.
pub(crate) fn choose_labelled(
    dataset: &dyn Dataset,
    limit: Option<usize>,
    streams: &Streams,
    purpose: &str,
) -> Vec<usize> {
    let labelled = labelled(dataset);
    choose(labelled.len(), limit, streams, purpose).into_iter().map(|place| labelled[place]).collect()
}

/// The weights meant, as a method knows them.
pub(crate) fn weights(choice: WeightsChoice) -> Weights {
    match choice {
        WeightsChoice::Student => Weights::Student,
        WeightsChoice::Teacher => Weights::Teacher,
    }
}
