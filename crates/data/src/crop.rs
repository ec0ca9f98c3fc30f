//! Random resized crop and flip (CAPI specification, section 3; MOCA specification, sections 3 and 21).

use crate::augment::{Augment, Draws, Normalize};
use crate::draw::{below, between, unit};
use crate::resample::{Interpolation, Resampler};
use crate::{EvalMode, EvalTransform, Image};
use occlude_random::Stream;
use occlude_settings::{ConfigError, require};
use serde::{Deserialize, Serialize};

/// Tries before the centre crop.
const TRIES: usize = 10;

/// A rectangle of pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl CropBox {
    /// All of an image.
    #[must_use]
    pub fn whole(image: &Image) -> Self {
        Self { top: 0, left: 0, height: image.height, width: image.width }
    }
}

/// Random resized crop, flip and normalisation, as written in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CropConfig {
    /// Side of the square result in pixels.
    pub size: usize,
    /// Smallest and largest share of the image's area.
    pub scale: [f64; 2],
    /// Smallest and largest width / height, drawn evenly on a logarithmic scale.
    pub ratio: [f64; 2],
    /// How the box is resized; it averages where it shrinks.
    pub interpolation: Interpolation,
    /// Probability of mirroring left and right.
    pub flip: f64,
    /// Mean of each channel, subtracted after scaling to 0..1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, divided by after that.
    pub std: [f32; 3],
}

impl Default for CropConfig {
    /// The published CAPI recipe: 224 px, area 0.6 to 1, ratio 3/4 to 4/3, bicubic, flip 0.5, `ImageNet` statistics.
    fn default() -> Self {
        Self {
            size: 224,
            scale: [0.6, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
            flip: 0.5,
            mean: Normalize::IMAGENET_MEAN,
            std: Normalize::IMAGENET_STD,
        }
    }
}

impl CropConfig {
    /// The checked augmentation.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<RandomCrop, ConfigError> {
        let size = require("size", self.size, "must be between 1 and 8192 pixels", |s| (1..=8192).contains(s))?;
        let [low, high] = self.scale;
        require("scale", low, "must be above 0 and not above the second value", |l| *l > 0.0 && *l <= high)?;
        require("scale", high, "must be at most 1", |h| *h <= 1.0)?;
        let [narrow, wide] = self.ratio;
        require("ratio", narrow, "must be above 0 and not above the second value", |n| *n > 0.0 && *n <= wide)?;
        require("ratio", wide, "must be finite", |w| w.is_finite())?;
        let flip = require("flip", self.flip, "must be a probability, between 0 and 1", |f| (0.0..=1.0).contains(f))?;
        let normalize = Normalize::new(self.mean, self.std)?;
        let resampler = Resampler::new(self.interpolation);
        Ok(RandomCrop { size, scale: self.scale, ratio: self.ratio, flip, normalize, resampler })
    }
}

/// One view: a random box, resized to a square with antialiasing, perhaps mirrored, normalised.
#[derive(Debug)]
pub struct RandomCrop {
    size: usize,
    scale: [f64; 2],
    ratio: [f64; 2],
    flip: f64,
    normalize: Normalize,
    resampler: Resampler,
}

impl RandomCrop {
    /// Side of a view in pixels.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The normalisation, for what has to show a view again.
    #[must_use]
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// The evaluation transform of the same size and normalisation, bicubic.
    ///
    /// # Errors
    /// `mode` resizes to less than the size.
    pub fn eval_transform(&self, mode: EvalMode) -> Result<EvalTransform, ConfigError> {
        EvalTransform::new(self.size, mode, self.normalize.clone())
    }

    /// Draws a box inside an image of `width` x `height` (both above 0).
    ///
    /// Up to ten tries of an area and a ratio; then the largest centred box whose ratio is inside the range.
    #[must_use]
    pub fn draw_box(&self, width: usize, height: usize, stream: &mut Stream) -> CropBox {
        let area = (width * height) as f64;
        let [narrow, wide] = self.ratio.map(f64::ln);
        for _ in 0..TRIES {
            let target = area * between(stream, self.scale[0], self.scale[1]);
            let ratio = between(stream, narrow, wide).exp();
            let columns = (target * ratio).sqrt().round_ties_even() as usize;
            let rows = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&columns) && (1..=height).contains(&rows) {
                let top = below(stream, height - rows + 1);
                let left = below(stream, width - columns + 1);
                return CropBox { top, left, height: rows, width: columns };
            }
        }
        self.centre_box(width, height)
    }

    fn centre_box(&self, width: usize, height: usize) -> CropBox {
        let ratio = width as f64 / height as f64;
        let [narrow, wide] = self.ratio;
        let (columns, rows) = if ratio < narrow {
            (width, (width as f64 / narrow).round_ties_even() as usize)
        } else if ratio > wide {
            ((height as f64 * wide).round_ties_even() as usize, height)
        } else {
            (width, height)
        };
        // A one-pixel side may round to nothing or past the edge.
        let (columns, rows) = (columns.clamp(1, width), rows.clamp(1, height));
        CropBox { top: (height - rows) / 2, left: (width - columns) / 2, height: rows, width: columns }
    }

    /// One view; `change` has what happens between crop and flip, with its draws.
    pub(crate) fn view(
        &self,
        image: &Image,
        stream: &mut Stream,
        out: &mut [f32],
        change: impl FnOnce(&mut Image, &mut Stream),
    ) {
        let from = self.draw_box(image.width, image.height, stream);
        let mut picture = self.cut(image, from);
        change(&mut picture, stream);
        let flip = unit(stream) < self.flip;
        self.normalize.write(&picture, flip, out);
    }

    /// The view of one box: 8-bit, before flip and normalisation.
    #[must_use]
    pub fn cut(&self, image: &Image, from: CropBox) -> Image {
        self.resampler.resize(image, from, self.size, self.size)
    }
}

impl Augment for RandomCrop {
    fn count(&self) -> usize {
        1
    }

    fn shape(&self) -> [usize; 3] {
        [3, self.size, self.size]
    }

    fn views(&self, image: &Image, draws: &Draws, views: &mut [&mut [f32]]) {
        for (index, out) in views.iter_mut().enumerate() {
            self.view(image, &mut draws.view(index), out, |_, _| ());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CropBox, CropConfig};
    use crate::Image;
    use crate::augment::{Augment, Draws};
    use occlude_random::Streams;

    #[test]
    fn boxes_lie_inside_and_keep_their_ranges() {
        let crop = CropConfig { size: 8, scale: [0.2, 0.5], ..CropConfig::default() }.check().unwrap();
        for index in 0..2000 {
            let found = crop.draw_box(97, 131, &mut Streams::new(4).stream("augment/0", 0, index));
            assert!(found.top + found.height <= 131 && found.left + found.width <= 97);
            let share = (found.width * found.height) as f64 / (97.0 * 131.0);
            assert!((0.19..0.51).contains(&share), "{found:?}");
            let ratio = found.width as f64 / found.height as f64;
            assert!((0.73..1.37).contains(&ratio), "{found:?}");
        }
    }

    #[test]
    fn a_strip_gets_the_largest_centred_box() {
        let crop = CropConfig::default().check().unwrap();
        let draw = |width, height| crop.draw_box(width, height, &mut Streams::new(0).stream("augment/0", 0, 0));
        assert_eq!(draw(300, 9), CropBox { top: 0, left: 144, height: 9, width: 12 });
        assert_eq!(draw(9, 300), CropBox { top: 144, left: 0, height: 12, width: 9 });
        assert_eq!(draw(1, 1), CropBox { top: 0, left: 0, height: 1, width: 1 });
        assert_eq!(draw(1, 500), CropBox { top: 249, left: 0, height: 1, width: 1 });
    }

    #[test]
    fn a_full_square_with_a_sure_flip_is_the_mirrored_image() {
        let config = CropConfig { size: 4, scale: [1.0, 1.0], ratio: [1.0, 1.0], flip: 1.0, ..CropConfig::default() };
        let config = CropConfig { mean: [0.0; 3], std: [1.0 / 255.0; 3], ..config };
        let image = Image { width: 4, height: 4, pixels: (0..48).collect() };
        let mut view = [0.0; 48];
        let draws = Draws::new(Streams::new(1), 0, 0);
        config.check().unwrap().views(&image, &draws, &mut [&mut view]);
        let red: Vec<i32> = view[..8].iter().map(|value| value.round() as i32).collect();
        assert_eq!(red, [9, 6, 3, 0, 21, 18, 15, 12]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |config: CropConfig| config.check().unwrap_err().field;
        assert_eq!(refused(CropConfig { size: 0, ..CropConfig::default() }), "size");
        assert_eq!(refused(CropConfig { scale: [0.5, 1.5], ..CropConfig::default() }), "scale");
        assert_eq!(refused(CropConfig { scale: [0.9, 0.5], ..CropConfig::default() }), "scale");
        assert_eq!(refused(CropConfig { ratio: [f64::NAN, 1.0], ..CropConfig::default() }), "ratio");
        assert_eq!(refused(CropConfig { flip: 2.0, ..CropConfig::default() }), "flip");
        assert_eq!(refused(CropConfig { std: [0.0; 3], ..CropConfig::default() }), "std");
    }
}
