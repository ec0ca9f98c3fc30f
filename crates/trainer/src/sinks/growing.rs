//! A file that only grows, and can be cut back.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

/// A file that only grows. Opening it changes nothing; writing goes to its end.
#[derive(Debug)]
pub(crate) struct GrowingFile {
    file: File,
    length: u64,
}

impl GrowingFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, length })
    }

    /// Adds `bytes`. Unbuffered, as rows are few: what was recorded can be followed live.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Brings the bytes to disk; a checkpoint may then rely on them.
    pub(crate) fn position(&mut self) -> io::Result<u64> {
        self.file.sync_data()?;
        Ok(self.length)
    }

    /// Cuts to `position`. A file that is shorter, because somebody removed it, stays as it is: rows are lost, the run
    /// is not.
    pub(crate) fn rewind(&mut self, position: u64) -> io::Result<()> {
        if self.length < position {
            tracing::warn!(
                length = self.length,
                expected = position,
                "a metrics file is shorter than its checkpoint says"
            );
        }
        self.length = self.length.min(position);
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        Ok(())
    }
}
