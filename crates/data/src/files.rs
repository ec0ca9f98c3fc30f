//! Files read at positions, from many threads at once.

use crate::{Error, Result, limits};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file that any number of threads may read at once: no reader moves another's position.
#[derive(Debug)]
pub(crate) struct SharedFile {
    path: PathBuf,
    length: u64,
    /// `None`: opened anew for each read.
    handle: Option<Handle>,
}

impl SharedFile {
    /// Opens `path`; with `keep`, the handle stays open.
    pub(crate) fn open(path: &Path, keep: bool) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        Ok(Self { path: path.to_owned(), length, handle: keep.then(|| Handle::new(file)) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from byte `offset` on.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let read = match &self.handle {
            Some(handle) => handle.read_at(buffer, offset),
            None => File::open(&self.path).and_then(|file| Handle::new(file).read_at(buffer, offset)),
        };
        read.map_err(Error::io(&self.path))
    }
}

/// Positioned reads: the system's own where it has them.
#[cfg(unix)]
#[derive(Debug)]
struct Handle(File);

#[cfg(unix)]
impl Handle {
    fn new(file: File) -> Self {
        Self(file)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buffer, offset)
    }
}

/// Elsewhere seek and read under a lock.
#[cfg(not(unix))]
#[derive(Debug)]
struct Handle(std::sync::Mutex<File>);

#[cfg(not(unix))]
impl Handle {
    fn new(file: File) -> Self {
        Self(std::sync::Mutex::new(file))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        use std::io::Seek;
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(std::io::SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

/// The whole of an encoded image, refused above the limit before memory is taken.
pub(crate) fn read_encoded(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    limits::at_most(&path.display().to_string(), "bytes of file", length, limits::ENCODED_BYTES)?;
    let mut bytes = Vec::with_capacity(length as usize);
    // A file that grows while it is read still cannot pass the limit.
    file.by_ref().take(limits::ENCODED_BYTES).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}
