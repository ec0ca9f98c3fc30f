//! Settings of a plain encoder: as written, and checked.

use crate::config::check_mlp_ratio;
use crate::{BlockShape, PositionKind, check_depth, check_heads};
use occlude_masking::Grid;
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// A plain encoder as written in a file. Defaults are ViT-B/16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlainVitConfig {
    /// Width of the tokens.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Units of the MLP over `dim`.
    pub mlp_ratio: f64,
    /// Keep only the input of every block and compute the rest again in the backward pass: less memory, more time, the same
    /// bits.
    pub recompute: bool,
}

impl Default for PlainVitConfig {
    fn default() -> Self {
        Self { dim: 768, depth: 12, heads: 12, patch: 16, mlp_ratio: 4.0, recompute: false }
    }
}

/// A checked plain encoder for images of one size (others can be evaluated).
#[derive(Clone, Debug, PartialEq)]
pub struct PlainVitSettings {
    pub(super) dim: usize,
    pub(super) depth: usize,
    pub(super) patch: usize,
    pub(super) grid: Grid,
    pub(super) class: bool,
    heads: usize,
    hidden: usize,
    recompute: bool,
}

impl PlainVitConfig {
    /// Checks the settings for square images of `image` pixels a side.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, image: usize) -> Result<PlainVitSettings, ConfigError> {
        let Self { dim, depth, heads, patch, mlp_ratio, recompute } = *self;
        check_heads(dim, heads, PositionKind::Learnable)?; // Positions are added to tokens: any size of a head will do.
        require("dim", dim, "must be a multiple of 4, for the table of positions", |d| d.is_multiple_of(4))?;
        check_depth(depth)?;
        require("patch", patch, &format!("must divide the image size {image}"), |p| {
            *p >= 1 && image >= *p && image.is_multiple_of(*p)
        })?;
        let hidden = check_mlp_ratio(mlp_ratio, dim)?;
        let grid = Grid::new(image / patch, image / patch);
        Ok(PlainVitSettings { dim, depth, patch, grid, class: true, heads, hidden, recompute })
    }
}

impl PlainVitSettings {
    /// The same encoder without a class token, its patch embedding beginning with biases of 0: RandSAC's.
    #[must_use]
    pub fn patches_only(self) -> Self {
        Self { class: false, ..self }
    }

    /// Width of the tokens.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Blocks.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Side of a patch in pixels.
    #[must_use]
    pub fn patch(&self) -> usize {
        self.patch
    }

    /// The patch grid of training images.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Whether blocks compute their activations again in the backward pass.
    #[must_use]
    pub fn recompute(&self) -> bool {
        self.recompute
    }

    /// The shape of its blocks.
    #[must_use]
    pub fn block_shape(&self) -> BlockShape {
        let Self { dim, heads, hidden, recompute, .. } = *self;
        BlockShape { dim, context: dim, heads, hidden, encoded: false, recompute }
    }
}

#[cfg(test)]
mod tests {
    use super::PlainVitConfig;

    #[test]
    fn each_refusal_names_its_field() {
        let settings = PlainVitConfig::default().check(224).unwrap();
        assert_eq!((settings.grid().count(), settings.block_shape().hidden), (196, 3072));
        let refused = |change: fn(&mut PlainVitConfig)| {
            let mut config = PlainVitConfig::default();
            change(&mut config);
            config.check(224).unwrap_err().to_string()
        };
        assert!(refused(|c| c.heads = 5).starts_with("heads = 5: must divide dim = 768"));
        assert!(refused(|c| (c.dim, c.heads) = (6, 2)).starts_with("dim = 6: must be a multiple of 4"));
        assert!(refused(|c| c.depth = 0).starts_with("depth = 0"));
        assert!(refused(|c| c.patch = 15).starts_with("patch = 15: must divide the image size 224"));
        assert!(refused(|c| c.patch = 448).starts_with("patch = 448"));
        assert!(refused(|c| c.mlp_ratio = f64::NAN).starts_with("mlp_ratio = NaN"));
    }
}
