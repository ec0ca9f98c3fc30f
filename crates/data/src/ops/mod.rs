//! Operations on 8-bit images, each rounding to 8 bits, bit for bit those of the reference image library (MOCA
//! specification, section 21).
//!
//! They change the image that they are given. Factors are f32, as that library keeps them, and must be finite.

mod blur;
mod hue;

pub use blur::blur;
pub use hue::hue;

use crate::Image;
use crate::vector::{byte, fast, whole};

/// The luma of a pixel.
#[inline(always)]
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = 19_595 * u32::from(red) + 38_470 * u32::from(green) + 7_471 * u32::from(blue);
    ((sum + 32_768) >> 16) as u8
}

/// `base + factor * (value - base)`, truncated.
#[inline(always)]
fn blend(base: f32, value: u8, factor: f32) -> u8 {
    byte(whole((base + factor * (f32::from(value) - base)).clamp(0.0, 255.0)))
}

/// Writes `change` of each pixel.
fn each_pixel(image: &mut Image, change: impl Fn([u8; 3]) -> [u8; 3]) {
    let (pixels, _) = image.pixels.as_chunks_mut::<3>();
    fast(
        #[inline(always)]
        move || {
            for [red, green, blue] in pixels.iter_mut() {
                // Channel by channel: three bytes moved as one keep the loop from being vectorised.
                let [new_red, new_green, new_blue] = change([*red, *green, *blue]);
                (*red, *green, *blue) = (new_red, new_green, new_blue);
            }
        },
    );
}

/// Writes `change` of each value.
fn each_value(image: &mut Image, change: impl Fn(u8) -> u8) {
    let values = image.pixels.as_mut_slice();
    fast(
        #[inline(always)]
        move || {
            for value in values.iter_mut() {
                *value = change(*value);
            }
        },
    );
}

/// Luma in all three channels.
pub fn grey(image: &mut Image) {
    each_pixel(
        image,
        #[inline(always)]
        |pixel| [luma(pixel); 3],
    );
}

/// Away from black by `factor`: 0 is black, 1 the image itself.
pub fn brightness(image: &mut Image, factor: f32) {
    blend_all(image, 0.0, factor);
}

/// Away from the mean luma by `factor`: 0 is an even grey, 1 the image itself.
pub fn contrast(image: &mut Image, factor: f32) {
    let (pixels, _) = image.pixels.as_chunks::<3>();
    // Sums of a row fit into 32 bits.
    let width = image.width.max(1);
    let sum = fast(
        #[inline(always)]
        move || {
            let mut sum = 0;
            for row in pixels.chunks(width) {
                let mut of_row = 0;
                for pixel in row {
                    of_row += u32::from(luma(*pixel));
                }
                sum += u64::from(of_row);
            }
            sum
        },
    );
    let mean = (sum as f64 / pixels.len() as f64 + 0.5).trunc();
    blend_all(image, mean as f32, factor);
}

fn blend_all(image: &mut Image, base: f32, factor: f32) {
    each_value(
        image,
        #[inline(always)]
        move |value| blend(base, value, factor),
    );
}

/// Away from the luma of each pixel by `factor`: 0 is grey, 1 the image itself.
pub fn saturation(image: &mut Image, factor: f32) {
    each_pixel(
        image,
        #[inline(always)]
        move |pixel| {
            let [red, green, blue] = pixel;
            let base = f32::from(luma(pixel));
            [blend(base, red, factor), blend(base, green, factor), blend(base, blue, factor)]
        },
    );
}

/// Values from `threshold` on are turned into their negative.
pub fn solarise(image: &mut Image, threshold: u8) {
    each_value(
        image,
        #[inline(always)]
        move |value| if value < threshold { value } else { 255 - value },
    );
}

#[cfg(test)]
mod tests;
