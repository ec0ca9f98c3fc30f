//! What a data set is.

use crate::Result;
use crate::fingerprint::Fingerprint;

/// A decoded image: 8-bit RGB, row-major, interleaved (`3 * width * height` bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels from left to right.
    pub width: usize,
    /// Pixels from top to bottom.
    pub height: usize,
    /// `3 * width * height` bytes.
    pub pixels: Vec<u8>,
}

impl Image {
    /// Whether there is at least one pixel and the buffer has the stated size.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let bytes = self.width.checked_mul(self.height).and_then(|pixels| pixels.checked_mul(3));
        !self.pixels.is_empty() && bytes == Some(self.pixels.len())
    }
}

/// Random access to images. Cheap to share between workers; reads may run in parallel.
pub trait Dataset: Send + Sync {
    /// How many images.
    fn len(&self) -> usize;

    /// Whether there is none. `open` refuses such a set.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decodes image `index`.
    ///
    /// # Errors
    /// The file cannot be read or decoded; the error names it.
    fn read(&self, index: usize) -> Result<Image>;

    /// The class of image `index`, if the set has classes: an index into [`Dataset::classes`].
    fn label(&self, index: usize) -> Option<u32>;

    /// Class names; empty if the set has none.
    fn classes(&self) -> &[String];

    /// Where image `index` came from, for messages: a path, or `archive.tar: entry`.
    fn name(&self, index: usize) -> String;

    /// A mark of which images these are, in which order, by which a run knows its images again: equal on every machine,
    /// in every version, and wherever the files lie. It is made from names and what else opening has read anyway
    /// (labels of binary files, sizes inside archives), not from pixels: a file replaced by another of the same name
    /// may go unnoticed.
    ///
    /// Unless a set says otherwise, made from the number of images and [`Dataset::name`] of each.
    fn fingerprint(&self) -> u64 {
        let mut mark = Fingerprint::new("names", self.len());
        (0..self.len()).for_each(|index| mark.bytes(self.name(index).as_bytes()));
        mark.value()
    }
}
