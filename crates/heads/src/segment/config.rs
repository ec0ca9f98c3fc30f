//! Settings of the decoder: as written, and checked.

use occlude_masking::Grid;
use occlude_settings::{ConfigError, require};
use occlude_vit::{PlainVitSettings, PositionKind, check_depth, check_heads};
use serde::{Deserialize, Serialize};

/// Units of the MLP of a layer over the width.
const MLP_RATIO: usize = 4;

/// What the skip connections begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipInit {
    /// Every layer reads the encoder's last block: training begins without skips.
    #[default]
    Last,
    /// Every layer reads the mean of all blocks.
    Uniform,
}

/// A decoder of segments as written in a file. Defaults are RandSAC's on ImageNet-1k.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentDecoderConfig {
    /// Width.
    pub dim: usize,
    /// Layers.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
}

impl Default for SegmentDecoderConfig {
    fn default() -> Self {
        Self { dim: 512, depth: 4, heads: 16 }
    }
}

/// A checked decoder on one encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentDecoderSettings {
    pub(super) dim: usize,
    pub(super) depth: usize,
    pub(super) heads: usize,
    pub(super) hidden: usize,
    pub(super) skips: Option<SkipInit>,
    pub(super) encoder: usize,
    pub(super) blocks: usize,
    pub(super) patch: usize,
    pub(super) grid: Grid,
    pub(super) recompute: bool,
}

impl SegmentDecoderConfig {
    /// Checks the settings for `encoder`; with `skips` every layer reads a mixture of all its blocks.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(
        &self,
        encoder: &PlainVitSettings,
        skips: Option<SkipInit>,
    ) -> Result<SegmentDecoderSettings, ConfigError> {
        let Self { dim, depth, heads } = *self;
        check_heads(dim, heads, PositionKind::Learnable)?; // Positions are the tokens: any size of a head will do.
        require("dim", dim, "must be a multiple of 4, for the table of positions", |d| d.is_multiple_of(4))?;
        check_depth(depth)?;
        Ok(SegmentDecoderSettings {
            dim,
            depth,
            heads,
            hidden: MLP_RATIO * dim,
            skips,
            encoder: encoder.dim(),
            blocks: encoder.depth(),
            patch: encoder.patch(),
            grid: encoder.grid(),
            recompute: encoder.recompute(),
        })
    }
}

impl SegmentDecoderSettings {
    /// Whether every layer reads a mixture of all blocks of the encoder.
    #[must_use]
    pub fn has_skips(&self) -> bool {
        self.skips.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::SegmentDecoderConfig;
    use occlude_vit::PlainVitConfig;

    #[test]
    fn each_refusal_names_its_field() {
        let encoder = PlainVitConfig::default().check(224).unwrap().patches_only();
        let check = |config: SegmentDecoderConfig| config.check(&encoder, None);
        assert!(check(SegmentDecoderConfig::default()).is_ok());
        let refused = |config| check(config).unwrap_err().to_string();
        let default = SegmentDecoderConfig::default;
        assert!(refused(SegmentDecoderConfig { heads: 3, ..default() }).starts_with("heads = 3: must divide"));
        assert!(refused(SegmentDecoderConfig { dim: 6, heads: 2, ..default() }).starts_with("dim = 6: must be a"));
        assert!(refused(SegmentDecoderConfig { depth: 0, ..default() }).starts_with("depth = 0"));
    }
}
