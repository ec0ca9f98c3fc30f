//! The list of a checkpoint's files with their lengths and checksums, itself protected.
//!
//! The manifest is stored in exactly one form: reading it and writing it again must give the bytes on disk, and its
//! own checksum must match. So a change of any byte is noticed, white space included.

use crate::{Error, Result, tensors::within};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// Largest manifest that is read: 1 MiB.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// Name of the manifest in a checkpoint folder.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Raised when a later version writes what this one cannot read.
const FORMAT: u32 = 1;

/// What a checkpoint folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: u32,
    pub(crate) step: u64,
    pub(crate) files: BTreeMap<String, FileSum>,
    /// Over the manifest with this field empty.
    sha256: String,
}

/// Length and checksum of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSum {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Manifest {
    pub(crate) fn new(step: u64, files: BTreeMap<String, FileSum>) -> io::Result<Self> {
        let mut manifest = Self { format: FORMAT, step, files, sha256: String::new() };
        manifest.sha256 = manifest.own_sum()?;
        Ok(manifest)
    }

    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    /// Reads and checks the manifest of `folder`; the files it names are not looked at.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        within(&path, fs::metadata(&path).map_err(Error::io(&path))?.len(), MAX_MANIFEST_BYTES)?;
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|error| Error::damaged(&path, error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(Error::damaged(&path, format!("format {}, expected {FORMAT}", manifest.format)));
        }
        let same = manifest.to_bytes().map_err(Error::io(&path))? == bytes;
        if !same || manifest.own_sum().map_err(Error::io(&path))? != manifest.sha256 {
            return Err(Error::damaged(&path, "the manifest does not match its own checksum"));
        }
        Ok(manifest)
    }

    /// Reads every file it names and compares length and checksum.
    pub(crate) fn verify(&self, folder: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, expected)| {
            let path = folder.join(name);
            let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
            if bytes != expected.bytes {
                return Err(Error::damaged(&path, format!("{bytes} bytes, the manifest says {}", expected.bytes)));
            }
            expected.compare(&path, &file_sum(&path).map_err(Error::io(&path))?)
        })
    }

    fn own_sum(&self) -> io::Result<String> {
        let bare = Self { sha256: String::new(), ..self.clone() };
        Ok(hex(&Sha256::digest(bare.to_bytes()?)))
    }
}

impl FileSum {
    /// Whether `found`, the checksum of the file at `path`, is the one written down.
    pub(crate) fn compare(&self, path: &Path, found: &str) -> Result<()> {
        if found == self.sha256 { Ok(()) } else { Err(Error::damaged(path, "its bytes do not match their checksum")) }
    }
}

/// Passes bytes on and sums them: the checksum is of what was meant to be written, not of what came back.
#[derive(Debug)]
pub(crate) struct SummingWriter<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> SummingWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    pub(crate) fn finish(mut self) -> io::Result<FileSum> {
        self.inner.flush()?;
        Ok(FileSum { bytes: self.bytes, sha256: hex(&self.hash.finalize()) })
    }
}

impl<W: Write> Write for SummingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Checksum of `bytes`.
pub(crate) fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn file_sum(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0_u8; 1 << 20];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&piece[..read]);
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
