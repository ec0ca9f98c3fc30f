//! Which method, with which settings.

use crate::capi::{Capi, CapiConfig, CapiSettings, LossKind};
use crate::mae::{Mae, MaeConfig, MaeSettings};
use crate::moca::{Moca, MocaConfig, MocaSettings};
use crate::randsac::{Randsac, RandsacConfig, RandsacSettings};
use crate::{BatchSize, Method};
use candle_core::{DType, Device};
use occlude_kernels::{Error, Result};
use occlude_masking::{BatchMask, Grid, Round, Segmenter};
use occlude_random::{Stream, Streams};
use occlude_settings::{ConfigError, Ruler};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// A method and its settings as written in a file: `kind = "capi"` and the keys of that method beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MethodConfig {
    /// Cluster and predict latent patches.
    Capi(Box<CapiConfig>),
    /// Predict masked online codebook assignments.
    Moca(Box<MocaConfig>),
    /// Random segments with autoregressive coding.
    Randsac(Box<RandsacConfig>),
    /// Masked autoencoder.
    Mae(Box<MaeConfig>),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::Capi(Box::default())
    }
}

impl MethodConfig {
    /// Short name of the method, as in the file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Capi(_) => "capi",
            Self::Moca(_) => "moca",
            Self::Randsac(_) => "randsac",
            Self::Mae(_) => "mae",
        }
    }

    /// The method and its model in a few words, for the head of a report.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Capi(config) => format!(
                "CAPI: an encoder of {} blocks, {} wide, patches of {} pixels, {:.0} % hidden",
                config.encoder.depth,
                config.encoder.dim,
                config.encoder.patch,
                100.0 * config.mask.ratio
            ),
            Self::Moca(config) => {
                let hidden = config.masking.rounds.iter().map(|round| format!("{:.0} %", 100.0 * round.mask));
                format!(
                    "MOCA: an encoder of {} blocks, {} wide, patches of {} pixels, {} hidden",
                    config.encoder.depth,
                    config.encoder.dim,
                    config.encoder.patch,
                    hidden.collect::<Vec<_>>().join(" and ")
                )
            }
            Self::Randsac(config) => format!(
                "RandSAC ({}): an encoder of {} blocks, {} wide, patches of {} pixels, segments: {}",
                config.architecture.name(),
                config.encoder.depth,
                config.encoder.dim,
                config.encoder.patch,
                config.segments.describe()
            ),
            Self::Mae(config) => format!(
                "MAE: an encoder of {} blocks, {} wide, patches of {} pixels, {:.0} % hidden",
                config.encoder.depth,
                config.encoder.dim,
                config.encoder.patch,
                100.0 * config.mask
            ),
        }
    }

    /// Among how many classes a target is spread: clusters, or words; `None` where targets are something else.
    #[must_use]
    pub fn classes(&self) -> Option<usize> {
        match self {
            Self::Capi(config) => (config.loss != LossKind::Ijepa).then_some(config.clustering.prototypes),
            Self::Moca(config) => Some(config.codebook.words),
            Self::Randsac(_) | Self::Mae(_) => None,
        }
    }

    /// How many views of an image a step takes.
    #[must_use]
    pub fn views(&self) -> usize {
        match self {
            Self::Capi(_) | Self::Randsac(_) | Self::Mae(_) => 1,
            Self::Moca(_) => 2,
        }
    }

    /// Checks the settings for square images of `image_size` pixels, steps of `batch` images and a run as long as `ruler`
    /// says.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, image_size: usize, batch: BatchSize, ruler: Ruler) -> Result<CheckedMethod, ConfigError> {
        match self {
            Self::Capi(config) => Ok(CheckedMethod::Capi(Box::new(config.check(image_size, batch.micro, ruler)?))),
            Self::Moca(config) => Ok(CheckedMethod::Moca(Box::new(config.check(image_size, batch, ruler)?))),
            Self::Randsac(config) => Ok(CheckedMethod::Randsac(Box::new(config.check(image_size, batch, ruler)?))),
            Self::Mae(config) => Ok(CheckedMethod::Mae(Box::new(config.check(image_size, batch, ruler)?))),
        }
    }
}

/// A checked method.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckedMethod {
    /// As [`MethodConfig::Capi`].
    Capi(Box<CapiSettings>),
    /// As [`MethodConfig::Moca`].
    Moca(Box<MocaSettings>),
    /// As [`MethodConfig::Randsac`].
    Randsac(Box<RandsacSettings>),
    /// As [`MethodConfig::Mae`].
    Mae(Box<MaeSettings>),
}

/// The mask of one image, for a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownMask {
    /// For each patch of the grid whether it is hidden from the student.
    pub hidden: Vec<bool>,
    /// Hidden patches that are predicted.
    pub predicted: Vec<usize>,
}

impl CheckedMethod {
    /// The method with freshly drawn parameters.
    ///
    /// # Errors
    /// A device that refuses an allocation.
    pub fn build(&self, streams: Streams, dtype: DType, device: &Device) -> Result<Box<dyn Method>> {
        match self {
            Self::Capi(settings) => Ok(Box::new(Capi::new(settings, streams, dtype, device)?)),
            Self::Moca(settings) => Ok(Box::new(Moca::new(settings, streams, dtype, device)?)),
            Self::Randsac(settings) => Ok(Box::new(Randsac::new(settings, streams, dtype, device)?)),
            Self::Mae(settings) => Ok(Box::new(Mae::new(settings, streams, dtype, device)?)),
        }
    }

    /// Side of a patch in pixels.
    #[must_use]
    pub fn patch_size(&self) -> usize {
        match self {
            Self::Capi(settings) => settings.encoder().patch(),
            Self::Moca(settings) => settings.encoder().patch(),
            Self::Randsac(settings) => settings.encoder().patch(),
            Self::Mae(settings) => settings.encoder().patch(),
        }
    }

    /// Whether there is a teacher beside the network that is trained.
    #[must_use]
    pub fn has_teacher(&self) -> bool {
        match self {
            Self::Capi(_) | Self::Moca(_) => true,
            Self::Randsac(_) | Self::Mae(_) => false,
        }
    }

    /// Patches of an image.
    #[must_use]
    pub fn grid(&self) -> Grid {
        match self {
            Self::Capi(settings) => settings.encoder().grid(),
            Self::Moca(settings) => settings.encoder().grid(),
            Self::Randsac(settings) => settings.encoder().grid(),
            Self::Mae(settings) => settings.encoder().grid(),
        }
    }

    /// What the ranks of a picture's patches ([`Painted`](crate::Painted)) say, in a few words.
    #[must_use]
    pub fn says_of(&self, ranks: &[u32]) -> String {
        let segments = ranks.iter().max().map_or(0, |last| last + 1);
        match self {
            Self::Mae(_) => {
                format!("{} of {} patches hidden", ranks.iter().filter(|rank| **rank > 0).count(), ranks.len())
            }
            Self::Randsac(_) | Self::Capi(_) | Self::Moca(_) => format!("{segments} segments; the first sees itself"),
        }
    }

    /// Masks as the student gets them, one an image; where there are several rounds, those of the first; where segments come
    /// one after the other, before one in the middle of them. `stream(image)` is called once for each, in order.
    ///
    /// # Errors
    /// More patches than can be counted.
    pub fn masks(&self, images: usize, stream: impl FnMut(usize) -> Stream) -> Result<Vec<ShownMask>> {
        let count = self.grid().count();
        let (visible, predicted) = match self {
            Self::Capi(settings) => {
                let batch = BatchMask::draw(settings.masker(), self.grid(), images, settings.predicted(), stream);
                let batch = batch.map_err(|error| Error::argument("masks", error.to_string()))?;
                (batch.visible, batch.predict)
            }
            Self::Moca(settings) => first_round(settings.rounds().draw(images, stream)),
            Self::Mae(settings) => first_round(settings.rounds().draw(images, stream)),
            Self::Randsac(settings) => segments(settings.segmenter(), images, stream),
        };
        let mut masks = vec![ShownMask { hidden: vec![true; count], predicted: Vec::new() }; images];
        for (image, patch) in visible.iter().map(|at| (*at as usize / count, *at as usize % count)) {
            masks[image].hidden[patch] = false;
        }
        for (image, patch) in predicted.iter().map(|at| (*at as usize / count, *at as usize % count)) {
            masks[image].predicted.push(patch);
        }
        Ok(masks)
    }
}

/// Flat indices of what is visible, and of what is predicted.
type Lists = (Vec<u32>, Vec<u32>);

fn first_round(rounds: Vec<Round>) -> Lists {
    rounds.first().map(|round| (round.visible(), round.masked())).unwrap_or_default()
}

/// The segments before the middle one, and that one.
fn segments(segmenter: &Segmenter, images: usize, mut stream: impl FnMut(usize) -> Stream) -> Lists {
    let (mut visible, mut predicted) = (Vec::new(), Vec::new());
    for image in 0..images {
        let drawn = segmenter.draw(&mut stream(image));
        let middle = drawn.count() as u32 / 2;
        for (patch, rank) in (image * segmenter.grid().count()..).zip(drawn.ranks()) {
            match rank.cmp(&middle) {
                Ordering::Less => visible.push(patch as u32),
                Ordering::Equal => predicted.push(patch as u32),
                Ordering::Greater => {}
            }
        }
    }
    (visible, predicted)
}
