//! Settings of RandSAC: as written in a file, and checked.

use crate::BatchSize;
use crate::recipe::{AdamWConfig, AdamWRecipe};
use occlude_heads::{SegmentDecoderConfig, SegmentDecoderSettings, SkipInit};
use occlude_masking::{Segmenter, SegmenterConfig};
use occlude_settings::{ConfigError, Ruler};
use occlude_vit::{PlainVitConfig, PlainVitSettings};
use serde::{Deserialize, Serialize};

/// What makes predictions of encoded segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// A decoder that reads the last block of the encoder.
    Plain,
    /// A decoder whose layers each read a trained mixture of all blocks.
    Skip,
    /// No decoder: a second stream through the encoder's own weights.
    TwoStream,
}

impl Architecture {
    /// As in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Skip => "skip",
            Self::TwoStream => "two_stream",
        }
    }
}

/// RandSAC as written in a file. Defaults are those of the paper's ImageNet-1k model, with two levels of blobs in place of
/// three.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandsacConfig {
    /// `plain`, `skip` or `two_stream`.
    pub architecture: Architecture,
    /// Whether the pixels of each patch are standardised before they are compared with the prediction.
    pub norm_pix: bool,
    /// Whether the first segment counts: it sees itself, so its task is to copy.
    pub loss_on_first: bool,
    /// What skip connections begin with: `last` or `uniform`. `skip` only.
    pub skip_init: SkipInit,
    /// The encoder. It has no class token.
    pub encoder: PlainVitConfig,
    /// The segments of an image and their order.
    pub segments: SegmenterConfig,
    /// The decoder; not of `two_stream`.
    pub decoder: SegmentDecoderConfig,
    /// The optimizer.
    pub optimizer: AdamWConfig,
}

impl Default for RandsacConfig {
    fn default() -> Self {
        Self {
            architecture: Architecture::Skip,
            norm_pix: true,
            loss_on_first: true,
            skip_init: SkipInit::Last,
            encoder: PlainVitConfig::default(),
            segments: SegmenterConfig::default(),
            decoder: SegmentDecoderConfig::default(),
            optimizer: AdamWConfig::default(),
        }
    }
}

/// Checked RandSAC for one image size, batch size and length of run.
#[derive(Clone, Debug, PartialEq)]
pub struct RandsacSettings {
    pub(super) norm_pix: bool,
    pub(super) loss_on_first: bool,
    pub(super) encoder: PlainVitSettings,
    pub(super) segmenter: Segmenter,
    /// None with two streams.
    pub(super) decoder: Option<SegmentDecoderSettings>,
    pub(super) recipe: AdamWRecipe,
}

impl RandsacSettings {
    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &PlainVitSettings {
        &self.encoder
    }

    /// What draws the segments of an image.
    #[must_use]
    pub fn segmenter(&self) -> &Segmenter {
        &self.segmenter
    }
}

impl RandsacConfig {
    /// Checks the settings for square images of `image_size` pixels, steps of `batch` images and a run as long as `ruler`
    /// says.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, image_size: usize, batch: BatchSize, ruler: Ruler) -> Result<RandsacSettings, ConfigError> {
        let encoder = self.encoder.check(image_size).map_err(|e| e.inside("encoder"))?.patches_only();
        let skips = (self.architecture == Architecture::Skip).then_some(self.skip_init);
        let decoder = self.decoder.check(&encoder, skips).map_err(|e| e.inside("decoder"))?;
        Ok(RandsacSettings {
            norm_pix: self.norm_pix,
            loss_on_first: self.loss_on_first,
            segmenter: self.segments.check(encoder.grid()).map_err(|e| e.inside("segments"))?,
            decoder: (self.architecture != Architecture::TwoStream).then_some(decoder),
            recipe: self.optimizer.check(batch, ruler).map_err(|e| e.inside("optimizer"))?,
            encoder,
        })
    }
}
