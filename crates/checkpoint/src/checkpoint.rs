//! One committed checkpoint.

use crate::manifest::{Manifest, sum};
use crate::tensors::{MAX_TENSOR_FILE_BYTES, parse, within};
use crate::{Error, Result};
use candle_core::Device;
use occlude_kernels::StateDict;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};

/// Largest `state.json` that is read: 64 MiB.
pub const MAX_STATE_BYTES: u64 = 64 << 20;

/// Name of the JSON state in a checkpoint folder.
pub(crate) const STATE: &str = "state.json";
/// Ending of a part's file name.
pub(crate) const PART_ENDING: &str = ".safetensors";

/// A checkpoint whose files were all there and matched their checksums when it was opened.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Opens the checkpoint folder `path` and verifies every byte.
    ///
    /// # Errors
    /// A file is missing, damaged or over its limit.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let manifest = Manifest::read(&path)?;
        let name = folder_name(manifest.step);
        if path.file_name().is_some_and(|found| found.to_string_lossy().starts_with("step-") && *found != *name) {
            return Err(Error::damaged(&path, format!("the manifest says it is {name}")));
        }
        for (name, file) in &manifest.files {
            let limit = if name.ends_with(PART_ENDING) { MAX_TENSOR_FILE_BYTES } else { MAX_STATE_BYTES };
            within(&path.join(name), file.bytes, limit)?;
            if !is_plain(name) {
                return Err(Error::damaged(&path, format!("the manifest names {name:?}, not a plain file name")));
            }
        }
        manifest.verify(&path)?;
        Ok(Self { path, manifest })
    }

    /// Steps done when it was written.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the parts, as given to [`crate::Checkpoints::commit`].
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.keys().filter_map(|name| name.strip_suffix(PART_ENDING))
    }

    /// The tensors of one part.
    ///
    /// # Errors
    /// There is no such part, or its file changed since the checkpoint was opened.
    pub fn load(&self, part: &str, device: &Device) -> Result<StateDict> {
        let path = self.path.join(format!("{part}{PART_ENDING}"));
        parse(&path, &self.bytes(&path, &format!("{part}{PART_ENDING}"))?, device)
    }

    /// The JSON state.
    ///
    /// # Errors
    /// It is not of the shape asked for, or its file changed since the checkpoint was opened.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        let path = self.path.join(STATE);
        serde_json::from_slice(&self.bytes(&path, STATE)?).map_err(|error| Error::mismatch(&path, error.to_string()))
    }

    /// The bytes of a file, summed again: the folder may have changed since it was verified.
    fn bytes(&self, path: &Path, name: &str) -> Result<Vec<u8>> {
        let expected =
            self.manifest.files.get(name).ok_or_else(|| Error::mismatch(path, "this checkpoint has no such part"))?;
        let bytes = fs::read(path).map_err(Error::io(path))?;
        expected.compare(path, &sum(&bytes))?;
        Ok(bytes)
    }
}

/// Name of the folder of a step.
pub(crate) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a checkpoint folder's name.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    // `step-1` and `step-+0000001` parse as well, but are not names this crate gives.
    (folder_name(step) == name).then_some(step)
}

/// Whether `name` can be a file directly inside the folder and nowhere else.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::{is_plain, step_of};

    #[test]
    fn only_names_given_here_are_checkpoints() {
        assert_eq!(step_of("step-00000012"), Some(12));
        assert_eq!(step_of("step-123456789012"), Some(123_456_789_012));
        for other in ["step-12", "step-+0000012", ".tmp-step-00000012", "step-", "step-0000001x"] {
            assert_eq!(step_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_manifest_cannot_point_outside_its_folder() {
        assert!(is_plain("method.safetensors"));
        for name in ["../method.safetensors", "/etc/passwd", "a/b", "", "..", ".hidden", "a\\b"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
