//! Features as safetensors.

use super::{commit::prepare, label_numbers};
use crate::features::FeatureSet;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

pub(super) fn write(path: &Path, set: &FeatureSet) -> Result<()> {
    let refuse = |message: String| Error::Write { path: path.to_owned(), message };
    let features: Vec<u8> = set.features.iter().flat_map(|value| value.to_le_bytes()).collect();
    let integers = |numbers: Vec<i64>| numbers.into_iter().flat_map(i64::to_le_bytes).collect::<Vec<u8>>();
    let labels = integers(label_numbers(set));
    let index = integers(set.indices.iter().map(|index| *index as i64).collect());
    let rows = set.len();
    let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).map_err(|error| refuse(error.to_string()));
    let tensors = [
        ("features", view(Dtype::F32, vec![rows, set.dim], &features)?),
        ("index", view(Dtype::I64, vec![rows], &index)?),
        ("labels", view(Dtype::I64, vec![rows], &labels)?),
    ];
    let list = |names: &[String]| serde_json::to_string(names).map_err(|error| refuse(error.to_string()));
    let about = HashMap::from([("classes".to_owned(), list(&set.classes)?), ("names".to_owned(), list(&set.names)?)]);
    let bytes = serialize(tensors, Some(about)).map_err(|error| refuse(error.to_string()))?;
    prepare(path, |file| file.write_all(&bytes))?.publish()
}
