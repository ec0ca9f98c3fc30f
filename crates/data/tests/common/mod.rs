//! Small data sets written by the tests, in the original byte layouts, and a data set that counts.
#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses its own part")]

use occlude_data::{Dataset, Error, Image, Result, Source, SourceConfig, Split};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A PNG of one colour, encoded.
pub fn png(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    encoded(&image::RgbImage::from_pixel(width, height, image::Rgb(colour)).into(), image::ImageFormat::Png)
}

/// Any image in any format.
pub fn encoded(image: &image::DynamicImage, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Writes `bytes` to `root/name`, with the folders above.
pub fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A tar archive of files, encoded.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// `bytes`, gzipped.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// A source at `path` without cache; the rest as by default.
pub fn source(path: &Path) -> Source {
    config(path).check().unwrap()
}

pub fn config(path: &Path) -> SourceConfig {
    SourceConfig { path: path.to_str().unwrap().to_owned(), cache_mb: 0, ..SourceConfig::default() }
}

/// All images of a path that has no test split.
pub fn open_whole(path: &Path) -> Result<Arc<dyn Dataset>> {
    occlude_data::open(&SourceConfig { holdout: 0.0, ..config(path) }.check().unwrap(), Split::Train)
}

/// The class name of each image, "-" where it has none.
pub fn class_names(dataset: &dyn Dataset) -> Vec<&str> {
    let name = |index| dataset.label(index).map_or("-", |label| dataset.classes()[label as usize].as_str());
    (0..dataset.len()).map(name).collect()
}

/// The file names of all images, without the folders above `root`.
pub fn names_below(dataset: &dyn Dataset, root: &Path) -> Vec<String> {
    let root = format!("{}/", root.display());
    (0..dataset.len()).map(|index| dataset.name(index).replace(&root, "")).collect()
}

/// The error of opening, in one line.
pub fn refusal(path: &Path) -> String {
    let Err(error) = open_whole(path) else { panic!("{} was opened", path.display()) };
    one_line(&error)
}

pub fn one_line(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

/// One-pixel images whose red value is their index; some cannot be read, all reads are counted.
pub struct Counting {
    pub count: usize,
    pub reads: AtomicUsize,
    pub broken: fn(usize) -> bool,
}

impl Counting {
    pub fn new(count: usize) -> Arc<Self> {
        Self::with_broken(count, |_| false)
    }

    pub fn with_broken(count: usize, broken: fn(usize) -> bool) -> Arc<Self> {
        Arc::new(Self { count, reads: AtomicUsize::new(0), broken })
    }
}

impl Dataset for Counting {
    fn len(&self) -> usize {
        self.count
    }

    fn read(&self, index: usize) -> Result<Image> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if (self.broken)(index) {
            return Err(Error::Decode { name: self.name(index), reason: "broken on purpose".into() });
        }
        // 2 x 2, so that crops and flips have something to choose.
        let pixels = (0..12).map(|place| (index % 256) as u8 ^ (place * 19)).collect();
        Ok(Image { width: 2, height: 2, pixels })
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }
}
