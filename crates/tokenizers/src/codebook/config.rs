//! Settings of the online codebook: as written, and checked for one grid and batch.

use occlude_masking::Grid;
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// Most words: far beyond any recipe, but small enough that no size computed from them overflows.
const MOST_WORDS: usize = 1 << 24;

/// Where new words come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodebookUpdate {
    /// One random patch of each of some random images.
    RandomToken,
    /// The mean of the patches of each of some random images.
    AvgToken,
    /// Patches of the whole batch, each far from those taken before it (farthest point sampling).
    Fps,
}

/// The codebook as written in a file. Defaults are MOCA's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodebookConfig {
    /// Words.
    pub words: usize,
    /// Words replaced in a step, the oldest first.
    pub new_words_per_step: usize,
    /// Rows and columns at each side of the grid that neither count for an image nor become words.
    pub border: usize,
    /// The inverse temperature of an assignment is this over the running mean similarity distance.
    pub inverse_temperature: f64,
    /// `random_token`, `avg_token` or `fps`.
    pub update: CodebookUpdate,
    /// `fps` only: whether new words keep away from the current ones, too.
    pub fps_include_codebook: bool,
}

impl Default for CodebookConfig {
    fn default() -> Self {
        Self {
            words: 4096,
            new_words_per_step: 4,
            border: 2,
            inverse_temperature: 10.0,
            update: CodebookUpdate::RandomToken,
            fps_include_codebook: false,
        }
    }
}

/// A checked codebook for batches of one size on one grid.
#[derive(Clone, Debug, PartialEq)]
pub struct CodebookSettings {
    pub(crate) words: usize,
    pub(crate) new_words: usize,
    pub(crate) inverse_temperature: f64,
    pub(crate) update: CodebookUpdate,
    pub(crate) include_codebook: bool,
    pub(crate) grid: Grid,
    /// Patches inside the border, ascending.
    pub(crate) interior: Vec<u32>,
}

impl CodebookConfig {
    /// Checks the settings for `batch` images of `grid` patches in one process.
    ///
    /// # Errors
    /// Names the first field whose value is not allowed. A border that leaves no patch, or more new words than there
    /// are images to take them from, would make every target NaN or stop the training later.
    pub fn check(&self, grid: Grid, batch: usize) -> Result<CodebookSettings, ConfigError> {
        let allowed = format!("must be at least 2 and at most {MOST_WORDS}");
        let words = require("words", self.words, &allowed, |k| (2..=MOST_WORDS).contains(k))?;
        let side = grid.rows.min(grid.cols);
        let allowed = format!("must leave a patch inside the grid of {} x {}", grid.rows, grid.cols);
        require("border", self.border, &allowed, |o| *o < side.div_ceil(2))?;
        let interior = interior(grid, self.border);
        let new = require("new_words_per_step", self.new_words_per_step, "must be at least 1", |n| *n >= 1)?;
        require("new_words_per_step", new, &format!("must divide words = {words}"), |n| words.is_multiple_of(*n))?;
        let (most, what) = match self.update {
            CodebookUpdate::Fps => (batch.saturating_mul(interior.len()), "patches"),
            CodebookUpdate::RandomToken | CodebookUpdate::AvgToken => (batch, "images"),
        };
        require("new_words_per_step", new, &format!("must be at most the {most} {what} of a batch"), |n| *n <= most)?;
        let inverse_temperature = require("inverse_temperature", self.inverse_temperature, "must be positive", |t| {
            *t > 0.0 && t.is_finite()
        })?;
        Ok(CodebookSettings {
            words,
            new_words: new,
            inverse_temperature,
            update: self.update,
            include_codebook: self.fps_include_codebook,
            grid,
            interior,
        })
    }
}

impl CodebookSettings {
    /// Words.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words
    }

    /// Words replaced in a step.
    #[must_use]
    pub fn new_words(&self) -> usize {
        self.new_words
    }

    /// Patches inside the border, row-major.
    #[must_use]
    pub fn interior(&self) -> &[u32] {
        &self.interior
    }
}

fn interior(grid: Grid, border: usize) -> Vec<u32> {
    let inside = |at: usize, count: usize| at >= border && at + border < count;
    let patch = |index: &u32| {
        let index = *index as usize;
        inside(index / grid.cols, grid.rows) && inside(index % grid.cols, grid.cols)
    };
    (0..grid.count() as u32).filter(patch).collect()
}

#[cfg(test)]
mod tests {
    use super::{CodebookConfig, CodebookUpdate};
    use occlude_masking::Grid;

    #[test]
    fn the_default_uses_10_x_10_of_14_x_14_patches() {
        let settings = CodebookConfig::default().check(Grid::new(14, 14), 4).unwrap();
        assert_eq!((settings.interior().len(), settings.words(), settings.new_words()), (100, 4096, 4));
        assert_eq!(settings.interior()[..2], [30, 31]);
        let ragged = CodebookConfig { border: 1, ..CodebookConfig::default() }.check(Grid::new(3, 4), 4).unwrap();
        assert_eq!(ragged.interior(), [5, 6]);
        let whole = CodebookConfig { border: 0, ..CodebookConfig::default() }.check(Grid::new(1, 2), 4).unwrap();
        assert_eq!(whole.interior(), [0, 1]);
    }

    #[test]
    fn each_refusal_names_its_field() {
        let refused = |change: fn(&mut CodebookConfig)| {
            let mut config = CodebookConfig::default();
            change(&mut config);
            config.check(Grid::new(14, 14), 8).unwrap_err().to_string()
        };
        assert!(refused(|c| c.words = 1).starts_with("words = 1: must be at least 2"));
        assert!(refused(|c| c.words = 1 << 40).contains("at most 16777216"));
        assert!(refused(|c| c.new_words_per_step = 0).starts_with("new_words_per_step = 0: must be at least 1"));
        assert!(refused(|c| c.new_words_per_step = 3).contains("must divide words = 4096"));
        assert!(refused(|c| c.new_words_per_step = 16).contains("must be at most the 8 images"));
        assert!(refused(|c| c.border = 7).starts_with("border = 7: must leave a patch inside the grid of 14 x 14"));
        assert!(refused(|c| c.border = usize::MAX).starts_with("border"));
        assert!(refused(|c| c.inverse_temperature = f64::NAN).starts_with("inverse_temperature = NaN"));
        let small = CodebookConfig::default().check(Grid::new(4, 4), 8).unwrap_err().to_string();
        assert!(small.starts_with("border = 2"), "64 pixels in patches of 16: {small}");
        let many = CodebookConfig { update: CodebookUpdate::Fps, new_words_per_step: 16, ..CodebookConfig::default() };
        assert!(many.check(Grid::new(14, 14), 8).is_ok(), "of 800 patches");
        assert!(many.check(Grid::new(5, 5), 8).unwrap_err().to_string().contains("8 patches"));
    }
}
