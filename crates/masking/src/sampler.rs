//! The generators of masks and their settings.

use crate::{BlockDraws, Grid, Mask};
use occlude_random::{RngCore, choose};
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// Patches hidden at a ratio: the floating product, truncated, as in the public code (0.65 of 256 is 166).
#[must_use]
pub fn hidden_count(grid: Grid, ratio: f64) -> usize {
    (grid.count() as f64 * ratio) as usize
}

/// Which generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskerKind {
    /// The student sees one block; all else is hidden.
    InverseBlock,
    /// One block is hidden.
    Block,
    /// Cells chosen uniformly without replacement are hidden.
    Random,
}

/// How patches are hidden, as written in a file. Defaults are CAPI's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskerConfig {
    /// `inverse_block`, `block` or `random`.
    pub kind: MaskerKind,
    /// Share of the patches that is hidden.
    pub ratio: f64,
    /// Whether a block is shifted cyclically, so that every patch is hidden equally often. Not used by `random`.
    pub roll: bool,
    /// Smallest height / width of a block; the largest is its inverse. Not used by `random`.
    pub min_aspect: f64,
}

impl Default for MaskerConfig {
    fn default() -> Self {
        Self { kind: MaskerKind::InverseBlock, ratio: 0.65, roll: true, min_aspect: 0.5 }
    }
}

impl MaskerConfig {
    /// The checked generator.
    ///
    /// # Errors
    /// `ratio` is not strictly between 0 and 1, or `min_aspect` is not in (0, 1].
    pub fn check(&self) -> Result<Masker, ConfigError> {
        let ratio = require("ratio", self.ratio, "must be between 0 and 1, both excluded", |r| *r > 0.0 && *r < 1.0)?;
        let min_aspect = require("min_aspect", self.min_aspect, "must be above 0 and at most 1", |a| {
            *a >= f64::MIN_POSITIVE && *a <= 1.0
        })?;
        Ok(Masker { kind: self.kind, ratio, roll: self.roll, min_aspect })
    }
}

/// A checked generator. Every mask it draws on one grid hides the same number of patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Masker {
    kind: MaskerKind,
    ratio: f64,
    roll: bool,
    min_aspect: f64,
}

impl Masker {
    /// How many patches of the grid are hidden.
    #[must_use]
    pub fn hidden_count(&self, grid: Grid) -> usize {
        hidden_count(grid, self.ratio)
    }

    /// Draws one mask: equal generators give equal masks.
    pub fn mask<R: RngCore + ?Sized>(&self, grid: Grid, rng: &mut R) -> Mask {
        let hidden = self.hidden_count(grid);
        let mut block =
            |cells: usize| BlockDraws::draw(grid, cells, self.min_aspect, self.roll, rng).block(grid, cells);
        match self.kind {
            MaskerKind::InverseBlock => {
                let visible = block(grid.count() - hidden);
                Mask::from_fn(grid, |index| !visible[index])
            }
            MaskerKind::Block => {
                let hidden = block(hidden);
                Mask::from_fn(grid, |index| hidden[index])
            }
            MaskerKind::Random => random(grid, hidden, rng),
        }
    }

    /// The share of patches that is hidden, before truncation to whole patches.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// Refuses a grid on which nothing would be hidden, or nothing seen: a small grid with an extreme ratio.
    ///
    /// # Errors
    /// Names `ratio` and the grid.
    pub fn fits(&self, grid: Grid) -> Result<(), ConfigError> {
        let allowed = format!(
            "must hide at least one of the {} x {} patches and leave at least one visible",
            grid.rows, grid.cols
        );
        let hidden = self.hidden_count(grid);
        require("ratio", self.ratio, &allowed, |_| hidden >= 1 && hidden < grid.count()).map(|_| ())
    }
}

/// Hides `count` patches chosen uniformly without replacement.
fn random<R: RngCore + ?Sized>(grid: Grid, count: usize, rng: &mut R) -> Mask {
    let mut cells: Vec<u32> = (0..grid.count() as u32).collect();
    let mut hidden = vec![false; grid.count()];
    for cell in choose(rng, &mut cells, count) {
        hidden[*cell as usize] = true;
    }
    Mask::from_fn(grid, |index| hidden[index])
}
