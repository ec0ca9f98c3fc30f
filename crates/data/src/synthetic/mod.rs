//! `synthetic`: an embedded, procedurally drawn data set (the default input), the same on every machine for a seed.
//!
//! Ten classes, each a small glyph: bars in four directions, plus, cross, ring, dot and two corners. An image repeats
//! the glyph of its class on a lattice of 8-pixel cells. Each glyph has its own shift, size, contrast and polarity
//! (lighter or darker than the ground), each cell its own ground colour, some cells are empty, and there is noise: two
//! images of a class look alike to a person but share few pixel values, so neighbours in pixel space are poor (k-NN
//! 23 %, chance 10 %). What surrounds a hidden patch tells which glyph it holds but none of its other properties, so a
//! method that predicts the hidden part from the visible part must learn the classes.
//!
//! Nuisances that a whole image shares (tint, shading) are weak on purpose: context predicts them perfectly, and a
//! method rewarded for prediction would encode them in place of the shapes. Train without horizontal flips: they turn
//! one diagonal bar into the other.
//!
//! An image is a pure function of seed, split, side and index: it is drawn when it is read, from the stream
//! `synthetic/train` or `synthetic/test` at epoch 0 and its index, in integer arithmetic. Labels go round
//! (`index % 10`), so every stretch of ten images is balanced.

mod glyphs;
mod render;

use crate::fingerprint::Fingerprint;
use crate::{Dataset, Image, Result, Split};
use occlude_random::Streams;
use occlude_settings::{ConfigError, require};

/// The drawn data set.
#[derive(Clone, Debug)]
pub struct Synthetic {
    streams: Streams,
    split: Split,
    count: usize,
    side: usize,
    classes: Vec<String>,
}

impl Synthetic {
    /// Images of the training split unless told otherwise.
    pub const TRAIN: usize = 20_000;
    /// Images of the test split unless told otherwise.
    pub const TEST: usize = 4_000;
    /// Side of an image in pixels unless told otherwise.
    pub const SIDE: usize = 32;

    /// The first `count` images of a split at 32 x 32 pixels. A longer set starts with the same images.
    #[must_use]
    pub fn new(seed: u64, split: Split, count: usize) -> Self {
        let classes = glyphs::NAMES.iter().map(|&name| name.to_owned()).collect();
        Self { streams: Streams::new(seed), split, count, side: Self::SIDE, classes }
    }

    /// The split at its default length.
    #[must_use]
    pub fn whole(seed: u64, split: Split) -> Self {
        let count = match split {
            Split::Train => Self::TRAIN,
            Split::Test => Self::TEST,
        };
        Self::new(seed, split, count)
    }

    /// The same set on larger or smaller images; glyphs keep their size and their number grows.
    ///
    /// # Errors
    /// `side` is not a multiple of 8 between 16 and 1024.
    pub fn with_side(self, side: usize) -> Result<Self, ConfigError> {
        let allowed = "must be a multiple of 8 between 16 and 1024";
        let side =
            require("side", side, allowed, |side| (16..=1024).contains(side) && side.is_multiple_of(render::CELL))?;
        Ok(Self { side, ..self })
    }

    /// The name of the random streams, and of the images.
    fn purpose(&self) -> &'static str {
        match self.split {
            Split::Train => "synthetic/train",
            Split::Test => "synthetic/test",
        }
    }

    fn class_of(&self, index: usize) -> usize {
        index % self.classes.len()
    }
}

impl Dataset for Synthetic {
    fn len(&self) -> usize {
        self.count
    }

    fn read(&self, index: usize) -> Result<Image> {
        let stream = self.streams.stream(self.purpose(), 0, index as u64);
        let pixels = render::image(self.class_of(index), self.side, stream);
        Ok(Image { width: self.side, height: self.side, pixels })
    }

    fn label(&self, index: usize) -> Option<u32> {
        Some(self.class_of(index) as u32)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        format!("{}/{index:06}", self.purpose())
    }

    fn fingerprint(&self) -> u64 {
        let mut mark = Fingerprint::new("synthetic", self.count);
        mark.bytes(self.purpose().as_bytes());
        mark.number(self.streams.seed());
        mark.number(self.side as u64);
        mark.value()
    }
}

#[cfg(test)]
mod tests;
