//! TIFF to 8-bit RGB: grey, RGB, palette, YCbCr and CMYK, with or without alpha, interleaved or in planes, of unsigned
//! samples of 1, 2, 4, 8, 16 or 32 bits or of floats from 0 to 1. The first picture of a file is taken.
//!
//! Refused by name: CIE Lab, signed samples, and chroma that is stored at a lower resolution outside JPEG compression.

use super::rgb_of_ink;
use crate::{Error, Image, Result, limits};
use std::io::Cursor;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

/// What the samples of a pixel mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Grey,
    Rgb,
    YCbCr,
    Ink,
}

impl Form {
    fn of(colour: ColorType) -> Option<Self> {
        match colour {
            // Grey with alpha is reported as any bands.
            ColorType::Gray(_) | ColorType::GrayA(_) | ColorType::Multiband { .. } => Some(Self::Grey),
            ColorType::RGB(_) | ColorType::RGBA(_) => Some(Self::Rgb),
            ColorType::YCbCr(_) => Some(Self::YCbCr),
            ColorType::CMYK(_) | ColorType::CMYKA(_) => Some(Self::Ink),
            _ => None,
        }
    }

    /// Samples of a pixel that are colour, not alpha.
    fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb | Self::YCbCr => 3,
            Self::Ink => 4,
        }
    }
}

pub(super) fn read(bytes: &[u8], name: &str) -> Result<Image> {
    let refused = |error: TiffError| Error::decode(name, format!("TIFF: {error}"));
    let mut file = Decoder::new(Cursor::new(bytes)).map_err(refused)?;
    let (width, height) = file.dimensions().map_err(refused)?;
    limits::picture(name, width.into(), height.into())?;
    let size = (width as usize, height as usize);
    let photometric: Option<u16> = file.find_tag_unsigned(Tag::PhotometricInterpretation).map_err(refused)?;
    let pixels = if photometric == Some(PALETTE) {
        let map = file.get_tag_u16_vec(Tag::ColorMap).map_err(refused)?;
        let indices = indices(bytes, size, name)?;
        looked_up(&indices, &map).ok_or_else(|| Error::decode(name, "TIFF: an index is not in its palette"))?
    } else {
        coloured(file, size, name)?
    };
    Ok(Image { width: size.0, height: size.1, pixels })
}

/// Pixels of a picture that states its colours.
fn coloured(file: Decoder<Cursor<&[u8]>>, size: (usize, usize), name: &str) -> Result<Vec<u8>> {
    let (colour, samples) = samples(file, size, name)?;
    let unread = || Error::decode(name, format!("TIFF: {colour:?} is not read; convert it to RGB"));
    let form = Form::of(colour).ok_or_else(unread)?;
    let mut levels = samples.levels(size, form.channels()).ok_or_else(unread)?;
    if colour.bit_depth() < 8 {
        let full = (1_u16 << colour.bit_depth()) - 1;
        levels.iter_mut().for_each(|level| *level = (u16::from(*level) * 255 / full) as u8);
    }
    Ok(match form {
        Form::Grey => levels.into_iter().flat_map(|level| [level; 3]).collect(),
        Form::Rgb => levels,
        Form::YCbCr => levels.chunks_exact(3).flat_map(rgb_of_luma).collect(),
        Form::Ink => levels.chunks_exact(4).flat_map(rgb_of_ink).collect(),
    })
}

/// The colour of brightness and two differences, by the coefficients that a file has unless it says otherwise (Rec. 601).
fn rgb_of_luma(pixel: &[u8]) -> [u8; 3] {
    let [y, cb, cr] = [f32::from(pixel[0]), f32::from(pixel[1]) - 128.0, f32::from(pixel[2]) - 128.0];
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|level| level.round() as u8)
}

/// Decoded samples, interleaved or plane by plane.
struct Samples {
    values: DecodingResult,
    planes: bool,
    /// Bits of a sample; below 8 they are packed, each row from a new byte on.
    bits: u8,
}

fn samples(file: Decoder<Cursor<&[u8]>>, size: (usize, usize), name: &str) -> Result<(ColorType, Samples)> {
    let refused = |error: TiffError| Error::decode(name, format!("TIFF: {error}"));
    let mut bounds = Limits::default();
    // 16 bytes a pixel: four 32-bit channels.
    bounds.decoding_buffer_size = size.0 * size.1 * 16;
    bounds.intermediate_buffer_size = limits::ENCODED_BYTES as usize;
    let mut file = file.with_limits(bounds);
    let colour = file.colortype().map_err(refused)?;
    let mut values = DecodingResult::U8(Vec::new());
    let layout = file.read_image_to_buffer(&mut values).map_err(refused)?;
    Ok((colour, Samples { values, planes: layout.planes > 1, bits: colour.bit_depth() }))
}

impl Samples {
    /// The first `keep` channels of every pixel as bytes, interleaved; packed samples are not yet scaled.
    fn levels(&self, size: (usize, usize), keep: usize) -> Option<Vec<u8>> {
        let unit = |value: f64| (value * 255.0).round() as u8;
        match &self.values {
            DecodingResult::U8(values) if self.bits < 8 => {
                (keep == 1 && matches!(self.bits, 1 | 2 | 4)).then(|| unpacked(values, size, self.bits))
            }
            DecodingResult::U8(values) => self.channels(values, size, keep),
            DecodingResult::U16(values) => {
                let kept = self.channels(values, size, keep)?;
                let narrow = kept.iter().all(|&value| value <= 255);
                let scaled = |value: u16| ((u32::from(value) + 128) / 257) as u8;
                Some(kept.into_iter().map(|value| if narrow { value as u8 } else { scaled(value) }).collect())
            }
            DecodingResult::U32(values) => mapped(self.channels(values, size, keep)?, |value| (value >> 24) as u8),
            DecodingResult::F16(values) => mapped(self.channels(values, size, keep)?, |value| unit(value.to_f64())),
            DecodingResult::F32(values) => mapped(self.channels(values, size, keep)?, |value| unit(value.into())),
            DecodingResult::F64(values) => mapped(self.channels(values, size, keep)?, unit),
            _ => None,
        }
    }

    /// The first `keep` channels of every pixel, interleaved.
    fn channels<T: Copy>(&self, values: &[T], (width, height): (usize, usize), keep: usize) -> Option<Vec<T>> {
        let pixels = width * height;
        let channels = values.len() / pixels;
        if channels < keep {
            return None;
        }
        let place = |pixel, channel| if self.planes { channel * pixels + pixel } else { pixel * channels + channel };
        Some((0..pixels).flat_map(|pixel| (0..keep).map(move |channel| values[place(pixel, channel)])).collect())
    }
}

fn mapped<T>(values: Vec<T>, level: impl Fn(T) -> u8) -> Option<Vec<u8>> {
    Some(values.into_iter().map(level).collect())
}

/// Samples of 1, 2 or 4 bits, one a byte.
fn unpacked(packed: &[u8], (width, height): (usize, usize), bits: u8) -> Vec<u8> {
    let bits = usize::from(bits);
    let rows = packed.chunks_exact((width * bits).div_ceil(8)).take(height);
    let sample = |row: &[u8], column: usize| {
        let first = column * bits;
        (row[first / 8] << (first % 8)) >> (8 - bits)
    };
    rows.flat_map(|row| (0..width).map(move |column| sample(row, column))).collect()
}

/// Photometric interpretations.
const PALETTE: u16 = 3;
const BLACK_IS_ZERO: u16 = 1;

/// The places in the palette. The decoder refuses palettes but not grey, and the indices are stored like it.
fn indices(bytes: &[u8], size: (usize, usize), name: &str) -> Result<Vec<usize>> {
    let refused = |error: TiffError| Error::decode(name, format!("TIFF: {error}"));
    let unread = |reason: &str| Error::decode(name, format!("TIFF: {reason}"));
    let grey = as_grey(bytes).ok_or_else(|| unread("the entry that announces the palette is not readable"))?;
    let (_, samples) = samples(Decoder::new(Cursor::new(&grey[..])).map_err(refused)?, size, name)?;
    let found = match &samples.values {
        DecodingResult::U16(values) => {
            samples.channels(values, size, 1).map(|kept| kept.into_iter().map(usize::from).collect())
        }
        _ => samples.levels(size, 1).map(|kept| kept.into_iter().map(usize::from).collect()),
    };
    found.ok_or_else(|| unread("the palette has indices of an unusual kind"))
}

/// The colours of `indices`: `map` lists all reds, then all greens, then all blues.
fn looked_up(indices: &[usize], map: &[u16]) -> Option<Vec<u8>> {
    let narrow = map.iter().all(|&level| level <= 255);
    let level = |level: &u16| if narrow { *level as u8 } else { (*level >> 8) as u8 };
    let count = map.len() / 3;
    let colour = |index: usize, channel: usize| map.get(channel * count + index).filter(|_| index < count).map(level);
    indices.iter().flat_map(|&index| (0..3).map(move |channel| (index, channel))).map(|(i, c)| colour(i, c)).collect()
}

/// A copy of the file that announces grey in place of a palette: one entry of the first directory is rewritten.
fn as_grey(bytes: &[u8]) -> Option<Vec<u8>> {
    let little = bytes.first() == Some(&b'I');
    let number = |at: usize, width: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(width)?)?;
        let push = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        let value = if little { field.iter().rev().fold(0, push) } else { field.iter().fold(0, push) };
        usize::try_from(value).ok()
    };
    let big = number(2, 2)? == 43;
    let (directory, count_width, entry) = if big { (number(8, 8)?, 8, 20) } else { (number(4, 4)?, 2, 12) };
    let first = directory.checked_add(count_width)?;
    let tag = usize::from(Tag::PhotometricInterpretation.to_u16());
    let found = (0..number(directory, count_width)?)
        .map_while(|place| first.checked_add(place.checked_mul(entry)?).filter(|&at| at < bytes.len()))
        .find(|&at| number(at, 2) == Some(tag))?;
    let value = found + if big { 12 } else { 8 };
    let grey = if little { BLACK_IS_ZERO.to_le_bytes() } else { BLACK_IS_ZERO.to_be_bytes() };
    let mut copy = bytes.to_vec();
    copy.get_mut(value..value + 2)?.copy_from_slice(&grey);
    Some(copy)
}
