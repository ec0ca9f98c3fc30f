//! Which images: the setting and the way from it to a data set.

use crate::cache::Cached;
use crate::draw::permutation;
use crate::layout::Layout;
use crate::part::Part;
use crate::readers::sorted_classes;
use crate::{Dataset, Error, Result, Synthetic};
use occlude_random::Streams;
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A half of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What is learned from; it is also the bank of k-NN and the training set of probes.
    Train,
    /// What is held out.
    Test,
}

/// The path of the drawn set.
const SYNTHETIC: &str = "synthetic";

/// Which images, as written in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// `synthetic`, or a path: a folder of images, a tar archive, a glob or a folder of archives, a CIFAR-10 or
    /// CIFAR-100 binary folder or file, an IDX folder or file. A folder that holds both splits (`train-*.tar` and
    /// `test.tar`, `train/` and `val/`) gives both. A folder named `synthetic` is written `./synthetic`.
    pub path: String,
    /// Where the test split lies, if `path` does not hold it. Not for `synthetic`, which has its own.
    pub test: Option<String>,
    /// Share of the images held out as the test split where there is no other; 0 for none.
    pub holdout: f64,
    /// Key of what is drawn here: the held-out share, the limits, the synthetic images. Apart from the seed of the run,
    /// so that runs of several seeds are judged on the same images.
    pub seed: u64,
    /// Use only the first so many training images of each class, in the order of the files; before `train_limit`. For sets
    /// with classes. Source: MOCA, loader of the public code (`subset`).
    pub train_per_class: Option<usize>,
    /// Use only this many training images, drawn at random; of `synthetic` this many are made.
    pub train_limit: Option<usize>,
    /// Use only this many test images, likewise.
    pub test_limit: Option<usize>,
    /// Decoded images of a split are kept in memory up to this many MiB.
    pub cache_mb: u64,
    /// Side in pixels of the synthetic images.
    pub synthetic_side: usize,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            path: SYNTHETIC.into(),
            test: None,
            holdout: 0.1,
            seed: 0,
            train_per_class: None,
            train_limit: None,
            test_limit: None,
            cache_mb: 1024,
            synthetic_side: Synthetic::SIDE,
        }
    }
}

impl SourceConfig {
    /// The checked setting. Whether the path leads anywhere shows when it is opened.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<Source, ConfigError> {
        let synthetic = self.path == SYNTHETIC;
        let not_empty = "must be a path or `synthetic`";
        require("path", &self.path, not_empty, |path| !path.trim().is_empty())?;
        if let Some(test) = &self.test {
            require("test", test, "must be a path", |path| !path.trim().is_empty())?;
            require("test", test, "must be absent: the synthetic set has its own test split", |_| !synthetic)?;
        }
        let allowed = "must be a share, at least 0 and below 1";
        require("holdout", self.holdout, allowed, |share| (0.0..1.0).contains(share))?;
        // Of stored images samples are counted in 32 bits; synthetic ones are as many as this says.
        let most = if synthetic { 10_000_000 } else { u32::MAX as usize };
        let allowed = format!("must be between 1 and {most}");
        let limits = [
            ("train_per_class", self.train_per_class),
            ("train_limit", self.train_limit),
            ("test_limit", self.test_limit),
        ];
        for (field, limit) in limits {
            require(field, limit.unwrap_or(1), &allowed, |limit| (1..=most).contains(limit))?;
        }
        if let Some(each) = self.train_per_class {
            let drawn = "must be absent: the synthetic set is drawn, see `train_limit`";
            require("train_per_class", each, drawn, |_| !synthetic)?;
        }
        Synthetic::new(0, Split::Train, 1)
            .with_side(self.synthetic_side)
            .map_err(|error| ConfigError { field: "synthetic_side".into(), ..error })?;
        Ok(Source { config: self.clone() })
    }
}

/// Which images, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    config: SourceConfig,
}

impl Source {
    /// The path as it was written, or `synthetic`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.config.path
    }

    /// Whether the images are drawn here, not read.
    #[must_use]
    pub fn is_synthetic(&self) -> bool {
        self.config.path == SYNTHETIC
    }

    fn limit(&self, split: Split) -> Option<usize> {
        match split {
            Split::Train => self.config.train_limit,
            Split::Test => self.config.test_limit,
        }
    }
}

/// A training split and, where something is held out, a test split.
pub type Both = (Arc<dyn Dataset>, Option<Arc<dyn Dataset>>);

/// Opens one split. Both splits of a source have the same list of classes.
///
/// # Errors
/// Nothing at the path, no image inside, files that are cut short or of an unknown kind, no test split.
pub fn open(source: &Source, split: Split) -> Result<Arc<dyn Dataset>> {
    let (train, test) = both(source)?;
    let chosen = match split {
        Split::Train => train,
        Split::Test => test.ok_or_else(|| Error::NoTestSplit { path: PathBuf::from(source.path()) })?,
    };
    finished(source, split, chosen)
}

/// Opens both splits, looking through the files once; no test split where nothing is held out.
///
/// # Errors
/// As [`open`], but for a missing test split.
pub fn open_both(source: &Source) -> Result<Both> {
    let (train, test) = both(source)?;
    let test = test.map(|test| finished(source, Split::Test, test)).transpose()?;
    Ok((finished(source, Split::Train, train)?, test))
}

/// A split within its limit and behind its cache.
fn finished(source: &Source, split: Split, whole: Arc<dyn Dataset>) -> Result<Arc<dyn Dataset>> {
    let limited = match (source.is_synthetic(), split) {
        (true, _) => whole,
        (false, Split::Test) => limit(source, split, whole),
        (false, Split::Train) => limit(source, split, first_of_classes(source, whole)?),
    };
    let what = if split == Split::Train { "train" } else { "test" };
    tracing::info!("{}: {} {what} images, {} classes", source.path(), limited.len(), limited.classes().len());
    let budget = source.config.cache_mb.saturating_mul(1 << 20);
    Ok(if budget > 0 { Arc::new(Cached::new(limited, budget)) } else { limited })
}

fn both(source: &Source) -> Result<Both> {
    if source.is_synthetic() {
        return Ok((synthetic(source, Split::Train)?, Some(synthetic(source, Split::Test)?)));
    }
    let layout = Layout::find(Path::new(source.path()))?;
    let test = match &source.config.test {
        // The place of the test split may itself hold both splits: then its test split is meant.
        Some(path) => Layout::find(Path::new(path)).map(|layout| Some(layout.test.unwrap_or(layout.train)))?,
        None => layout.test,
    };
    let train = layout.train.open()?;
    let Some(test) = test else { return held_out(source, train) };
    let test = test.open()?;
    let classes = shared_classes(train.classes(), test.classes());
    let part = |split| -> Arc<dyn Dataset> { Arc::new(Part::new(split, None, classes.clone())) };
    Ok((part(train), Some(part(test))))
}

fn synthetic(source: &Source, split: Split) -> Result<Arc<dyn Dataset>> {
    let all = match split {
        Split::Train => Synthetic::TRAIN,
        Split::Test => Synthetic::TEST,
    };
    // The set has no end: a limit above the usual length draws more.
    let drawn = Synthetic::new(source.config.seed, split, source.limit(split).unwrap_or(all));
    let drawn = drawn.with_side(source.config.synthetic_side);
    Ok(Arc::new(drawn.map_err(|e| Error::Unrecognised { path: source.path().into(), reason: e.to_string() })?))
}

/// The classes of both splits: a class that is missing from one must not shift the labels of the other.
fn shared_classes(train: &[String], test: &[String]) -> Vec<String> {
    telling(if train == test { train.to_vec() } else { sorted_classes(train.iter().chain(test)) })
}

/// One class says nothing: a set whose images lie in a single folder has none.
fn telling(classes: Vec<String>) -> Vec<String> {
    if classes.len() < 2 { Vec::new() } else { classes }
}

/// Splits a set that has no test split of its own: stream `holdout`.
fn held_out(source: &Source, all: Arc<dyn Dataset>) -> Result<Both> {
    let count = indexable(source, all.len())?;
    let share = source.config.holdout;
    // At least one image on either side, else a small set would lose a split without a word.
    let wanted = if share > 0.0 { ((f64::from(count) * share).round() as usize).max(1) } else { 0 };
    let order = permutation(&mut Streams::new(source.config.seed).stream("holdout", 0, 0), count);
    let (test, train) = order.split_at(wanted.min(all.len().saturating_sub(1)));
    let classes = telling(all.classes().to_vec());
    let part = |kept: &[u32]| -> Arc<dyn Dataset> {
        let mut kept = kept.to_vec();
        kept.sort_unstable();
        Arc::new(Part::new(Arc::clone(&all), Some(kept), classes.clone()))
    };
    Ok((part(train), (!test.is_empty()).then(|| part(test))))
}

/// The first images of each class, if so many are asked for.
fn first_of_classes(source: &Source, all: Arc<dyn Dataset>) -> Result<Arc<dyn Dataset>> {
    let Some(each) = source.config.train_per_class else { return Ok(all) };
    let classes = all.classes().to_vec();
    if classes.is_empty() {
        let reason = "`train_per_class` chooses by class, and these images have none".to_owned();
        return Err(Error::Unrecognised { path: source.path().into(), reason });
    }
    let mut taken = vec![0; classes.len()];
    let kept = (0..indexable(source, all.len())?).filter(|&index| {
        let Some(class) = all.label(index as usize) else { return false };
        let taken = &mut taken[class as usize];
        *taken += 1;
        *taken <= each
    });
    let kept = kept.collect();
    Ok(Arc::new(Part::new(all, Some(kept), classes)))
}

/// Some images of a larger set: streams `limit/train` and `limit/test`.
fn limit(source: &Source, split: Split, all: Arc<dyn Dataset>) -> Arc<dyn Dataset> {
    let Some(limit) = source.limit(split).filter(|&limit| limit < all.len()) else { return all };
    let purpose = if split == Split::Train { "limit/train" } else { "limit/test" };
    let mut kept = permutation(&mut Streams::new(source.config.seed).stream(purpose, 0, 0), all.len() as u32);
    kept.truncate(limit);
    kept.sort_unstable();
    let classes = all.classes().to_vec();
    Arc::new(Part::new(all, Some(kept), classes))
}

/// Samples are counted in 32 bits.
fn indexable(source: &Source, count: usize) -> Result<u32> {
    let limit = u64::from(u32::MAX);
    u32::try_from(count).map_err(|_| Error::TooLarge {
        name: source.path().to_owned(),
        what: "number of images",
        found: count as u64,
        limit,
    })
}
