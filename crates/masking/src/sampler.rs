//! The generators of masks and their settings.

use crate::{BlockDraws, Grid, Mask};
use occlude_settings::{ConfigError, require};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Draws masks. Every mask drawn on one grid hides the same number of patches.
pub trait MaskSampler {
    /// How many patches of the grid are hidden.
    fn hidden_count(&self, grid: Grid) -> usize;

    /// Draws one mask from `rng`: equal generators give equal masks.
    fn mask<R: Rng + ?Sized>(&self, grid: Grid, rng: &mut R) -> Mask;
}

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
        let block = BlockMasker { ratio, roll: self.roll, min_aspect };
        Ok(match self.kind {
            MaskerKind::InverseBlock => Masker::InverseBlock(InverseBlockMasker { ratio, roll: self.roll, min_aspect }),
            MaskerKind::Block => Masker::Block(block),
            MaskerKind::Random => Masker::Random(RandomMasker { ratio }),
        })
    }
}

/// A checked generator, chosen by the settings.
#[derive(Clone, Debug, PartialEq)]
pub enum Masker {
    /// All but a block.
    InverseBlock(InverseBlockMasker),
    /// A block.
    Block(BlockMasker),
    /// Cells one by one.
    Random(RandomMasker),
}

impl Masker {
    /// As [`MaskSampler::hidden_count`].
    #[must_use]
    pub fn hidden_count(&self, grid: Grid) -> usize {
        match self {
            Self::InverseBlock(masker) => masker.hidden_count(grid),
            Self::Block(masker) => masker.hidden_count(grid),
            Self::Random(masker) => masker.hidden_count(grid),
        }
    }

    /// As [`MaskSampler::mask`].
    pub fn mask<R: Rng + ?Sized>(&self, grid: Grid, rng: &mut R) -> Mask {
        match self {
            Self::InverseBlock(masker) => masker.mask(grid, rng),
            Self::Block(masker) => masker.mask(grid, rng),
            Self::Random(masker) => masker.mask(grid, rng),
        }
    }

    /// The share of patches that is hidden, before truncation to whole patches.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        match self {
            Self::InverseBlock(masker) => masker.ratio,
            Self::Block(masker) => masker.ratio,
            Self::Random(masker) => masker.ratio,
        }
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
        require("ratio", self.ratio(), &allowed, |_| hidden >= 1 && hidden < grid.count()).map(|_| ())
    }
}

impl MaskSampler for Masker {
    fn hidden_count(&self, grid: Grid) -> usize {
        self.hidden_count(grid)
    }

    fn mask<R: Rng + ?Sized>(&self, grid: Grid, rng: &mut R) -> Mask {
        self.mask(grid, rng)
    }
}

/// The visible patches form one block. CAPI's default, with roll.
#[derive(Clone, Debug, PartialEq)]
pub struct InverseBlockMasker {
    ratio: f64,
    roll: bool,
    min_aspect: f64,
}

impl MaskSampler for InverseBlockMasker {
    fn hidden_count(&self, grid: Grid) -> usize {
        hidden_count(grid, self.ratio)
    }

    fn mask<R: Rng + ?Sized>(&self, grid: Grid, rng: &mut R) -> Mask {
        let visible = grid.count() - self.hidden_count(grid);
        let block = BlockDraws::draw(grid, visible, self.min_aspect, self.roll, rng).block(grid, visible);
        Mask::from_fn(grid, |index| !block[index])
    }
}

/// The hidden patches form one block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMasker {
    ratio: f64,
    roll: bool,
    min_aspect: f64,
}

impl MaskSampler for BlockMasker {
    fn hidden_count(&self, grid: Grid) -> usize {
        hidden_count(grid, self.ratio)
    }

    fn mask<R: Rng + ?Sized>(&self, grid: Grid, rng: &mut R) -> Mask {
        let hidden = self.hidden_count(grid);
        let block = BlockDraws::draw(grid, hidden, self.min_aspect, self.roll, rng).block(grid, hidden);
        Mask::from_fn(grid, |index| block[index])
    }
}

/// Hidden patches are chosen uniformly without replacement.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomMasker {
    ratio: f64,
}

impl MaskSampler for RandomMasker {
    fn hidden_count(&self, grid: Grid) -> usize {
        hidden_count(grid, self.ratio)
    }

    fn mask<R: Rng + ?Sized>(&self, grid: Grid, rng: &mut R) -> Mask {
        let mut cells: Vec<u32> = (0..grid.count() as u32).collect();
        let mut hidden = vec![false; grid.count()];
        for cell in draw_first(&mut cells, self.hidden_count(grid), rng) {
            hidden[*cell as usize] = true;
        }
        Mask::from_fn(grid, |index| hidden[index])
    }
}

/// Puts a uniformly random choice of `count` items, in random order, at the front of `items` and returns it
/// (Fisher-Yates, stopped early). Our own, so that a stored run draws the same with a later `rand`.
pub(crate) fn draw_first<'a, R: Rng + ?Sized>(items: &'a mut [u32], count: usize, rng: &mut R) -> &'a [u32] {
    let len = items.len();
    for place in 0..count.min(len) {
        items.swap(place, rng.random_range(place as u32..len as u32) as usize);
    }
    &items[..count.min(len)]
}
