//! RGB pictures as they go into a page.

use crate::{ReportError, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// Pictures up to this side are shown with hard pixel edges.
const PIXELATED_UP_TO: usize = 96;

/// An 8-bit RGB picture. Its bytes always fill its sides.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

impl Picture {
    /// A picture of RGB bytes, row by row.  [height * width * 3]
    ///
    /// # Errors
    /// A side is 0, or the bytes do not fill the sides.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|count| count.checked_mul(3)).unwrap_or(0);
        if expected == 0 || expected != pixels.len() {
            return Err(ReportError::Picture { width, height, expected, got: pixels.len() });
        }
        Ok(Self { width, height, pixels })
    }

    /// A picture whose pixel at (x, y) is `color(x, y)`.
    ///
    /// # Errors
    /// A side is 0.
    pub fn from_fn(width: usize, height: usize, color: impl Fn(usize, usize) -> [u8; 3]) -> Result<Self> {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| color(x, y)).collect();
        Self::new(width, height, pixels)
    }

    /// Pixels from left to right.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Pixels from top to bottom.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// Whether it has so few pixels that each is shown as a square.
    pub(crate) fn has_hard_edges(&self) -> bool {
        self.width.max(self.height) <= PIXELATED_UP_TO
    }

    /// The RGB bytes, row by row.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The colour at (x, y), or black outside.
    #[must_use]
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let start = 3 * (y * self.width + x);
        match self.pixels.get(start..start + 3) {
            Some(&[r, g, b]) if x < self.width => [r, g, b],
            _ => [0; 3],
        }
    }

    /// The same picture with every pixel a square of `factor` pixels (at least 1).
    ///
    /// # Errors
    /// The result would be too large to index.
    pub fn enlarged(&self, factor: usize) -> Result<Self> {
        let factor = factor.max(1);
        let too_large = ReportError::Picture { width: self.width, height: self.height, expected: 0, got: factor };
        let sides = self.width.checked_mul(factor).zip(self.height.checked_mul(factor));
        let (width, height) = sides.ok_or(too_large)?;
        Self::from_fn(width, height, |x, y| self.at(x / factor, y / factor))
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// The encoder refuses it: sides beyond 32 bits.
    pub fn png(&self) -> Result<Vec<u8>> {
        let mut file = Vec::new();
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        PngEncoder::new(&mut file).write_image(
            &self.pixels,
            side(self.width),
            side(self.height),
            ExtendedColorType::Rgb8,
        )?;
        Ok(file)
    }

    /// The picture as the address of an `img` tag.
    ///
    /// # Errors
    /// As [`Picture::png`].
    pub fn data_uri(&self) -> Result<String> {
        Ok(format!("data:image/png;base64,{}", STANDARD.encode(self.png()?)))
    }
}
