//! A folder of images, with all its subfolders.

use super::{FirstLevel, Labels, is_hidden, is_image_name};
use crate::fingerprint::Fingerprint;
use crate::{Dataset, Error, Image, Result, decode, files};
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};

/// Images below a folder, in sorted order; classes are the folders of the first level.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    /// Relative to `root`.
    images: Vec<PathBuf>,
    labels: Vec<Option<u32>>,
    classes: Vec<String>,
}

impl Folder {
    /// Walks `root`, following links. Links that lead nowhere or in a circle are left out with a warning.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let mut images = images(root).collect::<Result<Vec<PathBuf>>>()?;
        let first_level = FirstLevel::of(images.iter().map(|path| first_folder(path)));
        images.retain(|path| first_level.keeps(first_folder(path)));
        if images.is_empty() {
            return Err(Error::Empty { path: root.to_owned() });
        }
        let names: Vec<Option<String>> = images.iter().map(|path| first_folder(path).map(str::to_owned)).collect();
        let Labels { classes, labels } = Labels::from_names(&names);
        Ok(Self { root: root.to_owned(), images, labels, classes })
    }

    fn path(&self, index: usize) -> PathBuf {
        self.root.join(&self.images[index])
    }
}

/// The images below `root`, relative to it, in sorted order.
fn images(root: &Path) -> impl Iterator<Item = Result<PathBuf>> {
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    let walk = walk.filter_entry(|entry| entry.depth() == 0 || !is_hidden(&entry.file_name().to_string_lossy()));
    walk.filter_map(|entry| usable(entry).transpose()).filter_map(move |entry| match entry {
        Ok(entry) if !(entry.file_type().is_file() && is_image_name(&entry.file_name().to_string_lossy())) => None,
        Ok(entry) => Some(Ok(entry.path().strip_prefix(root).unwrap_or(entry.path()).to_owned())),
        Err(error) => Some(Err(error)),
    })
}

/// The first image below `root`, if there is any where it can be looked.
pub(crate) fn first_image(root: &Path) -> Option<PathBuf> {
    images(root).find_map(Result::ok).map(|image| root.join(image))
}

/// The entry, `None` for a link that leads nowhere or in a circle.
fn usable(entry: walkdir::Result<DirEntry>) -> Result<Option<DirEntry>> {
    let error = match entry {
        Ok(entry) => return Ok(Some(entry)),
        Err(error) => error,
    };
    let path = error.path().map(Path::to_owned).unwrap_or_default();
    let broken_link = path.symlink_metadata().is_ok_and(|data| data.file_type().is_symlink());
    if error.loop_ancestor().is_some() || broken_link {
        tracing::warn!("{}: left out, the link leads nowhere or in a circle", path.display());
        return Ok(None);
    }
    let source = error.into_io_error().unwrap_or_else(|| std::io::Error::other("the folder cannot be walked"));
    Err(Error::Io { path, source })
}

/// The first folder of a relative path, `None` for a file that lies at the root. A name that is not UTF-8 is no class.
fn first_folder(path: &Path) -> Option<&str> {
    let mut parts = path.components();
    let first = parts.next()?;
    parts.next()?;
    first.as_os_str().to_str()
}

impl Dataset for Folder {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn read(&self, index: usize) -> Result<Image> {
        let path = self.path(index);
        decode(&files::read_encoded(&path)?, &path.display().to_string())
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels[index]
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    /// Of the paths below the root.
    fn fingerprint(&self) -> u64 {
        let mut mark = Fingerprint::new("folder", self.len());
        for image in &self.images {
            let parts: Vec<_> = image.components().map(|part| part.as_os_str().to_string_lossy()).collect();
            mark.bytes(parts.join("/").as_bytes());
        }
        mark.value()
    }
}
