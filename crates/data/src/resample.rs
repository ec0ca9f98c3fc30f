//! Antialiased bicubic resampling in 8 bits, bit for bit as the reference pipelines do it.
//!
//! Kernel parameter a = -0.5, support grown by the down-scaling factor, weights rounded to 22 fractional bits; a
//! horizontal pass, then a vertical one, each rounded and clipped to 8 bits (CAPI specification, section 3).

use crate::Image;
use crate::crop::CropBox;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

const FRACTION: u32 = 22;
/// Tables kept for reuse. A table of a 300-pixel side is a few KB; beyond this many sizes they are made anew.
const KEPT_TABLES: usize = 4096;

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
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let mut table = Self { taps: Vec::with_capacity(output), weights: Vec::new() };
        let mut exact = Vec::new();
        for position in 0..output {
            let centre = (position as f64 + 0.5) * scale;
            // `as usize` truncates and clips below at 0, as the recipe asks.
            let first = (centre - 2.0 * stretch + 0.5) as usize;
            let last = ((centre + 2.0 * stretch + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((first..last).map(|tap| kernel((tap as f64 - centre + 0.5) / stretch)));
            let total: f64 = exact.iter().sum();
            let start = table.weights.len();
            let fixed = |weight: &f64| (weight / total * f64::from(1_u32 << FRACTION)).round() as i32;
            table.weights.extend(exact.iter().map(fixed));
            table.taps.push(Taps { first, start, end: table.weights.len() });
        }
        table
    }
}

/// The cubic kernel with a = -0.5.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Resamples, keeping the weight tables of the sizes it has met.
#[derive(Debug, Default)]
pub(crate) struct Resampler {
    tables: RwLock<HashMap<(usize, usize), Arc<Table>>>,
}

impl Resampler {
    /// The part `from` of `image` (inside it), resized to `width` x `height`.
    pub(crate) fn resize(&self, image: &Image, from: CropBox, width: usize, height: usize) -> Image {
        let rows = if from.width == width { crop(image, from) } else { self.horizontal(image, from, width) };
        let pixels = if from.height == height { rows } else { self.vertical(&rows, from.height, width, height) };
        Image { width, height, pixels }
    }

    fn table(&self, input: usize, output: usize) -> Arc<Table> {
        let key = (input, output);
        if let Some(table) = self.tables.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(table);
        }
        let table = Arc::new(Table::new(input, output));
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if tables.len() < KEPT_TABLES {
            tables.insert(key, Arc::clone(&table));
        }
        table
    }

    fn horizontal(&self, image: &Image, from: CropBox, width: usize) -> Vec<u8> {
        let table = self.table(from.width, width);
        let mut out = vec![0_u8; 3 * width * from.height];
        for (row, line) in out.chunks_exact_mut(3 * width).enumerate() {
            let offset = 3 * ((from.top + row) * image.width + from.left);
            let input = &image.pixels[offset..offset + 3 * from.width];
            for (pixel, taps) in line.chunks_exact_mut(3).zip(&table.taps) {
                let weights = &table.weights[taps.start..taps.end];
                let input = &input[3 * taps.first..3 * (taps.first + weights.len())];
                let mut sum = [1_i32 << (FRACTION - 1); 3];
                for (source, &weight) in input.chunks_exact(3).zip(weights) {
                    sum[0] += i32::from(source[0]) * weight;
                    sum[1] += i32::from(source[1]) * weight;
                    sum[2] += i32::from(source[2]) * weight;
                }
                for (value, sum) in pixel.iter_mut().zip(sum) {
                    *value = clip(sum);
                }
            }
        }
        out
    }

    fn vertical(&self, rows: &[u8], input_height: usize, width: usize, height: usize) -> Vec<u8> {
        let table = self.table(input_height, height);
        let line = 3 * width;
        let mut out = vec![0_u8; line * height];
        let mut sums = vec![0_i32; line];
        for (target, taps) in out.chunks_exact_mut(line).zip(&table.taps) {
            sums.fill(1 << (FRACTION - 1));
            let weights = &table.weights[taps.start..taps.end];
            for (source, &weight) in rows[taps.first * line..].chunks_exact(line).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (value, &sum) in target.iter_mut().zip(&sums) {
                *value = clip(sum);
            }
        }
        out
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

fn crop(image: &Image, from: CropBox) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * from.width * from.height);
    for row in from.top..from.top + from.height {
        let offset = 3 * (row * image.width + from.left);
        out.extend_from_slice(&image.pixels[offset..offset + 3 * from.width]);
    }
    out
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
    use super::{Resampler, Table, resize_nearest};
    use crate::Image;
    use crate::crop::CropBox;

    fn resize_bicubic(image: &Image, width: usize, height: usize) -> Image {
        Resampler::default().resize(image, CropBox::whole(image), width, height)
    }

    fn noise(width: usize, height: usize) -> Image {
        let pixels = (0..3 * width * height).map(|i| ((i * 7919 + i / 13 * 104_729) % 251) as u8).collect();
        Image { width, height, pixels }
    }

    #[test]
    fn weights_sum_to_one_and_stay_inside() {
        for (input, output) in [(1, 1), (1, 9), (7, 3), (100, 33), (33, 100), (500, 7)] {
            let table = Table::new(input, output);
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
