//! Encoded bytes to 8-bit RGB.
//!
//! Grey is repeated in the three channels, palettes are looked up, 16-bit and float samples are scaled to 8 bits
//! (16-bit samples that never exceed 255 are taken as they are, floats go from 0 to 1), CMYK and YCCK are converted.
//! Alpha is dropped, not composited: the colours below a transparent pixel are what the file says. EXIF orientation is
//! ignored, as the reference pipelines do. The kind of file is told by its first bytes, never by its name.
//!
//! A JPEG that ends early is an error, never a half grey image: decoding is strict, and the end marker must be there.
//! What follows it, such as the film of a motion photo, is not looked at.

mod tiff;

use crate::{Error, Image, Result, limits};
use image::DynamicImage;
use std::io::Cursor;
use std::panic::catch_unwind;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Decodes a PNG, JPEG, WebP or TIFF. `name` is for the error message.
///
/// # Errors
/// [`Error::TooLarge`] before any pixel is allocated, [`Error::Decode`] for everything a decoder refuses.
pub fn decode(bytes: &[u8], name: &str) -> Result<Image> {
    // A decoder that panics on a strange file costs that file, not the run.
    let decoded = catch_unwind(|| match bytes {
        [0xFF, 0xD8, ..] => jpeg(bytes, name),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => tiff::read(bytes, name),
        _ => other(bytes, name),
    });
    let image = decoded.unwrap_or_else(|_| Err(Error::decode(name, "the decoder failed on it")))?;
    if image.is_whole() { Ok(image) } else { Err(Error::decode(name, "the image has no pixels")) }
}

fn jpeg(bytes: &[u8], name: &str) -> Result<Image> {
    let refused = |error: zune_jpeg::errors::DecodeErrors| Error::decode(name, format!("JPEG: {error:?}"));
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(refused)?;
    let info = decoder.info().ok_or_else(|| Error::decode(name, "JPEG: no image header"))?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    limits::picture(name, width as u64, height as u64)?;
    if !has_its_end(bytes) {
        return Err(Error::decode(name, "JPEG: cut short, the end marker is missing"));
    }
    let plain_ink = decoder.input_colorspace() == Some(ColorSpace::CMYK) && !is_adobe(bytes);
    if plain_ink {
        decoder.set_options(options.jpeg_set_out_colorspace(ColorSpace::CMYK));
    }
    let pixels = decoder.decode().map_err(refused)?;
    let pixels = if plain_ink { pixels.chunks_exact(4).flat_map(rgb_of_ink).collect() } else { pixels };
    Ok(Image { width, height, pixels })
}

/// Whether an Adobe segment (APP14) is present: then the decoder's assumption of inverted ink is right.
fn is_adobe(bytes: &[u8]) -> bool {
    bytes.windows(9).any(|window| window.starts_with(&[0xFF, 0xEE]) && window.ends_with(b"Adobe"))
}

/// Light that the inks let through.
fn rgb_of_ink(cmyk: &[u8]) -> [u8; 3] {
    let light = |ink: u8| u32::from(255 - ink);
    [0, 1, 2].map(|channel| ((light(cmyk[channel]) * light(cmyk[3]) + 127) / 255) as u8)
}

/// Whether the end-of-image marker is there, walking from marker to marker. Inside coded data 0xFF is followed by 0 or
/// a restart marker; all other segments state their length, so that neither a thumbnail inside one nor what follows the
/// end of the picture is mistaken for a part of it.
fn has_its_end(bytes: &[u8]) -> bool {
    const END: u8 = 0xD9;
    let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0x01 | 0xD0..=0xD8 | 0xFF);
    let mut rest = bytes;
    while let Some(found) = rest.windows(2).position(is_marker) {
        rest = &rest[found + 1..];
        match rest {
            [END, ..] => return true,
            [_, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest = rest.get(1 + length..).unwrap_or_default();
            }
            _ => return false,
        }
    }
    false
}

fn other(bytes: &[u8], name: &str) -> Result<Image> {
    let refused = |error: image::ImageError| Error::decode(name, error);
    let reader =
        || image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| Error::decode(name, e));
    if reader()?.format().is_none() {
        return Err(Error::decode(name, "neither PNG, JPEG, WebP nor TIFF"));
    }
    let (width, height) = reader()?.into_dimensions().map_err(refused)?;
    limits::picture(name, width.into(), height.into())?;
    let mut reader = reader()?;
    let mut bounds = image::Limits::default();
    // 16 bytes a pixel: four 32-bit channels, the widest that is converted.
    bounds.max_alloc = Some(limits::IMAGE_PIXELS * 16);
    reader.limits(bounds);
    let decoded = reader.decode().map_err(refused)?;
    let pixels = if is_narrow(&decoded) { low_bytes(&decoded) } else { decoded.into_rgb8().into_raw() };
    Ok(Image { width: width as usize, height: height as usize, pixels })
}

/// Whether 16-bit colours hold 8-bit values only, as some instruments write them; scaled, they would all be black.
fn is_narrow(image: &DynamicImage) -> bool {
    match image {
        DynamicImage::ImageLuma16(samples) => samples.pixels().all(|pixel| pixel[0] <= 255),
        DynamicImage::ImageLumaA16(samples) => samples.pixels().all(|pixel| pixel[0] <= 255),
        DynamicImage::ImageRgb16(samples) => samples.iter().all(|&sample| sample <= 255),
        DynamicImage::ImageRgba16(samples) => samples.pixels().all(|pixel| pixel.0[..3].iter().all(|&s| s <= 255)),
        _ => false,
    }
}

fn low_bytes(image: &DynamicImage) -> Vec<u8> {
    image.to_rgb16().into_raw().into_iter().map(|sample| sample.min(255) as u8).collect()
}
