//! Which method, with which settings.

use crate::capi::{Capi, CapiConfig, CapiSettings, LossKind};
use crate::{BatchSize, Method};
use candle_core::{DType, Device};
use occlude_kernels::Result;
use occlude_masking::{Grid, Masker};
use occlude_random::Streams;
use occlude_settings::{ConfigError, Ruler};
use serde::{Deserialize, Serialize};

/// A method and its settings as written in a file: `kind = "capi"` and the keys of that method beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MethodConfig {
    /// Cluster and predict latent patches.
    Capi(Box<CapiConfig>),
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
        }
    }

    /// How many clusters are learned; `None` where the method predicts something else.
    #[must_use]
    pub fn prototypes(&self) -> Option<usize> {
        match self {
            Self::Capi(config) => (config.loss != LossKind::Ijepa).then_some(config.clustering.prototypes),
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
        }
    }
}

/// A checked method.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckedMethod {
    /// As [`MethodConfig::Capi`].
    Capi(Box<CapiSettings>),
}

impl CheckedMethod {
    /// The method with freshly drawn parameters.
    ///
    /// # Errors
    /// A device that refuses an allocation.
    pub fn build(&self, streams: Streams, dtype: DType, device: &Device) -> Result<Box<dyn Method>> {
        match self {
            Self::Capi(settings) => Ok(Box::new(Capi::new(settings, streams, dtype, device)?)),
        }
    }

    /// Side of a patch in pixels.
    #[must_use]
    pub fn patch_size(&self) -> usize {
        match self {
            Self::Capi(settings) => settings.encoder().patch(),
        }
    }

    /// Patches of an image.
    #[must_use]
    pub fn grid(&self) -> Grid {
        match self {
            Self::Capi(settings) => settings.encoder().grid(),
        }
    }

    /// Which patches are hidden.
    #[must_use]
    pub fn masker(&self) -> &Masker {
        match self {
            Self::Capi(settings) => settings.masker(),
        }
    }

    /// Hidden patches of an image that are predicted.
    #[must_use]
    pub fn predicted(&self) -> usize {
        match self {
            Self::Capi(settings) => settings.predicted(),
        }
    }
}
