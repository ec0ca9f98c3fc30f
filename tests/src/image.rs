//! Small pictures that a test writes itself.

use std::path::Path;

/// Writes a picture of `side` x `side` pixels whose pattern depends on `seed`; the extension decides the format.
///
/// # Panics
/// The file cannot be written.
pub fn speckles(path: &Path, side: u32, seed: u32) {
    let picture = image::RgbImage::from_fn(side, side, |x, y| {
        let noise = |channel: u32| (x * 7 + y * 13 + seed * 31 + channel * 57).wrapping_mul(2_654_435_761) >> 24;
        image::Rgb([0, 1, 2].map(|channel| u8::try_from(noise(channel)).unwrap()))
    });
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture.save(path).unwrap();
}
