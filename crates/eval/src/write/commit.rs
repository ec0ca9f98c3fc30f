//! Write, sync, rename, sync the folder.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file that is removed again unless it was published.
struct Scratch {
    path: PathBuf,
    published: bool,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done: the error that led here is already on its way to the caller.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Fills a file beside `path` and puts it in its place once it is on the disk.
pub(super) fn commit<E: std::fmt::Display>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<(), E>,
) -> Result<()> {
    let refuse = |message: String| Error::Write { path: path.to_owned(), message };
    let said = |error: std::io::Error| refuse(error.to_string());
    let name = path.file_name().ok_or_else(|| refuse("not the name of a file".to_owned()))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let part = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
    let mut scratch = Scratch { path: folder.join(part), published: false };
    let mut file = BufWriter::new(File::create(&scratch.path).map_err(said)?);
    fill(&mut file).map_err(|error| refuse(error.to_string()))?;
    file.flush().map_err(said)?;
    file.get_ref().sync_all().map_err(said)?;
    std::fs::rename(&scratch.path, path).map_err(said)?;
    scratch.published = true;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(said)
}
