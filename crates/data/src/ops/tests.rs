//! Each operation against the reference tables, and what it leaves alone.

use super::{blur, brightness, contrast, grey, hue, saturation, solarise};
use crate::Image;

fn noise(width: usize, height: usize) -> Image {
    let pixels = (0..3 * width * height).map(|i| ((i * 7919 + i / 13 * 104_729) % 256) as u8).collect();
    Image { width, height, pixels }
}

fn changed(image: &Image, change: impl Fn(&mut Image)) -> Image {
    let mut image = image.clone();
    change(&mut image);
    image
}

#[test]
fn a_factor_of_one_changes_nothing_and_one_of_zero_leaves_the_base() {
    let image = noise(37, 5);
    for change in [brightness, contrast, saturation] {
        assert_eq!(changed(&image, |image| change(image, 1.0)), image);
    }
    assert!(changed(&image, |image| brightness(image, 0.0)).pixels.iter().all(|&value| value == 0));
    let even = changed(&image, |image| contrast(image, 0.0));
    assert!(even.pixels.iter().all(|&value| value == even.pixels[0]) && even.pixels[0] > 0);
    assert_eq!(changed(&image, |image| saturation(image, 0.0)), changed(&image, grey));
}

#[test]
fn factors_clip_at_black_and_white() {
    let pixel = |pixels: [u8; 3]| Image { width: 1, height: 1, pixels: pixels.to_vec() };
    assert_eq!(changed(&pixel([100, 200, 0]), |image| brightness(image, 2.0)).pixels, [200, 255, 0]);
    assert_eq!(changed(&pixel([255, 0, 0]), |image| saturation(image, 2.0)).pixels, [255, 0, 0]);
}

#[test]
fn solarising_keeps_what_is_below_the_threshold() {
    let image = Image { width: 2, height: 1, pixels: vec![0, 127, 128, 200, 255, 5] };
    assert_eq!(changed(&image, |image| solarise(image, 128)).pixels, [0, 127, 127, 55, 0, 5]);
    assert_eq!(changed(&image, |image| solarise(image, 0)).pixels, [255, 128, 127, 55, 0, 250]);
}

/// The passes as the specification writes them, value by value.
fn plain_blur(image: &Image, sigma: f32) -> Image {
    let variance = f64::from(sigma).powi(2) / 3.0;
    let whole = (((12.0 * variance + 1.0).sqrt() - 1.0) / 2.0).floor();
    let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    let radius = (whole + part / (6.0 * (variance - (whole + 1.0).powi(2)))) as f32;
    let reach = radius.trunc() as i64;
    let inside = (16_777_216.0 / (2.0 * radius + 1.0)).trunc() as i64;
    let edge = ((1 << 24) - (2 * reach + 1) * inside) / 2;
    let mut image = image.clone();
    for across in [true, true, true, false, false, false] {
        let before = image.clone();
        for at in 0..before.pixels.len() {
            let (pixel, channel) = (at / 3, at % 3);
            let (row, column) = ((pixel / before.width) as i64, (pixel % before.width) as i64);
            let value = |by: i64| {
                let (row, column) = if across { (row, column + by) } else { (row + by, column) };
                let row = row.clamp(0, before.height as i64 - 1) as usize;
                let column = column.clamp(0, before.width as i64 - 1) as usize;
                i64::from(before.pixels[3 * (row * before.width + column) + channel])
            };
            let whole: i64 = (-reach..=reach).map(value).sum();
            let ends = value(-reach - 1) + value(reach + 1);
            image.pixels[at] = ((inside * whole + edge * ends + (1 << 23)) >> 24) as u8;
        }
    }
    image
}

#[test]
fn a_blur_is_that_of_its_passes_at_any_size() {
    for (width, height) in [(1, 1), (2, 9), (11, 3), (23, 17), (40, 2)] {
        let image = noise(width, height);
        for sigma in [0.1, 0.73, 1.3, 1.6, 2.0, 5.5, 30.0] {
            assert_eq!(
                changed(&image, |image| blur(image, sigma)),
                plain_blur(&image, sigma),
                "{width} {height} {sigma}"
            );
        }
        assert_eq!(changed(&image, |image| blur(image, 0.0)), image);
    }
}

#[test]
fn nothing_happens_to_no_pixels() {
    let none = Image { width: 0, height: 0, pixels: Vec::new() };
    let change = |image: &mut Image| {
        grey(image);
        blur(image, 2.0);
        contrast(image, 0.5);
        hue(image, 0.1);
    };
    assert_eq!(changed(&none, change), none);
}
