//! The transform of evaluation: no randomness.

use crate::Image;
use crate::augment::Normalize;
use crate::crop::CropBox;
use crate::resample::{Interpolation, Resampler};
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// How an image of any shape becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EvalMode {
    /// Both sides are resized; the ratio is lost, no pixel is (segmentation, pictures).
    Squash,
    /// The short side is resized to this many pixels, the centre is cut out (classification).
    ShortSide {
        /// Short side before the cut, at least the size of the result.
        resize: usize,
    },
}

/// Resizes to a square of fixed side and normalises. An image that has the size already is not resampled.
#[derive(Debug)]
pub struct EvalTransform {
    size: usize,
    mode: EvalMode,
    normalize: Normalize,
    resampler: Resampler,
}

impl EvalTransform {
    /// The transform to `size` x `size`, bicubic.
    ///
    /// # Errors
    /// A size of 0, or a short side below the size.
    pub fn new(size: usize, mode: EvalMode, normalize: Normalize) -> Result<Self, ConfigError> {
        require("size", size, "must be between 1 and 8192 pixels", |s| (1..=8192).contains(s))?;
        if let EvalMode::ShortSide { resize } = mode {
            let allowed = format!("must be between the size of the result ({size}) and 8192 pixels");
            require("resize", resize, &allowed, |r| (size..=8192).contains(r))?;
        }
        Ok(Self { size, mode, normalize, resampler: Resampler::default() })
    }

    /// The same transform, resized in another way.
    #[must_use]
    pub fn with_interpolation(self, interpolation: Interpolation) -> Self {
        Self { resampler: Resampler::new(interpolation), ..self }
    }

    /// Side of the result in pixels.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The normalisation.
    #[must_use]
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// The resized image before the centre is cut out; the square itself where nothing is cut.
    #[must_use]
    pub fn resized(&self, image: &Image) -> Image {
        let EvalMode::ShortSide { resize } = self.mode else {
            return self.resampler.resize(image, CropBox::whole(image), self.size, self.size);
        };
        let middle = middle(image);
        let (width, height) = short_side(middle.width, middle.height, resize);
        self.resampler.resize(image, middle, width, height)
    }

    /// The 8-bit square, before normalisation.
    #[must_use]
    pub fn picture(&self, image: &Image) -> Image {
        let resized = self.resized(image);
        if (resized.width, resized.height) == (self.size, self.size) {
            return resized;
        }
        let centre = |side: usize| ((side - self.size) as f64 / 2.0).round_ties_even() as usize;
        let (top, left) = (centre(resized.height), centre(resized.width));
        let from = CropBox { top, left, height: self.size, width: self.size };
        self.resampler.resize(&resized, from, self.size, self.size)
    }

    /// Writes the normalised square to `out`, `[3, size, size]`.
    pub fn write(&self, image: &Image, out: &mut [f32]) {
        self.normalize.write(&self.picture(image), false, out);
    }

    /// The normalised square, `[3, size, size]`.
    #[must_use]
    pub fn apply(&self, image: &Image) -> Vec<f32> {
        let mut out = vec![0.0; 3 * self.size * self.size];
        self.write(image, &mut out);
        out
    }
}

/// The longest side of what is resized, in short sides: a square is cut from its middle, and all of a picture that is
/// one pixel wide would take gigabytes.
const LONGEST: usize = 64;

/// The image, or the middle of one that is longer than [`LONGEST`] allows.
fn middle(image: &Image) -> CropBox {
    let (width, height) = (image.width.min(LONGEST * image.height), image.height.min(LONGEST * image.width));
    CropBox { top: (image.height - height) / 2, left: (image.width - width) / 2, height, width }
}

/// Width and height with the short side at `side`; the long one is truncated.
fn short_side(width: usize, height: usize, side: usize) -> (usize, usize) {
    if width <= height { (side, side * height / width) } else { (side * width / height, side) }
}

#[cfg(test)]
mod tests {
    use super::{EvalMode, EvalTransform};
    use crate::Image;
    use crate::augment::Normalize;

    fn transform(size: usize, mode: EvalMode) -> EvalTransform {
        EvalTransform::new(size, mode, Normalize::new([0.0; 3], [1.0; 3]).unwrap()).unwrap()
    }

    #[test]
    fn an_image_of_the_right_size_is_not_touched() {
        let image = Image { width: 5, height: 5, pixels: (0..75).collect() };
        assert_eq!(transform(5, EvalMode::Squash).picture(&image), image);
        assert_eq!(transform(5, EvalMode::ShortSide { resize: 5 }).picture(&image), image);
        assert_eq!(transform(5, EvalMode::Squash).apply(&image).len(), 75);
    }

    #[test]
    fn the_centre_of_a_long_image_is_kept() {
        let pixels = (0..9).flat_map(|column| [column * 20; 3]).collect();
        let image = Image { width: 9, height: 1, pixels };
        let kept = transform(1, EvalMode::ShortSide { resize: 1 }).picture(&image);
        assert_eq!((kept.width, kept.height, kept.pixels[0]), (1, 1, 80));
    }

    #[test]
    fn a_thin_image_takes_little_memory() {
        // Whole, the resized picture would be 256 x 16,776,960.
        let column: Vec<u8> = (0..65_535_u32).flat_map(|row| [(row / 256) as u8; 3]).collect();
        for (width, height) in [(1, 65_535), (65_535, 1)] {
            let image = Image { width, height, pixels: column.clone() };
            let kept = transform(224, EvalMode::ShortSide { resize: 256 }).picture(&image);
            assert!(kept.pixels.iter().all(|value| (126..=129).contains(value)), "the middle is kept");
            assert_eq!(transform(224, EvalMode::Squash).picture(&image).pixels.len(), 3 * 224 * 224);
        }
    }

    #[test]
    fn a_short_side_below_the_size_is_refused() {
        let normalize = Normalize::new([0.0; 3], [1.0; 3]).unwrap();
        let refused = EvalTransform::new(56, EvalMode::ShortSide { resize: 40 }, normalize).unwrap_err();
        assert_eq!(refused.field, "resize");
    }
}
