//! Segments as written in a file, and their checks.

use super::{How, Segmenter, cell_points};
use crate::Grid;
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentsKind {
    /// A patch, row by row.
    Raster,
    /// A patch, in random order.
    Random,
    /// A square of a fixed lattice, in random order.
    Square,
    /// A random blob of patches, in random order.
    Blob,
}

/// Segments and their order, as written in a file. Defaults are RandSAC's: blobs, 11 grouped in 5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmenterConfig {
    /// `raster`, `random`, `square` or `blob`.
    pub kind: SegmentsKind,
    /// Patches along the side of a square. `square` only.
    pub side: usize,
    /// Blobs that are drawn, and the groups of each level above them: `[7]` has no groups, `[11, 5]` one level of them. An upper
    /// bound: what wins no patch is left out. `blob` only.
    pub blobs: Vec<usize>,
    /// Whether the patches of blobs are shuffled: an ablation that keeps sizes and order. `blob` only.
    pub shuffled: bool,
}

impl Default for SegmenterConfig {
    fn default() -> Self {
        Self { kind: SegmentsKind::Blob, side: 2, blobs: vec![11, 5], shuffled: false }
    }
}

impl SegmenterConfig {
    /// The most blobs of a level, and the most levels.
    const MOST: usize = 4096;
    const DEEPEST: usize = 8;

    /// The segments in a few words, for the head of a report.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.kind {
            SegmentsKind::Raster => "patches in raster order".into(),
            SegmentsKind::Random => "patches in random order".into(),
            SegmentsKind::Square => format!("squares of {0} x {0} patches", self.side),
            SegmentsKind::Blob => {
                let levels: Vec<String> = self.blobs.iter().map(usize::to_string).collect();
                let kind = if self.shuffled { "shuffled blobs" } else { "blobs" };
                format!("{} {kind}", levels.join(" -> "))
            }
        }
    }

    /// The checked generator for a grid.
    ///
    /// # Errors
    /// Names the first field that is out of range or does not fit the grid.
    pub fn check(&self, grid: Grid) -> Result<Segmenter, ConfigError> {
        let how = match self.kind {
            SegmentsKind::Raster => How::Raster,
            SegmentsKind::Random => How::Cells,
            SegmentsKind::Square => How::Squares { side: self.side(grid)? },
            SegmentsKind::Blob => How::Blobs { points: cell_points(grid), counts: self.counts()? },
        };
        let blobs = self.kind == SegmentsKind::Blob;
        require("shuffled", self.shuffled, "must be false: only blobs are shuffled", |shuffled| blobs || !shuffled)?;
        Ok(Segmenter { grid, how, shuffled: self.shuffled })
    }

    fn side(&self, grid: Grid) -> Result<usize, ConfigError> {
        let allowed = format!("must divide both sides of the {} x {} patches", grid.rows, grid.cols);
        let divides = |side: &usize| *side > 0 && grid.rows.is_multiple_of(*side) && grid.cols.is_multiple_of(*side);
        let side = require("side", self.side, &allowed, divides)?;
        let several = "must leave more than one square: one segment has nothing to be predicted from";
        require("side", side, several, |side| side * side < grid.count())
    }

    fn counts(&self) -> Result<Vec<usize>, ConfigError> {
        let list = format!("[{}]", self.blobs.iter().map(usize::to_string).collect::<Vec<_>>().join(", "));
        let allowed = format!("must hold between 1 and {} counts, the finest first", Self::DEEPEST);
        require("blobs", &list, &allowed, |_| (1..=Self::DEEPEST).contains(&self.blobs.len()))?;
        let allowed = format!("must be between 2 and {} each", Self::MOST);
        require("blobs", &list, &allowed, |_| self.blobs.iter().all(|count| (2..=Self::MOST).contains(count)))?;
        Ok(self.blobs.clone())
    }
}
