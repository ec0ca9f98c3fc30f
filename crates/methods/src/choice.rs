//! Which method, with which settings.

use crate::Method;
use crate::capi::{Capi, CapiConfig, CapiSettings};
use candle_core::{DType, Device};
use occlude_kernels::Result;
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

    /// Checks the settings for square images of `image_size` pixels, batches of `batch` images and `total_steps` steps,
    /// of which `ruler` knows how many make an epoch.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(
        &self,
        image_size: usize,
        batch: usize,
        total_steps: u64,
        ruler: Ruler,
    ) -> Result<CheckedMethod, ConfigError> {
        let ruler = Ruler { total_steps, ..ruler };
        match self {
            Self::Capi(config) => Ok(CheckedMethod::Capi(Box::new(config.check(image_size, batch, ruler)?))),
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
}
