//! Write, sync, rename, sync the folder.

use crate::{Error, Result};
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A whole file under another name, beside its place. Removed again unless it is published.
#[derive(Debug)]
pub(super) struct Ready {
    path: PathBuf,
    scratch: PathBuf,
    published: bool,
}

impl Drop for Ready {
    fn drop(&mut self) {
        if !self.published {
            // Nothing more can be done: the error that led here is already on its way to the caller.
            let _ = std::fs::remove_file(&self.scratch);
        }
    }
}

/// Fills a file beside `path` and brings its bytes to the disk; `path` itself is not touched.
pub(super) fn prepare<E: Display>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<(), E>,
) -> Result<Ready> {
    let name = path.file_name().ok_or_else(|| refused(path, "not the name of a file"))?;
    let part = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
    let ready = Ready { path: path.to_owned(), scratch: folder(path).join(part), published: false };
    let mut file = BufWriter::new(File::create(&ready.scratch).map_err(|error| refused(path, error))?);
    fill(&mut file).map_err(|error| refused(path, error))?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(|error| refused(path, error))?;
    Ok(ready)
}

impl Ready {
    /// Puts the file in its place.
    pub(super) fn publish(mut self) -> Result<()> {
        std::fs::rename(&self.scratch, &self.path).map_err(|error| refused(&self.path, error))?;
        self.published = true;
        let folder = File::open(folder(&self.path)).and_then(|folder| folder.sync_all());
        folder.map_err(|error| refused(&self.path, error))
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn refused(path: &Path, why: impl Display) -> Error {
    Error::Write { path: path.to_owned(), message: why.to_string() }
}
