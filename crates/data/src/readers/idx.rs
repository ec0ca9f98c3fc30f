//! IDX files, the form of the MNIST family: `...images-idx3-ubyte` with `...labels-idx1-ubyte`, gzipped or not. Grey
//! becomes RGB.

use super::file_name;
use crate::files::SharedFile;
use crate::fingerprint::Fingerprint;
use crate::{Dataset, Error, Image, Result, limits};
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const GZIP: [u8; 2] = [0x1F, 0x8B];

/// Images of one IDX file.
#[derive(Debug)]
pub(crate) struct Idx {
    images: Content,
    width: usize,
    height: usize,
    count: usize,
    labels: Vec<u8>,
    classes: Vec<String>,
}

/// Bytes of an IDX file: in place, or unpacked in memory where it was gzipped.
#[derive(Debug)]
enum Content {
    InPlace(SharedFile),
    Unpacked { path: PathBuf, bytes: Vec<u8> },
}

impl Content {
    fn path(&self) -> &Path {
        match self {
            Self::InPlace(file) => file.path(),
            Self::Unpacked { path, .. } => path,
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::InPlace(file) => file.read_at(buffer, offset),
            Self::Unpacked { bytes, .. } => {
                // The length was compared with the header when the file was opened.
                let start = offset as usize;
                buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
                Ok(())
            }
        }
    }
}

/// Dimensions and bytes of an IDX file of unsigned bytes with `axes` axes, its length compared with its header.
fn open_content(path: &Path, axes: u8) -> Result<(Vec<u64>, Content)> {
    let file = SharedFile::open(path, true)?;
    let mut start = [0_u8; 2];
    if file.length() >= 2 {
        file.read_at(&mut start, 0)?;
    }
    let header_bytes = 4 + 4 * usize::from(axes);
    let mut header = vec![0_u8; header_bytes];
    if start != GZIP {
        let found = file.length();
        if found >= header_bytes as u64 {
            file.read_at(&mut header, 0)?;
        }
        let dims = dimensions(path, &header, found, axes)?;
        expect_length(path, &dims, header_bytes, found)?;
        return Ok((dims, Content::InPlace(file)));
    }
    let mut unpack = GzDecoder::new(File::open(path).map_err(Error::io(path))?);
    let mut bytes = Vec::new();
    unpack.by_ref().take(header_bytes as u64).read_to_end(&mut bytes).map_err(Error::io(path))?;
    header[..bytes.len()].copy_from_slice(&bytes);
    let dims = dimensions(path, &header, bytes.len() as u64, axes)?;
    let length = announced(path, &dims, header_bytes)?;
    // One byte more than announced shows that the file is too long; memory grows only as bytes arrive.
    let rest = length - header_bytes as u64 + 1;
    unpack.take(rest).read_to_end(&mut bytes).map_err(Error::io(path))?;
    expect_length(path, &dims, header_bytes, bytes.len() as u64)?;
    Ok((dims, Content::Unpacked { path: path.to_owned(), bytes }))
}

/// The axes that the header states.
fn dimensions(path: &Path, header: &[u8], found: u64, axes: u8) -> Result<Vec<u64>> {
    if found < header.len() as u64 {
        let what = "the header".into();
        return Err(Error::Truncated { path: path.to_owned(), what, expected: header.len() as u64, found });
    }
    if header[..4] != [0, 0, 8, axes] {
        let reason = format!(
            "starts with {:02x?}; an IDX file of {axes} axes of bytes starts with [00, 00, 08, {axes:02x}]",
            &header[..4]
        );
        return Err(Error::Malformed { path: path.to_owned(), reason });
    }
    let axis = |bytes: &[u8]| bytes.iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
    Ok(header[4..].chunks_exact(4).map(axis).collect())
}

/// Bytes of the whole file by its header.
fn announced(path: &Path, dims: &[u64], header_bytes: usize) -> Result<u64> {
    let product = dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    let length = product.and_then(|bytes| bytes.checked_add(header_bytes as u64)).unwrap_or(u64::MAX);
    limits::at_most(&path.display().to_string(), "bytes of IDX file", length, limits::IDX_BYTES)?;
    Ok(length)
}

fn expect_length(path: &Path, dims: &[u64], header_bytes: usize, found: u64) -> Result<()> {
    let expected = announced(path, dims, header_bytes)?;
    match found {
        _ if found < expected => {
            let what = format!("an array of {dims:?}");
            Err(Error::Truncated { path: path.to_owned(), what, expected, found })
        }
        _ if found > expected => {
            let reason = format!("goes on after the {expected} bytes that its header announces");
            Err(Error::Malformed { path: path.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

impl Idx {
    const HEADER: u64 = 16;

    /// Opens an image file and, where given, its label file.
    pub(crate) fn open(images: &Path, labels: Option<&Path>) -> Result<Self> {
        let (dims, content) = open_content(images, 3)?;
        let [count, height, width] = [dims[0], dims[1], dims[2]].map(|dim| dim as usize);
        if count == 0 || height == 0 || width == 0 {
            return Err(Error::Empty { path: images.to_owned() });
        }
        limits::at_most(&images.display().to_string(), "pixels", dims[1] * dims[2], limits::IMAGE_PIXELS)?;
        let labels = labels.map(|path| read_labels(path, count)).transpose()?.unwrap_or_default();
        let classes = labels.iter().max().map_or(0, |&last| usize::from(last) + 1);
        let classes = (0..classes).map(|class| class.to_string()).collect();
        Ok(Self { images: content, width, height, count, labels, classes })
    }
}

fn read_labels(path: &Path, images: usize) -> Result<Vec<u8>> {
    let (dims, content) = open_content(path, 1)?;
    if dims[0] != images as u64 {
        let reason = format!("{} labels for {images} images", dims[0]);
        return Err(Error::Malformed { path: path.to_owned(), reason });
    }
    let mut labels = vec![0; images];
    content.read_at(&mut labels, 8)?;
    Ok(labels)
}

/// The label file that belongs to an image file, where it is there: packed or not.
pub(crate) fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = file_name(images).replace("images", "labels").replace("idx3", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    [plain.to_owned(), format!("{plain}.gz")]
        .into_iter()
        .map(|name| images.with_file_name(name))
        .find(|path| path.is_file())
}

/// Whether a file name is that of IDX images.
pub(crate) fn is_images_name(name: &str) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    plain.contains("images") && (plain.ends_with("idx3-ubyte") || plain.ends_with(".idx3"))
}

impl Dataset for Idx {
    fn len(&self) -> usize {
        self.count
    }

    fn read(&self, index: usize) -> Result<Image> {
        let mut grey = vec![0_u8; self.width * self.height];
        let offset = Self::HEADER + index as u64 * grey.len() as u64;
        self.images.read_at(&mut grey, offset)?;
        let pixels = grey.into_iter().flat_map(|value| [value; 3]).collect();
        Ok(Image { width: self.width, height: self.height, pixels })
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).map(|&label| u32::from(label))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        format!("{}: image {index}", self.images.path().display())
    }

    /// Of the sizes and the labels in order: the images have no names.
    fn fingerprint(&self) -> u64 {
        let mut mark = Fingerprint::new("idx", self.count);
        mark.number(self.width as u64);
        mark.number(self.height as u64);
        mark.bytes(&self.labels);
        mark.value()
    }
}
