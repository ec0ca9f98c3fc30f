//! Gaussian blur by three box passes along each axis.

use crate::Image;
use crate::vector::{Line, fast, fill};

/// Passes along each axis.
const PASSES: usize = 3;
/// Fractional bits of a weight.
const FRACTION: u32 = 24;

/// Blurs with a deviation of `sigma` pixels, at least 0. Beyond the edge its pixels are repeated. The time grows with
/// `sigma`.
pub fn blur(image: &mut Image, sigma: f32) {
    let window = Window::new(sigma);
    let length = 3 * image.width;
    if length == 0 || window.edge == 0 && window.reach == 0 {
        return;
    }
    let mut other = vec![0_u8; image.pixels.len()];
    window.across(&mut image.pixels, length);
    for _ in 0..PASSES {
        window.along(&image.pixels, &mut other, length);
        std::mem::swap(&mut image.pixels, &mut other);
    }
}

/// A box with soft ends: its weights, with [`FRACTION`] fractional bits.
struct Window {
    /// Whole pixels on either side of the centre.
    reach: usize,
    /// Of each whole pixel.
    inside: u32,
    /// Of the pixel beyond on either side.
    edge: u32,
}

impl Window {
    fn new(sigma: f32) -> Self {
        let radius = box_radius(sigma);
        let reach = radius as u32;
        let inside = ((1_u32 << FRACTION) as f32 / (2.0 * radius + 1.0)) as u32;
        let edge = (1_u32 << FRACTION).saturating_sub((2 * reach + 1) * inside) / 2;
        Self { reach: reach as usize, inside, edge }
    }

    /// Pixels that are taken together.
    fn taps(&self) -> usize {
        2 * self.reach + 3
    }

    /// All passes along rows of `length` values.
    fn across(&self, pixels: &mut [u8], length: usize) {
        let mut padded = vec![0_u8; length + 3 * (self.taps() - 1)];
        let starts: Vec<usize> = (0..self.taps()).map(|tap| 3 * tap).collect();
        fast(
            #[inline(always)]
            || {
                for row in pixels.chunks_exact_mut(length) {
                    for _ in 0..PASSES {
                        self.pad(row, &mut padded);
                        fill(row, &Smooth { window: self, pixels: &padded, starts: &starts });
                    }
                }
            },
        );
    }

    /// One pass from row to row.
    fn along(&self, pixels: &[u8], out: &mut [u8], length: usize) {
        let last = (pixels.len() / length).saturating_sub(1);
        let mut starts = vec![0; self.taps()];
        fast(
            #[inline(always)]
            || {
                for (at, row) in out.chunks_exact_mut(length).enumerate() {
                    for (tap, start) in starts.iter_mut().enumerate() {
                        *start = (at + tap).saturating_sub(self.reach + 1).min(last) * length;
                    }
                    fill(row, &Smooth { window: self, pixels, starts: &starts });
                }
            },
        );
    }

    /// Writes `row` with its ends repeated on either side, as far as the window reaches.
    fn pad(&self, row: &[u8], padded: &mut [u8]) {
        let (left, rest) = padded.split_at_mut(3 * (self.reach + 1));
        let (middle, right) = rest.split_at_mut(row.len());
        middle.copy_from_slice(row);
        left.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&row[..3]));
        right.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&row[row.len() - 3..]));
    }
}

/// The radius of a box whose threefold pass has the deviation `sigma`.
fn box_radius(sigma: f32) -> f32 {
    let variance = sigma * sigma / PASSES as f32;
    let whole = (((12.0 * f64::from(variance) + 1.0).sqrt() as f32 - 1.0) / 2.0).floor();
    let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + part / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

/// One line of a pass: the weighted sum of lines of `pixels`, from that of one edge to that of the other.
struct Smooth<'a> {
    window: &'a Window,
    pixels: &'a [u8],
    starts: &'a [usize],
}

impl Smooth<'_> {
    /// Adds to `sums` the values from `at` on of the line that begins at `start`.
    #[inline(always)]
    fn add<const N: usize>(&self, sums: &mut [u32; N], start: usize, at: usize) {
        for (sum, &value) in sums.iter_mut().zip(&self.pixels[start + at..start + at + N]) {
            *sum += u32::from(value);
        }
    }
}

impl Line for Smooth<'_> {
    #[inline(always)]
    fn values<const N: usize>(&self, at: usize) -> [u8; N] {
        let (mut whole, mut ends) = ([0_u32; N], [0_u32; N]);
        if let [first, inside @ .., last] = self.starts {
            for start in inside {
                self.add(&mut whole, *start, at);
            }
            self.add(&mut ends, *first, at);
            self.add(&mut ends, *last, at);
        }
        let mut values = [0; N];
        for ((value, whole), ends) in values.iter_mut().zip(whole).zip(ends) {
            let sum = self.window.inside * whole + self.window.edge * ends + (1 << (FRACTION - 1));
            *value = (sum >> FRACTION) as u8;
        }
        values
    }
}
