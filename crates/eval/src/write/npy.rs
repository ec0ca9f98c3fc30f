//! The npy format, version 1.0.

use super::{commit::prepare, label_numbers};
use crate::Result;
use crate::features::FeatureSet;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) fn write(path: &Path, set: &FeatureSet) -> Result<Vec<PathBuf>> {
    let labels_path = path.with_extension("labels.npy");
    let features = prepare(path, |file| {
        file.write_all(&header("<f4", &format!("{}, {}", set.len(), set.dim)))?;
        set.features.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
    })?;
    let labels = prepare(&labels_path, |file| {
        file.write_all(&header("<i8", &format!("{},", set.len())))?;
        label_numbers(set).iter().try_for_each(|label| file.write_all(&label.to_le_bytes()))
    })?;
    // Both lie whole on the disk: a full one can no longer leave new features beside old labels.
    features.publish()?;
    labels.publish()?;
    Ok(vec![path.to_owned(), labels_path])
}

/// Magic, version, length and a Python dictionary, padded so that the data starts at a multiple of 64 bytes.
fn header(dtype: &str, shape: &str) -> Vec<u8> {
    let mut text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    let lead = 10;
    let padded = (lead + text.len() + 1).next_multiple_of(64) - lead;
    text.extend(std::iter::repeat_n(' ', padded - 1 - text.len()));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    // A header of a few dozen bytes always fits 16 bits.
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}
