//! Settings of the masked autoencoder: as written in a file, and checked.

use crate::recipe::{AdamWConfig, AdamWRecipe};
use crate::{BatchSize, GlobalToken};
use occlude_heads::{DecoderConfig, DecoderInput, DecoderSettings};
use occlude_masking::{RoundConfig, Rounds, RoundsConfig};
use occlude_settings::{ConfigError, Ruler, require};
use occlude_vit::{PlainVitConfig, PlainVitSettings};
use serde::{Deserialize, Serialize};

/// A decoder as written in a file. Defaults are those of the published one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaeDecoderConfig {
    /// Width.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
}

impl Default for MaeDecoderConfig {
    fn default() -> Self {
        Self { dim: 512, depth: 8, heads: 16 }
    }
}

/// A masked autoencoder as written in a file. Defaults are those of the published ViT-B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaeConfig {
    /// Share of the patches that is hidden.
    pub mask: f64,
    /// Whether the pixels of each patch are standardised before they are compared with the prediction.
    pub norm_pix: bool,
    /// What stands for an image as its feature: `avg` or `cls`.
    pub global_token: GlobalToken,
    /// The encoder.
    pub encoder: PlainVitConfig,
    /// The decoder.
    pub decoder: MaeDecoderConfig,
    /// The optimizer.
    pub optimizer: AdamWConfig,
}

impl Default for MaeConfig {
    fn default() -> Self {
        Self {
            mask: 0.75,
            norm_pix: true,
            global_token: GlobalToken::Avg,
            encoder: PlainVitConfig::default(),
            decoder: MaeDecoderConfig::default(),
            optimizer: AdamWConfig::default(),
        }
    }
}

/// A checked masked autoencoder for one image size, batch size and length of run.
#[derive(Clone, Debug, PartialEq)]
pub struct MaeSettings {
    pub(super) norm_pix: bool,
    pub(super) global_token: GlobalToken,
    pub(super) encoder: PlainVitSettings,
    pub(super) rounds: Rounds,
    pub(super) decoder: DecoderSettings,
    pub(super) recipe: AdamWRecipe,
}

impl MaeSettings {
    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &PlainVitSettings {
        &self.encoder
    }

    /// What the encoder sees: one round, of which everything is decoded.
    #[must_use]
    pub fn rounds(&self) -> &Rounds {
        &self.rounds
    }
}

impl MaeConfig {
    /// Checks the settings for square images of `image_size` pixels, steps of `batch` images and a run as long as `ruler`
    /// says.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, image_size: usize, batch: BatchSize, ruler: Ruler) -> Result<MaeSettings, ConfigError> {
        let encoder = self.encoder.check(image_size).map_err(|e| e.inside("encoder"))?;
        let (grid, MaeDecoderConfig { dim, depth, heads }) = (encoder.grid(), self.decoder.clone());
        let decoder = DecoderConfig { input: DecoderInput::Plain, dim, depth, heads };
        let decoder = decoder.check(encoder.dim(), grid, encoder.recompute()).map_err(|e| e.inside("decoder"))?;
        let allowed = format!("must be above 0, below 1, and show and hide some of {} patches", grid.count());
        let round = RoundConfig { mask: self.mask, decode_mask: 0.0 };
        let rounds = RoundsConfig { rounds: vec![round], complementary: false }.check(grid);
        require("mask", self.mask, &allowed, |_| rounds.is_ok())?;
        Ok(MaeSettings {
            norm_pix: self.norm_pix,
            global_token: self.global_token,
            rounds: rounds?,
            decoder,
            recipe: self.optimizer.check(batch, ruler).map_err(|e| e.inside("optimizer"))?,
            encoder,
        })
    }
}
