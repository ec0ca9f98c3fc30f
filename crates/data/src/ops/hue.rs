//! Turning colours round the circle of hues, by way of 8-bit HSV.
//!
//! The reference goes through f64 here and there. f32 in the order below gives the same bytes for each of the 2^24
//! colours, without a branch: sums with one rounding each, and quotients whose exact value is never as near to the next
//! byte as their error.

use crate::Image;
use crate::vector::{byte, choose, fast, whole};

/// Turns all hues by `turn` of the circle, -0.5 to 0.5, in steps of 1/256. Hue and saturation are rounded to 8 bits on
/// the way, so that even a turn by 0 changes an image.
pub fn hue(image: &mut Image, turn: f64) {
    // Truncated toward zero, modulo 256.
    let steps = f32::from(((255.0 * turn) as i32).rem_euclid(256) as u8);
    let (blocks, rest) = image.pixels.as_chunks_mut::<3>().0.as_chunks_mut::<BLOCK>();
    let mut last = [[0; 3]; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    fast(
        #[inline(always)]
        || {
            for block in blocks.iter_mut() {
                turn_block(block, steps);
            }
            turn_block(&mut last, steps);
        },
    );
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Pixels that are turned at a time, channel by channel.
const BLOCK: usize = 32;

#[inline(always)]
fn turn_block(pixels: &mut [[u8; 3]; BLOCK], steps: f32) {
    let mut channels = [[0.0; BLOCK]; 3];
    for (lane, pixel) in pixels.iter().enumerate() {
        for (channel, &value) in channels.iter_mut().zip(pixel) {
            channel[lane] = f32::from(value);
        }
    }
    let [reds, greens, blues] = &mut channels;
    for ((red, green), blue) in reds.iter_mut().zip(greens).zip(blues) {
        let (hue, saturation, value) = hsv([*red, *green, *blue]);
        let turned = hue + steps;
        [*red, *green, *blue] = rgb(choose(turned > 255.0, turned - 256.0, turned), saturation, value);
    }
    for (lane, pixel) in pixels.iter_mut().enumerate() {
        for (channel, value) in channels.iter().zip(pixel) {
            *value = byte(channel[lane]);
        }
    }
}

/// Hue, saturation and value, whole numbers between 0 and 255.
#[inline(always)]
fn hsv([red, green, blue]: [f32; 3]) -> (f32, f32, f32) {
    let (larger, smaller) = (choose(red > green, red, green), choose(red > green, green, red));
    let (most, least) = (choose(larger > blue, larger, blue), choose(smaller < blue, smaller, blue));
    let middle = red + green + blue - most - least;
    let span = most - least;
    // Of the three distances from the largest, over the span, one is 0 and one 1.
    let part = (most - middle) / choose(span > 0.0, span, 1.0);
    let (red_least, blue_least) = (red == least, blue == least);
    let below_red = choose(blue_least, 1.0 - part, part - 1.0);
    let below_green = choose(blue_least, 1.0 + part, 3.0 - part);
    let below_blue = choose(red_least, 3.0 + part, 5.0 - part);
    let sixths = choose(red == most, below_red, choose(green == most, below_green, below_blue));
    let turns = sixths / 6.0;
    let turns = choose(turns < 0.0, turns + 1.0, turns);
    let hue = choose(span > 0.0, whole_255(turns), 0.0);
    (hue, whole_255(span / choose(most > 1.0, most, 1.0)), most)
}

/// The whole part of `255 * x`, 0 <= x <= 1, without rounding the product.
#[inline(always)]
fn whole_255(x: f32) -> f32 {
    let more = 256.0 * x;
    let whole = whole(more);
    whole - choose(more - whole < x, 1.0, 0.0)
}

/// The colour of hue, saturation and value.
#[inline(always)]
fn rgb(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    // Sixths of the circle; from 0 to 85, how far along.
    let sector = whole(2.0 * hue / 85.0);
    let along = 2.0 * hue - 85.0 * sector;
    // Of the six sectors the channel falls in the odd ones and rises in the even ones.
    let falls = (sector == 1.0) | (sector == 3.0) | (sector == 5.0);
    let between = faded(value, saturation, choose(falls, along, 85.0 - along));
    let least = faded(value, saturation, 85.0);
    let of = |most: bool, middle: bool| choose(most, value, choose(middle, between, least));
    // The end of the circle, sector 6, is its beginning.
    [
        of((sector == 0.0) | (sector >= 5.0), (sector == 1.0) | (sector == 4.0)),
        of((sector == 1.0) | (sector == 2.0), (sector == 0.0) | (sector == 3.0) | (sector == 6.0)),
        of((sector == 3.0) | (sector == 4.0), (sector == 2.0) | (sector == 5.0)),
    ]
}

/// `value` without `by / 85` of what `saturation` takes. Everything up to the division is exact.
#[inline(always)]
fn faded(value: f32, saturation: f32, by: f32) -> f32 {
    whole((value * (21_675.0 - saturation * by) + 10_837.5) / 21_675.0)
}

#[cfg(test)]
mod tests {
    use super::hue;
    use crate::Image;

    /// As the specification has it, with the reference's f64.
    fn plain([red, green, blue]: [u8; 3], steps: u8) -> [u8; 3] {
        let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
        let (mut hue, mut saturation) = (0, 0);
        if most > least {
            let span = f32::from(most - least);
            let distance = |value: u8| f64::from(f32::from(most - value) / span);
            let (rc, gc, bc) = (distance(red), distance(green), distance(blue));
            let sixths = if red == most {
                bc - gc
            } else if green == most {
                2.0 + rc - bc
            } else {
                4.0 + gc - rc
            };
            let turns = (f64::from(sixths as f32) / 6.0 + 1.0) % 1.0;
            hue = (255.0 * f64::from(turns as f32)) as u8;
            saturation = (255.0 * f64::from(span / f32::from(most))) as u8;
        }
        if saturation == 0 {
            return [most; 3];
        }
        let sixths = f64::from(hue.wrapping_add(steps)) * 6.0 / 255.0;
        let along = sixths - sixths.floor();
        let faded = |by: f64| (f64::from(most) * (1.0 - f64::from(saturation) / 255.0 * by)).round() as u8;
        let (p, q, t) = (faded(1.0), faded(along), faded(1.0 - along));
        match sixths as u8 % 6 {
            0 => [most, t, p],
            1 => [q, most, p],
            2 => [p, most, t],
            3 => [p, q, most],
            4 => [t, p, most],
            _ => [most, p, q],
        }
    }

    #[test]
    fn every_colour_turns_as_the_specification_says() {
        for red in 0..=255 {
            let colours = (0..=255).flat_map(|green| (0..=255).map(move |blue| [red, green, blue]));
            let mut image = Image { width: 256, height: 256, pixels: colours.clone().flatten().collect() };
            hue(&mut image, 0.07);
            for (colour, turned) in colours.zip(image.pixels.as_chunks::<3>().0) {
                assert_eq!(*turned, plain(colour, 17), "{colour:?}");
            }
        }
    }

    #[test]
    fn turns_are_truncated_toward_zero() {
        let turned = |turn| {
            let mut image = Image { width: 1, height: 1, pixels: vec![255, 0, 0] };
            hue(&mut image, turn);
            image.pixels
        };
        assert_eq!(turned(0.0), [255, 0, 0]);
        assert_eq!(turned(0.0039), [255, 0, 0]);
        assert_eq!(turned(-0.0039), [255, 0, 0]);
        assert_eq!(turned(0.004), plain([255, 0, 0], 1));
        assert_eq!(turned(-0.004), plain([255, 0, 0], 255));
        assert_eq!(turned(0.5), plain([255, 0, 0], 127));
        assert_eq!(turned(-0.5), plain([255, 0, 0], 129));
    }
}
