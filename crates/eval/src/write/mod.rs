//! Features to files: npy, safetensors, Parquet. A file appears whole or not at all; the two files of an npy set take
//! their places, one after the other, once both are whole.

mod columns;
mod commit;
mod npy;
mod tensors;
#[cfg(test)]
mod tests;

use crate::features::FeatureSet;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The kind of a file of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `X.npy`: the features, `[rows, dim]` f32. Beside it `X.labels.npy`, `[rows]` i64, -1 where there is no label.
    Npy,
    /// Tensors `features` `[rows, dim]` f32, `labels` `[rows]` i64 (-1 where there is none) and `index` `[rows]` i64;
    /// the header holds `classes` and `names` as JSON lists.
    Safetensors,
    /// Columns `index` (i64), `label` (i32, may be null), `name` (string), `features` (list of f32).
    Parquet,
}

impl Format {
    /// The kind a file name asks for.
    ///
    /// # Errors
    /// The name ends in none of `.npy`, `.safetensors`, `.parquet`.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|end| end.to_str()) {
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            Some("parquet") => Ok(Self::Parquet),
            _ => {
                let message = "the name must end in .npy, .safetensors or .parquet".to_owned();
                Err(Error::Write { path: path.to_owned(), message })
            }
        }
    }
}

/// Writes `set` to `path`, replacing what is there, and returns the files written.
///
/// # Errors
/// The file cannot be written. What was there before stands, but for one case: where features and labels are two files
/// (npy) and the folder refuses the second name after it has taken the first, the error names the second.
pub fn features(path: &Path, set: &FeatureSet, format: Format) -> Result<Vec<PathBuf>> {
    match format {
        Format::Npy => npy::write(path, set),
        Format::Safetensors => tensors::write(path, set).map(|()| vec![path.to_owned()]),
        Format::Parquet => columns::write(path, set).map(|()| vec![path.to_owned()]),
    }
}

/// Labels as integers, -1 where there is none.
fn label_numbers(set: &FeatureSet) -> Vec<i64> {
    set.labels.iter().map(|label| label.map_or(-1, i64::from)).collect()
}
