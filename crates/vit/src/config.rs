//! Settings of an encoder: as written, and checked.

use crate::DropPathKind;
use occlude_masking::Grid;
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// Largest width, depth and MLP ratio: far beyond any model, but small enough that no size computed from them overflows.
const MOST_WIDTH: usize = 65_536;
const MOST_DEPTH: usize = 1024;
const MOST_MLP_RATIO: f64 = 64.0;
/// Largest number of register tokens.
const MOST_REGISTERS: usize = 4096;

/// How tokens know where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionKind {
    /// CAPI's position encoding on queries and keys.
    Rope,
    /// A learned vector for each patch, added once.
    Learnable,
}

/// Where registers sit before they are scaled into the box of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegisterCoords {
    /// Around the unit square.
    Edge,
    /// All at (0, 0).
    Zeros,
}

/// An encoder as written in a file. Defaults are CAPI's ViT-L/14.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VitConfig {
    /// Width of the tokens.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; each has `dim / heads` channels.
    pub heads: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Register tokens: 0 or a multiple of 4.
    pub registers: usize,
    /// `edge` or `zeros`.
    pub register_coords: RegisterCoords,
    /// Whether registers are moved into the bounding box of the visible patches.
    pub scale_registers: bool,
    /// `rope` or `learnable`.
    pub position: PositionKind,
    /// The block whose output (normed) is the feature: 0 is the input tokens, `depth` (or nothing) the last block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_layer: Option<usize>,
    /// Units of the MLP over `dim`.
    pub mlp_ratio: f64,
    /// Rate of stochastic depth, in every block of encoder and predictor.
    pub drop_path: f64,
    /// `subset` or `naive`.
    pub drop_path_kind: DropPathKind,
    /// Keep only the input of every block of encoder and predictor and compute the rest again in the backward pass:
    /// less memory, more time, the same bits.
    pub recompute: bool,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            dim: 1024,
            depth: 24,
            heads: 16,
            patch: 14,
            registers: 16,
            register_coords: RegisterCoords::Edge,
            scale_registers: true,
            position: PositionKind::Rope,
            out_layer: None,
            mlp_ratio: 4.0,
            drop_path: 0.2,
            drop_path_kind: DropPathKind::Subset,
            recompute: false,
        }
    }
}

/// A checked encoder for images of one size (others can be evaluated).
#[derive(Clone, Debug, PartialEq)]
pub struct VitSettings {
    pub(crate) dim: usize,
    pub(crate) depth: usize,
    pub(crate) heads: usize,
    pub(crate) patch: usize,
    pub(crate) registers: usize,
    pub(crate) register_coords: RegisterCoords,
    pub(crate) scale_registers: bool,
    pub(crate) position: PositionKind,
    pub(crate) out_layer: usize,
    pub(crate) hidden: usize,
    pub(crate) drop_path: f64,
    pub(crate) drop_path_kind: DropPathKind,
    pub(crate) recompute: bool,
    pub(crate) grid: Grid,
}

impl VitConfig {
    /// Checks the settings for square images of `image` pixels a side.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed.
    pub fn check(&self, image: usize) -> Result<VitSettings, ConfigError> {
        check_heads(self.dim, self.heads, self.position)?;
        check_depth(self.depth)?;
        let patch = require("patch", self.patch, &format!("must divide the image size {image}"), |p| {
            *p >= 1 && image >= *p && image.is_multiple_of(*p)
        })?;
        let allowed = format!("must be 0 or a multiple of 4, at most {MOST_REGISTERS}");
        require("registers", self.registers, &allowed, |r| r.is_multiple_of(4) && *r <= MOST_REGISTERS)?;
        let out_layer = self.out_layer.unwrap_or(self.depth);
        require("out_layer", out_layer, &format!("must be at most the depth {}", self.depth), |o| *o <= self.depth)?;
        let hidden = check_mlp_ratio(self.mlp_ratio, self.dim)?;
        require("drop_path", self.drop_path, "must be at least 0 and below 1", |r| *r >= 0.0 && *r < 1.0)?;
        Ok(VitSettings {
            dim: self.dim,
            depth: self.depth,
            heads: self.heads,
            patch,
            registers: self.registers,
            register_coords: self.register_coords,
            scale_registers: self.scale_registers,
            position: self.position,
            out_layer,
            hidden,
            drop_path: self.drop_path,
            drop_path_kind: self.drop_path_kind,
            recompute: self.recompute,
            grid: Grid::new(image / patch, image / patch),
        })
    }
}

/// A width that can be built: shared with predictors and heads.
///
/// # Errors
/// Names `field`: 0, or more than 65 536.
pub fn check_width(field: &str, width: usize) -> Result<(), ConfigError> {
    let allowed = format!("must be at least 1 and at most {MOST_WIDTH}");
    require(field, width, &allowed, |w| (1..=MOST_WIDTH).contains(w)).map(|_| ())
}

/// A number of blocks that can be built: shared with predictors.
///
/// # Errors
/// `depth` is 0, or more than 1024.
pub fn check_depth(depth: usize) -> Result<(), ConfigError> {
    let allowed = format!("must be at least 1 and at most {MOST_DEPTH}");
    require("depth", depth, &allowed, |d| (1..=MOST_DEPTH).contains(d)).map(|_| ())
}

/// Width and heads fit each other: shared with predictors.
///
/// # Errors
/// `dim` is no width ([`check_width`]), `heads` does not divide it, or a head's size is not a multiple of 4 where
/// positions are encoded.
pub fn check_heads(dim: usize, heads: usize, position: PositionKind) -> Result<(), ConfigError> {
    check_width("dim", dim)?;
    require("heads", heads, &format!("must divide dim = {dim}"), |h| *h >= 1 && dim.is_multiple_of(*h))?;
    if position == PositionKind::Rope {
        let allowed = format!("must give heads of a multiple of 4 channels: dim = {dim} gives {}", dim / heads);
        require("heads", heads, &allowed, |h| (dim / h).is_multiple_of(4))?;
    }
    Ok(())
}

/// Units of an MLP over a width of `dim`.
pub(crate) fn check_mlp_ratio(ratio: f64, dim: usize) -> Result<usize, ConfigError> {
    let hidden = (dim as f64 * ratio) as usize;
    let allowed = format!("must be positive, at most {MOST_MLP_RATIO}, and give at least one unit");
    require("mlp_ratio", ratio, &allowed, |r| *r > 0.0 && *r <= MOST_MLP_RATIO && hidden >= 1)?;
    Ok(hidden)
}

impl VitSettings {
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

    /// Register tokens.
    #[must_use]
    pub fn registers(&self) -> usize {
        self.registers
    }

    /// The patch grid of training images.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// How tokens know where they are.
    #[must_use]
    pub fn position(&self) -> PositionKind {
        self.position
    }

    /// Rate and kind of stochastic depth.
    #[must_use]
    pub fn drop_path(&self) -> (f64, DropPathKind) {
        (self.drop_path, self.drop_path_kind)
    }

    /// Whether blocks compute their activations again in the backward pass.
    #[must_use]
    pub fn recompute(&self) -> bool {
        self.recompute
    }

    /// MLP units of a block of width `dim` at this encoder's ratio.
    #[must_use]
    pub fn hidden_for(&self, dim: usize) -> usize {
        (dim * self.hidden / self.dim).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::VitConfig;

    fn refused(change: impl Fn(&mut VitConfig)) -> String {
        let mut config = VitConfig::default();
        change(&mut config);
        config.check(224).unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_large_14() {
        let settings = VitConfig::default().check(224).unwrap();
        assert_eq!((settings.grid.count(), settings.hidden, settings.out_layer), (256, 4096, 24));
    }

    #[test]
    fn each_refusal_names_its_field() {
        assert!(refused(|c| c.heads = 3).starts_with("heads = 3: must divide dim = 1024"));
        assert!(refused(|c| c.heads = 512).starts_with("heads = 512: must give heads of a multiple of 4"));
        assert!(refused(|c| c.patch = 15).starts_with("patch = 15: must divide the image size 224"));
        assert!(refused(|c| c.patch = 0).starts_with("patch = 0"));
        assert!(refused(|c| c.registers = 6).starts_with("registers = 6: must be 0 or a multiple of 4"));
        assert!(refused(|c| c.out_layer = Some(25)).starts_with("out_layer = 25"));
        assert!(refused(|c| c.mlp_ratio = f64::NAN).starts_with("mlp_ratio = NaN"));
        assert!(refused(|c| c.drop_path = 1.0).starts_with("drop_path = 1"));
        assert!(refused(|c| c.depth = 0).starts_with("depth = 0"));
    }

    #[test]
    fn sizes_that_overflow_or_exhaust_memory_are_refused() {
        assert!(
            refused(|c| c.dim = 1_024_000_000).starts_with("dim = 1024000000: must be at least 1 and at most 65536")
        );
        assert!(refused(|c| c.depth = 100_000).starts_with("depth = 100000: must be at least 1 and at most 1024"));
        assert!(
            refused(|c| c.mlp_ratio = 1e18)
                .starts_with("mlp_ratio = 1000000000000000000: must be positive, at most 64")
        );
        assert!(refused(|c| c.registers = 1 << 40).contains("at most 4096"));
    }
}
