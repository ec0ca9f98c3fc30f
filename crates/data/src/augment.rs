//! What an augmentation is, and how pixels become numbers.

use crate::Image;
use occlude_random::{Stream, Streams};
use occlude_settings::{ConfigError, require};

/// The random streams of one sample in one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    streams: Streams,
    epoch: u64,
    sample: u64,
}

impl Draws {
    /// The draws of sample `sample` in `epoch`.
    #[must_use]
    pub fn new(streams: Streams, epoch: u64, sample: u64) -> Self {
        Self { streams, epoch, sample }
    }

    /// The stream of one view: purpose `augment/<view>`, keyed by epoch and sample.
    #[must_use]
    pub fn view(&self, view: usize) -> Stream {
        self.streams.stream(&format!("augment/{view}"), self.epoch, self.sample)
    }
}

/// Turns an image into one or more views of equal size.
pub trait Augment: Send + Sync {
    /// Views per image.
    fn count(&self) -> usize;

    /// `[3, height, width]` of each view.
    fn shape(&self) -> [usize; 3];

    /// Writes the views of `image`, each channel first and normalised; `views` has [`Augment::count`] slices of the
    /// size of [`Augment::shape`]. Draws only from `draws`, so that equal keys give equal views.
    fn views(&self, image: &Image, draws: &Draws, views: &mut [&mut [f32]]);
}

/// 8-bit values to normalised floats: `(value / 255 - mean) / std` in f32, per channel.
#[derive(Clone, PartialEq)]
pub struct Normalize {
    mean: [f32; 3],
    std: [f32; 3],
    /// The result for each channel and 8-bit value.
    table: Box<[[f32; 256]; 3]>,
}

impl std::fmt::Debug for Normalize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Normalize").field("mean", &self.mean).field("std", &self.std).finish_non_exhaustive()
    }
}

impl Normalize {
    /// The statistics that nearly all published recipes use.
    pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    /// See [`Normalize::IMAGENET_MEAN`].
    pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

    /// Checks `mean` and `std`, given on the scale 0 to 1.
    ///
    /// # Errors
    /// A mean that is not finite; a deviation that is not positive and finite.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Result<Self, ConfigError> {
        for value in mean {
            require("mean", value, "must be finite", |v| v.is_finite())?;
        }
        for value in std {
            require("std", value, "must be positive and finite", |v| *v > 0.0 && v.is_finite())?;
        }
        let mut table = Box::new([[0.0; 256]; 3]);
        for (channel, row) in table.iter_mut().enumerate() {
            for (value, slot) in row.iter_mut().enumerate() {
                *slot = (value as f32 / 255.0 - mean[channel]) / std[channel];
            }
        }
        Ok(Self { mean, std, table })
    }

    /// The picture that normalised values `[3, height, width]` come nearest to: what is too dark or too bright is cut off, and
    /// what is no number is black.
    #[must_use]
    pub fn picture(&self, values: &[f32], width: usize, height: usize) -> Image {
        let (count, mut pixels) = (width * height, Vec::with_capacity(3 * width * height));
        for at in 0..count {
            for channel in 0..3 {
                let value = values.get(channel * count + at).copied().unwrap_or(0.0);
                // A cast cuts off at both ends.
                pixels.push((255.0 * (value * self.std[channel] + self.mean[channel])).round() as u8);
            }
        }
        Image { width, height, pixels }
    }

    /// Mean of each channel on the scale 0 to 1.
    #[must_use]
    pub fn mean(&self) -> [f32; 3] {
        self.mean
    }

    /// Standard deviation of each channel on the scale 0 to 1.
    #[must_use]
    pub fn std(&self) -> [f32; 3] {
        self.std
    }

    /// Writes `image` to `out`, `[3, height, width]`, mirrored from left to right if `flip`.
    pub fn write(&self, image: &Image, flip: bool, out: &mut [f32]) {
        let plane = image.width * image.height;
        for (channel, (table, out)) in self.table.iter().zip(out.chunks_exact_mut(plane)).enumerate() {
            let rows = image.pixels.chunks_exact(3 * image.width);
            for (line, row) in out.chunks_exact_mut(image.width).zip(rows) {
                let values = row.iter().skip(channel).step_by(3).map(|&value| table[usize::from(value)]);
                if flip {
                    line.iter_mut().rev().zip(values).for_each(|(slot, value)| *slot = value);
                } else {
                    line.iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Draws, Normalize};
    use crate::Image;
    use occlude_random::Streams;
    use rand::Rng;

    #[test]
    fn channels_come_first_and_a_flip_mirrors_columns() {
        let normalize = Normalize::new([0.0; 3], [1.0 / 255.0; 3]).unwrap();
        let image = Image { width: 2, height: 2, pixels: (1..=12).collect() };
        let write = |flip| {
            let mut out = [0.0; 12];
            normalize.write(&image, flip, &mut out);
            out.map(|value| value.round() as i32)
        };
        assert_eq!(write(false), [1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12]);
        assert_eq!(write(true), [4, 1, 10, 7, 5, 2, 11, 8, 6, 3, 12, 9]);
    }

    #[test]
    fn a_zero_deviation_is_refused() {
        let refused = Normalize::new([0.5; 3], [0.2, 0.0, 0.2]).unwrap_err();
        assert_eq!(refused.to_string(), "std = 0: must be positive and finite");
        assert!(Normalize::new([f32::NAN; 3], [1.0; 3]).is_err());
    }

    #[test]
    fn each_view_epoch_and_sample_has_its_own_stream() {
        let draw = |epoch, sample, view| Draws::new(Streams::new(9), epoch, sample).view(view).random::<u64>();
        assert_eq!(draw(1, 2, 0), draw(1, 2, 0));
        assert!([draw(2, 2, 0), draw(1, 3, 0), draw(1, 2, 1)].iter().all(|&other| other != draw(1, 2, 0)));
    }
}
