//! The schema of a run: what every room wants to know, in one tree.

use crate::identity::{counts_epochs, identity};
use crate::{Error, Result, Sources, layers, merge, presets};
use occlude_data::{
    Augment, CropConfig, EvalMode, LoaderConfig, LoaderSettings, RandomCrop, Source, SourceConfig, Views, ViewsConfig,
};
use occlude_eval::{Eval, EvalConfig, Probe, ProbeConfig};
use occlude_methods::{CheckedMethod, MethodConfig};
use occlude_settings::{ConfigError, require};
use occlude_trainer::{TrainConfig, Training};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Images of the training set where a config is checked without opening it; only lengths in epochs depend on it.
pub const NOMINAL_IMAGES: usize = 50_000;

/// Labelled training images below which no linear probe is trained.
pub const LINEAR_PROBE_NEEDS: usize = 10;

/// Images: which, how they are varied, how they are loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Which images.
    pub source: SourceConfig,
    /// Random crop and flip in training.
    pub crop: CropConfig,
    /// What else happens to the views of an image in training: a named set, such as `"moca"`, or one table a view. Absent:
    /// one view, cut and mirrored only.
    pub views: Option<ViewsConfig>,
    /// How an image becomes a square of the crop's size in probes, evaluation and reports.
    pub eval: EvalMode,
    /// Threads and queue; they change no batch.
    pub loader: LoaderConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: SourceConfig::default(),
            crop: CropConfig::default(),
            views: None,
            eval: EvalMode::Squash,
            loader: LoaderConfig::default(),
        }
    }
}

/// A run as written: every setting there is. Defaults are those of each room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Settings to start from, by name; everything else is laid over them.
    pub preset: Option<String>,
    /// Key of all randomness of training.
    pub seed: u64,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Threads of the tensor code; all cores where absent. Results do not depend on it.
    pub threads: Option<usize>,
    /// Weights in the official layout to begin with instead of random ones.
    pub init_from: Option<String>,
    /// Images.
    pub data: DataConfig,
    /// The method and its networks.
    pub method: MethodConfig,
    /// Length, batch, checkpoints.
    pub train: TrainConfig,
    /// k-NN while training.
    pub probe: ProbeConfig,
    /// Scores at the end and of `occlude eval`.
    pub eval: EvalConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            preset: None,
            seed: 0,
            device: "cpu".into(),
            threads: None,
            init_from: None,
            data: DataConfig::default(),
            method: MethodConfig::default(),
            train: TrainConfig::default(),
            probe: ProbeConfig::default(),
            eval: EvalConfig::default(),
        }
    }
}

/// A run whose every setting is allowed.
#[derive(Debug)]
pub struct Run {
    /// Key of all randomness of training.
    pub seed: u64,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Which images.
    pub source: Source,
    /// Random crop and flip.
    pub crop: Arc<RandomCrop>,
    /// The views of an image, cut by it.
    pub views: Arc<Views>,
    /// How an image becomes a square outside training.
    pub eval_mode: EvalMode,
    /// Threads and queue.
    pub loader: LoaderSettings,
    /// The method.
    pub method: CheckedMethod,
    /// Length, batch, checkpoints.
    pub training: Training,
    /// k-NN while training.
    pub probe: Probe,
    /// Scores at the end.
    pub eval: Eval,
}

/// Settings that may change between the start of a run and its resumption: they say where and how often, not what.
pub(crate) const FREE: &[&str] = &[
    "preset",
    "device",
    "threads",
    "data.loader",
    "data.eval",
    "data.source.cache_mb",
    "method.encoder.recompute",
    "train.log_every",
    "train.checkpoint",
    "probe",
    "eval",
];

/// Reads all layers into one config. Values are not checked yet.
///
/// # Errors
/// A file that cannot be read, text that is not TOML, an unknown key or preset, a value of the wrong kind.
pub fn resolve(sources: &Sources) -> Result<RunConfig> {
    let mut written = layers::read(sources)?;
    let preset = presets::named_in(&written)?;
    if !preset.is_empty() {
        // A preset over the quick start would vanish under it: who names one wants that and not the quick start.
        written.retain(|layer| layer.source != crate::Source::Quickstart);
        written.splice(0..0, preset);
    }
    merge::merge(written)
}

impl RunConfig {
    /// Asks every room to check its part, for a training set of `images` images (if known: lengths in epochs depend on it).
    ///
    /// # Errors
    /// Names the first setting that is not allowed, with its full name.
    pub fn check(&self, images: Option<usize>) -> Result<Run> {
        let device =
            require("device", self.device.as_str(), "must be `cpu` or `cuda`", |d| ["cpu", "cuda"].contains(d))?;
        self.checked_threads()?;
        let source = inside("data.source", self.data.source.check())?;
        let crop = Arc::new(inside("data.crop", self.data.crop.check())?);
        let views = self.views(&crop)?;
        inside("data.eval", crop.eval_transform(self.data.eval))?;
        let training = inside("train", self.train.check(images.unwrap_or(NOMINAL_IMAGES)))?;
        let known = |_: &&str| device == "cpu" || self.train.precision == "f32";
        require("train.precision", self.train.precision.as_str(), "must be `f32` on this device", known)?;
        let loader = self.data.loader.check(training.batch().micro).map_err(|error| match error.field.as_str() {
            "batch" => error.inside("train"),
            _ => error.inside("data.loader"),
        })?;
        let ruler = training.ruler();
        let method = self.method.check(crop.size(), training.batch(), ruler);
        let method = inside("method", method)?;
        self.as_many_views(views.count())?;
        self.reachable(images, method.grid().count())?;
        let probe = inside("probe", self.probe.check(ruler))?;
        let eval = inside("eval", self.eval.check())?;
        enough_voters(&probe, &eval)?;
        Ok(Run {
            seed: self.seed,
            device: device.to_owned(),
            source,
            crop,
            views: Arc::new(views),
            eval_mode: self.data.eval,
            loader,
            method,
            probe,
            eval,
            training,
        })
    }

    fn views(&self, crop: &Arc<RandomCrop>) -> Result<Views> {
        let Some(views) = &self.data.views else { return Ok(Views::plain(Arc::clone(crop))) };
        inside("data", views.check(Arc::clone(crop)))
    }

    /// Refuses another number of views than the method takes.
    fn as_many_views(&self, count: usize) -> Result<()> {
        let taken = self.method.views();
        let written = if self.data.views.is_some() { "" } else { ", as where it is absent" };
        let views = |count| if count == 1 { "1 view".to_owned() } else { format!("{count} views") };
        if count == taken {
            return Ok(());
        }
        let remedy = match taken {
            1 => "leave it out",
            2 => "such as data.views = \"moca\", or a table `[[data.views]]` for each",
            _ => "a table `[[data.views]]` for each",
        };
        let allowed = format!("must be {}, which method.kind = {} takes: {remedy}", views(taken), self.method.name());
        Err(ConfigError::new("data.views", format!("{}{written}", views(count)), allowed).into())
    }

    /// Threads of the tensor code, where they are given.
    ///
    /// # Errors
    /// Names the setting if it is out of range.
    pub fn checked_threads(&self) -> Result<Option<usize>> {
        let allowed = "must be between 1 and 1024";
        let check = |threads| require("threads", threads, allowed, |t| (1..=1024).contains(t));
        Ok(self.threads.map(check).transpose()?)
    }

    /// Whether a length is given in epochs: what it allows then depends on the number of images.
    #[must_use]
    pub fn counts_epochs(&self) -> bool {
        counts_epochs(self)
    }

    /// Refuses more prototypes than there are patches to tell apart: some could never be reached.
    fn reachable(&self, images: Option<usize>, of_an_image: usize) -> Result<()> {
        let prototypes = match &self.method {
            MethodConfig::Capi(_) => self.method.classes(),
            // A word is a token itself, and pixels are no classes.
            MethodConfig::Moca(_) | MethodConfig::Randsac(_) | MethodConfig::Mae(_) => None,
        };
        if let (Some(images), Some(prototypes)) = (images, prototypes) {
            let patches = images.saturating_mul(of_an_image);
            let allowed = format!(
                "must be at most the {patches} patches of the {images} training images: more could not be reached; \
                 lower it or give more images"
            );
            require("method.clustering.prototypes", prototypes, &allowed, |k| *k <= patches)?;
        }
        Ok(())
    }

    /// The whole config as TOML, which reads back as the same config.
    ///
    /// # Errors
    /// A value that TOML cannot hold, such as a seed above 2^63.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Settings that decide what is learned, flattened (`method.encoder.dim` -> `192`). Those that may change between
    /// the start of a run and its resumption are left out.
    #[must_use]
    pub fn identity(&self) -> BTreeMap<String, String> {
        identity(self)
    }
}

/// Refuses a bank that has fewer images than neighbours vote, or than a linear probe needs.
fn enough_voters(probe: &Probe, eval: &Eval) -> Result<()> {
    let voters = eval.knn.neighbours.last().copied().unwrap_or(1);
    let check = |field: &str, bank: usize, least: usize| {
        let allowed = format!("must be at least {least}: the last of eval.knn.neighbours is {voters}");
        require(field, bank, &allowed, |bank| *bank >= least).map(drop)
    };
    check("probe.bank", probe.bank, voters)?;
    let least = voters.max(LINEAR_PROBE_NEEDS);
    Ok(eval.bank.map_or(Ok(()), |bank| check("eval.bank", bank, least))?)
}

fn inside<T>(table: &str, checked: Result<T, ConfigError>) -> Result<T> {
    checked.map_err(|error| Error::from(error.inside(table)))
}

#[cfg(test)]
mod tests {
    use super::{RunConfig, resolve};
    use crate::Sources;
    use occlude_data::Augment;

    fn with(set: &[&str]) -> RunConfig {
        let set = set.iter().map(|text| (*text).to_owned()).collect();
        resolve(&Sources { quickstart: true, set, ..Sources::default() }).unwrap()
    }

    fn refused(set: &[&str]) -> String {
        with(set).check(Some(1000)).unwrap_err().to_string()
    }

    #[test]
    fn refusals_carry_the_full_name() {
        for (set, start) in [
            ("method.mask.ratio=1.2", "method.mask.ratio = 1.2: must be between 0 and 1"),
            ("method.encoder.heads=3", "method.encoder.heads = 3: must divide"),
            ("method.clustering.prototypes=1", "method.clustering.prototypes = 1: must be at least 2"),
            ("method.optimizer.lr=-1", "method.optimizer.lr = -1"),
            ("train.batch=0", "train.batch = 0: must be at least 1"),
            ("train.accumulate=0", "train.accumulate = 0: must be between 1 and 65536"),
            ("train.precision=f16", "train.precision = f16: must be `f32`, `bf16` or `f32x3`"),
            ("train.batch=2000000", "train.batch = 2000000: must be between"),
            ("data.crop.flip=2", "data.crop.flip = 2: must be a probability"),
            ("data.views=moca", "data.views = 2 views: must be 1 view, which method.kind = capi takes: leave it out"),
            ("data.views=[]", "data.views = 0: must list between 1 and 16 views"),
            ("data.views=[{ blur = { sigma = [2, 1] } }]", "data.views.0.blur.sigma = 2: must be at least 0"),
            ("data.loader.queue=0", "data.loader.queue = 0"),
            ("data.source.holdout=1.5", "data.source.holdout = 1.5"),
            ("data.eval={ short_side = { resize = 8 } }", "data.eval.resize = 8: must be between"),
            ("probe.bank=1", "probe.bank = 1"),
            ("eval.knn.temperature=0", "eval.knn.temperature = 0"),
            ("device=abacus", "device = abacus: must be `cpu` or `cuda`"),
            ("threads=0", "threads = 0"),
        ] {
            let message = refused(&[set]);
            assert!(message.starts_with(start), "{set}: {message}");
            assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn views_are_a_name_or_tables() {
        let plain = with(&[]);
        assert_eq!(plain.check(Some(1000)).unwrap().views.count(), 1);
        // One view may have a recipe under any method that takes one.
        let one = with(&["data.views=[{ grey = 0.2, jitter = { probability = 0.8 } }]"]);
        assert_eq!(one.check(Some(1000)).unwrap().views.count(), 1);
        assert_ne!(one.identity(), plain.identity(), "they decide what is learned");
        let unread = |set: &str| {
            let set = vec![set.to_owned()];
            resolve(&Sources { quickstart: true, set, ..Sources::default() }).unwrap_err().to_string()
        };
        for (set, parts) in [
            ("data.views=mocca", ["data.views = mocca", "must be one of moca"]),
            ("data.views=[{ gray = 0.2 }]", ["data.views.0", "`gray`, expected"]),
            ("data.views=[{ blur = { sgima = [1, 2] } }]", ["data.views.0.blur", "`sgima`, expected"]),
            ("data.views=[{ solarise = { threshold = 256 } }]", ["data.views.0.solarise.threshold", "256"]),
            ("data.views=3", ["data.views", "the name of a set of views or a list of tables"]),
            (
                "data.crop.interpolation=nearest",
                ["data.crop.interpolation = nearest", "must be one of bilinear, bicubic"],
            ),
        ] {
            let message = unread(set);
            assert!(parts.iter().all(|part| message.contains(part)) && !message.contains('\n'), "{set}: {message}");
        }
    }

    #[test]
    fn a_method_of_two_views_is_not_given_one() {
        for (set, start) in [
            (vec!["method.kind=moca"], "data.views = 1 view, as where it is absent: must be 2 views"),
            (vec!["method.kind=moca", "data.views=[{ grey = 0.2 }]"], "data.views = 1 view: must be 2 views"),
        ] {
            let set = set.into_iter().map(str::to_owned).collect();
            let config = resolve(&Sources { set, ..Sources::default() }).unwrap();
            let message = config.check(Some(1000)).unwrap_err().to_string();
            assert!(message.starts_with(start) && message.contains("such as data.views = \"moca\""), "{message}");
        }
    }

    #[test]
    fn precision_is_a_setting_of_the_cpu() {
        with(&["train.precision=bf16"]).check(Some(1000)).unwrap();
        with(&["train.precision=f32", "device=cuda"]).check(Some(1000)).unwrap();
        let message = refused(&["train.precision=bf16", "device=cuda"]);
        assert_eq!(message, "train.precision = bf16: must be `f32` on this device");
    }

    #[test]
    fn more_prototypes_than_patches_cannot_be_reached() {
        let message = refused(&["method.clustering.prototypes=16001"]);
        assert!(message.contains("16000 patches of the 1000 training images"), "{message}");
        with(&["method.clustering.prototypes=16000"]).check(Some(1000)).unwrap();
    }

    #[test]
    fn a_method_without_clusters_needs_no_patches_for_them() {
        with(&["method.clustering.prototypes=16001", "method.loss=ijepa"]).check(Some(1000)).unwrap();
    }

    #[test]
    fn a_bank_holds_as_many_images_as_neighbours_vote() {
        let message = refused(&["eval.knn.neighbours=[1, 50]", "probe.bank=49"]);
        assert!(message.starts_with("probe.bank = 49: must be at least 50"), "{message}");
        assert!(refused(&["eval.bank=19"]).starts_with("eval.bank = 19: must be at least 20"));
        assert!(refused(&["eval.knn.neighbours=[1]", "eval.bank=9"]).starts_with("eval.bank = 9: must be at least 10"));
        with(&["eval.knn.neighbours=[1]", "eval.bank=10", "probe.bank=20"]).check(Some(1000)).unwrap();
    }

    #[test]
    fn lengths_in_epochs_are_found_wherever_they_stand() {
        assert!(!with(&[]).counts_epochs());
        let set = ["method.optimizer.warmup.epochs=2", "train.length.epochs=9", "train.checkpoint.every.epochs=1"];
        for set in set {
            assert!(with(&[set]).counts_epochs(), "{set}");
        }
    }

    #[test]
    fn a_preset_takes_the_place_of_the_quick_start() {
        let set = vec!["preset=capi-vit-s".into(), "seed=4".into()];
        let alone = resolve(&Sources { set, ..Sources::default() }).unwrap();
        assert_eq!(with(&["preset=capi-vit-s", "seed=4"]), alone);
    }

    #[test]
    fn a_config_survives_being_written() {
        let views = ["data.views=moca", "data.views=[{ grey = 0.2 }, { blur = { probability = 0.5 } }]"];
        for config in
            [RunConfig::default(), with(&["threads=3", "train.clip=1", "data.source.test=x", "preset=capi-vit-s"])]
                .into_iter()
                .chain(views.map(|views| with(&[views, "data.crop.interpolation=bilinear"])))
        {
            let text = config.to_toml().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.toml");
            std::fs::write(&path, &text).unwrap();
            let read = resolve(&Sources { file: Some(path), ..Sources::default() }).unwrap();
            assert_eq!(read, config, "{text}");
            assert_eq!(read.to_toml().unwrap(), text);
        }
    }

    #[test]
    fn what_may_change_is_no_part_of_the_identity() {
        let base = with(&[]).identity();
        assert!(base.contains_key("method.encoder.dim") && base.contains_key("seed"));
        let free = [
            "threads=3",
            "method.encoder.recompute=true",
            "data.loader.workers=7",
            "train.log_every=3",
            "probe.every.steps=5",
            "eval.batch=3",
        ];
        assert_eq!(with(&free).identity(), base);
        for changed in ["method.encoder.dim=256", "train.length.steps=601", "train.accumulate=2", "data.crop.flip=0.5"]
        {
            assert_ne!(with(&[changed]).identity(), base, "{changed}");
        }
    }
}
