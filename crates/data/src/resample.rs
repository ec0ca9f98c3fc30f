//! Antialiased resampling in 8 bits, bit for bit as the reference pipelines do it.
//!
//! The filter's support grows with the down-scaling factor and its weights are rounded to 22 fractional bits; a
//! horizontal and a vertical pass, each rounded and clipped to 8 bits (CAPI specification, section 3; MOCA
//! specification, section 21). Both are the same weighted sums of rows: for the horizontal one the picture is turned on
//! its side, since whole rows are what vector instructions take.

use crate::Image;
use crate::crop::CropBox;
use crate::vector::{Line, fast, fill};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

const FRACTION: u32 = 22;
/// Tables kept for reuse. A table of a 300-pixel side is a few KB; beyond this many sizes they are made anew.
const KEPT_TABLES: usize = 4096;
/// Rows that are turned on their side at a time: they stay in the cache, and their colours fill whole vectors.
const STRIP: usize = 32;

/// How an image is resampled; both ways average where it shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// A triangle over two pixels. The horizontal pass is the first, except where the height loses more than twice as many
    /// pixels as the width: so Pillow does it from version 13 on, by which the reference images were made.
    Bilinear,
    /// The cubic with a = -0.5, over four pixels; the horizontal pass is always the first.
    #[default]
    Bicubic,
}

impl Interpolation {
    /// Pixels on either side of the centre that count, where nothing shrinks.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The weight at distance `x`; 0 beyond the support.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }

    /// Whether the vertical pass comes first, from one width and height to another.
    fn vertical_first(self, (width, height): (usize, usize), to: (usize, usize)) -> bool {
        self == Self::Bilinear && height > to.1 && height - to.1 > 2 * width.saturating_sub(to.0)
    }
}

/// The taps of every output position along one axis.
#[derive(Debug)]
struct Table {
    /// First tap and weights of each output position: `weights[start..end]`.
    taps: Vec<Taps>,
    weights: Vec<i32>,
}

#[derive(Clone, Copy, Debug)]
struct Taps {
    first: usize,
    start: usize,
    end: usize,
}

impl Table {
    fn new(interpolation: Interpolation, input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let reach = interpolation.support() * stretch;
        let mut table = Self { taps: Vec::with_capacity(output), weights: Vec::new() };
        let mut exact = Vec::new();
        for position in 0..output {
            let centre = (position as f64 + 0.5) * scale;
            // `as usize` truncates and clips below at 0, as the recipe asks.
            let first = (centre - reach + 0.5) as usize;
            let last = ((centre + reach + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((first..last).map(|tap| interpolation.weight((tap as f64 - centre + 0.5) / stretch)));
            let total: f64 = exact.iter().sum();
            let start = table.weights.len();
            // Half away from zero.
            let fixed = |weight: &f64| (weight / total * f64::from(1_u32 << FRACTION)).round() as i32;
            table.weights.extend(exact.iter().map(fixed));
            table.taps.push(Taps { first, start, end: table.weights.len() });
        }
        table
    }

    /// Writes the weighted sums of rows that the taps ask for, `length` values each; the rows begin `stride` values apart.
    fn weigh_rows(&self, rows: &[u8], stride: usize, out: &mut [u8], length: usize) {
        fast(
            #[inline(always)]
            || {
                for (row, taps) in out.chunks_exact_mut(length).zip(&self.taps) {
                    let weights = &self.weights[taps.start..taps.end];
                    fill(row, &Weighted { rows: &rows[taps.first * stride..], stride, weights });
                }
            },
        );
    }
}

/// One row out of as many rows as there are weights.
struct Weighted<'a> {
    rows: &'a [u8],
    stride: usize,
    weights: &'a [i32],
}

impl Line for Weighted<'_> {
    #[inline(always)]
    fn values<const N: usize>(&self, mut at: usize) -> [u8; N] {
        let mut sums = [1_i32 << (FRACTION - 1); N];
        for &weight in self.weights {
            for (sum, &value) in sums.iter_mut().zip(&self.rows[at..at + N]) {
                *sum += i32::from(value) * weight;
            }
            at += self.stride;
        }
        let mut values = [0; N];
        for (value, sum) in values.iter_mut().zip(sums) {
            *value = (sum >> FRACTION).clamp(0, 255) as u8;
        }
        values
    }
}

/// Resamples in one way, keeping the weight tables of the sizes it has met.
#[derive(Debug, Default)]
pub(crate) struct Resampler {
    interpolation: Interpolation,
    tables: RwLock<HashMap<(usize, usize), Arc<Table>>>,
}

impl Resampler {
    pub(crate) fn new(interpolation: Interpolation) -> Self {
        Self { interpolation, tables: RwLock::default() }
    }

    /// The part `from` of `image` (inside it), resized to `width` x `height`. A side that keeps its length is not touched.
    pub(crate) fn resize(&self, image: &Image, from: CropBox, width: usize, height: usize) -> Image {
        let part = Part::of(image, from);
        let pixels = match (from.width == width, from.height == height) {
            (true, true) => part.copied(),
            (true, false) => self.vertical(part, height),
            (false, true) => self.horizontal(part, width),
            (false, false) if self.interpolation.vertical_first((from.width, from.height), (width, height)) => {
                let pixels = self.vertical(part, height);
                self.horizontal(Part { pixels: &pixels, stride: from.width, width: from.width, height }, width)
            }
            (false, false) => {
                let pixels = self.horizontal(part, width);
                self.vertical(Part { pixels: &pixels, stride: width, width, height: from.height }, height)
            }
        };
        Image { width, height, pixels }
    }

    fn table(&self, input: usize, output: usize) -> Arc<Table> {
        let key = (input, output);
        if let Some(table) = self.tables.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(table);
        }
        let table = Arc::new(Table::new(self.interpolation, input, output));
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if tables.len() < KEPT_TABLES {
            tables.insert(key, Arc::clone(&table));
        }
        table
    }

    /// Rows of `width` pixels.
    fn horizontal(&self, part: Part, width: usize) -> Vec<u8> {
        let table = self.table(part.width, width);
        let (pixels, _) = part.pixels.as_chunks::<3>();
        let mut out = vec![[0_u8; 3]; width * part.height];
        let strip = STRIP.min(part.height);
        let (mut wide, mut narrow) = (vec![[0_u8; 3]; strip * part.width], vec![[0_u8; 3]; strip * width]);
        for (lines, pixels) in out.chunks_mut(strip * width).zip(pixels.chunks(strip * part.stride)) {
            let rows = lines.len() / width;
            let (wide, narrow) = (&mut wide[..rows * part.width], &mut narrow[..rows * width]);
            turn(pixels, part.stride, wide, rows);
            table.weigh_rows(wide.as_flattened(), 3 * rows, narrow.as_flattened_mut(), 3 * rows);
            turn(narrow, rows, lines, width);
        }
        out.into_flattened()
    }

    /// `height` rows.
    fn vertical(&self, part: Part, height: usize) -> Vec<u8> {
        let length = 3 * part.width;
        let mut out = vec![0_u8; length * height];
        self.table(part.height, height).weigh_rows(part.pixels, 3 * part.stride, &mut out, length);
        out
    }
}

/// A part of a picture.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// From its first pixel on.
    pixels: &'a [u8],
    /// Pixels from the beginning of one row to that of the next.
    stride: usize,
    width: usize,
    height: usize,
}

impl<'a> Part<'a> {
    fn of(image: &'a Image, from: CropBox) -> Self {
        let pixels = &image.pixels[3 * (from.top * image.width + from.left)..];
        Self { pixels, stride: image.width, width: from.width, height: from.height }
    }

    fn copied(self) -> Vec<u8> {
        let rows = self.pixels.chunks(3 * self.stride).take(self.height);
        rows.flat_map(|row| &row[..3 * self.width]).copied().collect()
    }
}

/// Makes a row of `out`, `rows` pixels long, of each column of the first `rows` rows of `pixels`, which begin `stride`
/// pixels apart.
fn turn(pixels: &[[u8; 3]], stride: usize, out: &mut [[u8; 3]], rows: usize) {
    let columns = out.len() / rows;
    for (row, line) in pixels.chunks(stride).take(rows).enumerate() {
        for (pixel, slot) in line[..columns].iter().zip(out[row..].iter_mut().step_by(rows)) {
            *slot = *pixel;
        }
    }
}

/// A map of labels, row-major `height * width`, resized to `to = (width, height)` by taking the nearest value.
#[must_use]
pub fn resize_nearest(labels: &[u8], (width, height): (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let nearest = |position: usize, input: usize, output: usize| {
        let source = ((position as f64 + 0.5) * input as f64 / output as f64) as usize;
        source.min(input.saturating_sub(1))
    };
    let columns: Vec<usize> = (0..to.0).map(|x| nearest(x, width, to.0)).collect();
    let rows = (0..to.1).map(|y| nearest(y, height, to.1));
    rows.flat_map(|row| columns.iter().map(move |column| labels[row * width + column])).collect()
}

#[cfg(test)]
mod tests {
    use super::{Interpolation, Resampler, Table, resize_nearest};
    use crate::Image;
    use crate::crop::CropBox;

    const BOTH: [Interpolation; 2] = [Interpolation::Bilinear, Interpolation::Bicubic];

    fn resize_bicubic(image: &Image, width: usize, height: usize) -> Image {
        Resampler::default().resize(image, CropBox::whole(image), width, height)
    }

    fn noise(width: usize, height: usize) -> Image {
        let pixels = (0..3 * width * height).map(|i| ((i * 7919 + i / 13 * 104_729) % 251) as u8).collect();
        Image { width, height, pixels }
    }

    #[test]
    fn weights_sum_to_one_and_stay_inside() {
        let sizes = [(1, 1), (1, 9), (7, 3), (100, 33), (33, 100), (500, 7)];
        for (interpolation, (input, output)) in BOTH.into_iter().flat_map(|way| sizes.map(|size| (way, size))) {
            let table = Table::new(interpolation, input, output);
            for taps in &table.taps {
                let weights = &table.weights[taps.start..taps.end];
                assert!(taps.first + weights.len() <= input && !weights.is_empty());
                let sum: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
                assert!(sum.abs_diff(1 << 22) <= weights.len() as u64, "{input} -> {output}: {sum}");
            }
        }
    }

    #[test]
    fn an_even_colour_stays_and_an_equal_size_copies() {
        let flat = Image { width: 13, height: 5, pixels: vec![201; 3 * 65] };
        assert!(resize_bicubic(&flat, 40, 2).pixels.iter().all(|&value| value == 201));
        let image = noise(9, 11);
        assert_eq!(resize_bicubic(&image, 9, 11), image);
    }

    #[test]
    fn a_box_gives_what_a_crop_and_resize_gives() {
        let image = noise(31, 23);
        let from = CropBox { top: 3, left: 7, height: 15, width: 20 };
        let resampler = Resampler::default();
        let cropped = resampler.resize(&image, from, 20, 15);
        assert_eq!(cropped.pixels[..6], image.pixels[3 * (3 * 31 + 7)..][..6]);
        assert_eq!(resampler.resize(&image, from, 8, 9), resize_bicubic(&cropped, 8, 9));
    }

    #[test]
    fn a_tall_box_is_resized_vertically_first_where_bilinear() {
        let image = noise(40, 100);
        for interpolation in BOTH {
            let resampler = Resampler::new(interpolation);
            let apart = |image: &Image, (width, height)| resampler.resize(image, CropBox::whole(image), width, height);
            for (width, height, tall) in [(29, 77, true), (29, 78, false), (50, 99, true), (50, 100, false)] {
                let across = apart(&apart(&image, (width, 100)), (width, height));
                let along = apart(&apart(&image, (40, height)), (width, height));
                let first = if tall && interpolation == Interpolation::Bilinear { &along } else { &across };
                assert!(apart(&image, (width, height)) == *first, "{interpolation:?} {width} {height}");
                assert!(height == 100 || across != along, "the order should show");
            }
        }
    }

    #[test]
    fn extreme_contrast_neither_wraps_nor_overflows() {
        let pixels = (0..64 * 64).flat_map(|i| [if (i / 4 + i / 256) % 2 == 0 { 255 } else { 0 }; 3]).collect();
        let image = Image { width: 64, height: 64, pixels };
        let (up, down) = (resize_bicubic(&image, 200, 200), resize_bicubic(&image, 5, 5));
        assert!(up.pixels.contains(&0) && up.pixels.contains(&255));
        assert!(down.pixels.iter().all(|value| (40..216).contains(value)));
    }

    #[test]
    fn nearest_labels_keep_their_values() {
        assert_eq!(resize_nearest(&[1, 2, 3, 4], (2, 2), (4, 2)), [1, 1, 2, 2, 3, 3, 4, 4]);
        assert_eq!(resize_nearest(&[1, 2, 3, 4, 5, 6], (3, 2), (1, 1)), [5]);
    }
}
