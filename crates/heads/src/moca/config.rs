//! Settings of generator and decoder: as written, and checked.

use occlude_masking::Grid;
use occlude_settings::{ConfigError, require};
use occlude_vit::{PositionKind, check_depth, check_heads, check_width};
use serde::{Deserialize, Serialize};

/// A generator of prototypes as written in a file. Defaults are MOCA's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorConfig {
    /// Hidden units over the width of the words.
    pub hidden_ratio: f64,
    /// Inverse temperature of the predictions.
    pub kappa: f64,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self { hidden_ratio: 2.0, kappa: 3.0 }
    }
}

/// A checked generator for words of one width.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSettings {
    pub(super) dim: usize,
    pub(super) hidden: usize,
    pub(super) kappa: f64,
}

impl GeneratorConfig {
    /// Checks the settings for words of width `dim`.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, dim: usize) -> Result<GeneratorSettings, ConfigError> {
        check_width("dim", dim)?;
        let allowed = format!("must be positive, at most 64, and give at least one unit over dim = {dim}");
        let hidden = (dim as f64 * self.hidden_ratio) as usize;
        require("hidden_ratio", self.hidden_ratio, &allowed, |r| *r > 0.0 && *r <= 64.0 && hidden >= 1)?;
        let kappa = require("kappa", self.kappa, "must be positive", |k| *k > 0.0 && k.is_finite())?;
        Ok(GeneratorSettings { dim, hidden, kappa })
    }
}

/// What a decoder reads of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoderInput {
    /// Patch tokens of an intermediate block, normed, behind the global token: what the decoder needs to know of the
    /// image must pass through the latter.
    Condenser,
    /// As the condenser, of the last block: the tokens pass two norms.
    LastLayer,
    /// Patch tokens of the last block as they are, behind the output of the class token.
    Plain,
}

/// A decoder as written in a file. Defaults are MOCA's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderConfig {
    /// `condenser`, `last_layer` or `plain`.
    pub input: DecoderInput,
    /// Width.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self { input: DecoderInput::Condenser, dim: 512, depth: 2, heads: 16 }
    }
}

/// A checked decoder on an encoder of one width and grid.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSettings {
    pub(super) input: DecoderInput,
    pub(super) dim: usize,
    pub(super) depth: usize,
    pub(super) heads: usize,
    pub(super) encoder: usize,
    pub(super) grid: Grid,
    pub(super) recompute: bool,
}

impl DecoderConfig {
    /// Checks the settings for an encoder of width `encoder` on `grid`, which says whether blocks compute their activations
    /// again in the backward pass.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, encoder: usize, grid: Grid, recompute: bool) -> Result<DecoderSettings, ConfigError> {
        let Self { input, dim, depth, heads } = *self;
        check_heads(dim, heads, PositionKind::Learnable)?; // Positions are added to tokens: any size of a head will do.
        require("dim", dim, "must be a multiple of 4, for the table of positions", |d| d.is_multiple_of(4))?;
        check_depth(depth)?;
        Ok(DecoderSettings { input, dim, depth, heads, encoder, grid, recompute })
    }
}

impl DecoderSettings {
    /// Width of the decoder's tokens.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What the decoder reads.
    #[must_use]
    pub fn input(&self) -> DecoderInput {
        self.input
    }
}

#[cfg(test)]
mod tests {
    use super::{DecoderConfig, GeneratorConfig};
    use occlude_masking::Grid;

    #[test]
    fn each_refusal_names_its_field() {
        let decoder = |config: DecoderConfig| config.check(768, Grid::new(14, 14), false).unwrap_err().to_string();
        assert!(DecoderConfig::default().check(768, Grid::new(14, 14), false).is_ok());
        assert!(decoder(DecoderConfig { heads: 3, ..DecoderConfig::default() }).starts_with("heads = 3: must divide"));
        assert!(
            decoder(DecoderConfig { dim: 6, heads: 2, ..DecoderConfig::default() }).starts_with("dim = 6: must be a")
        );
        assert!(decoder(DecoderConfig { dim: 0, ..DecoderConfig::default() }).starts_with("dim = 0"));
        assert!(decoder(DecoderConfig { depth: 0, ..DecoderConfig::default() }).starts_with("depth = 0"));
        let generator =
            |hidden_ratio, kappa| GeneratorConfig { hidden_ratio, kappa }.check(48).unwrap_err().to_string();
        assert!(generator(f64::NAN, 3.0).starts_with("hidden_ratio = NaN"));
        assert!(generator(0.01, 3.0).contains("at least one unit over dim = 48"));
        assert!(generator(2.0, 0.0).starts_with("kappa = 0: must be positive"));
        assert!(GeneratorConfig::default().check(0).unwrap_err().to_string().starts_with("dim = 0"));
    }
}
