//! Weights under the names that other people's tools expect, one module for each published system.
//!
//! Reading fills tensors of a method's state from a file and is tolerant: what the file lacks keeps its values, what the
//! state lacks is left, and both are reported in [`Imported`]. A tensor of another shape is an error.

pub mod capi;
mod fused;
pub mod moca;
pub mod plain;

use crate::tensors::{read_tensors, within};
use crate::{CommitError, Error, MAX_TENSOR_FILE_BYTES, Result, write_tensors};
use candle_core::pickle::{PthTensors, TensorInfo, read_all_with_key};
use candle_core::{DType, Device};
use occlude_kernels::StateDict;
use std::collections::BTreeSet;
use std::path::Path;

/// Where PyTorch training checkpoints keep the weights, among other things.
const INNER_DICTIONARIES: [&str; 2] = ["model", "state_dict"];

/// Which of the two models of a training state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// The exponential moving average: what is evaluated and exported unless said otherwise.
    #[default]
    Average,
    /// The network trained by gradient.
    Student,
}

/// A training state filled from a file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The whole state, ready to be loaded by the method.
    pub state: StateDict,
    /// Tensors asked for, under their names in a file, that the file does not have: they kept their values.
    pub missing: Vec<String>,
    /// Tensors of the file that were not read.
    pub ignored: Vec<String>,
}

/// The tensors whose names begin with `prefix`, without it and in `dtype`.
fn stripped(state: &StateDict, prefix: &str, dtype: DType) -> candle_core::Result<StateDict> {
    let tensors = state
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
        .map(|(name, tensor)| Ok((name.to_owned(), tensor.detach().to_dtype(dtype)?)))
        .collect::<candle_core::Result<StateDict>>()?;
    if tensors.is_empty() {
        candle_core::bail!("this state has no tensors named {prefix}*");
    }
    Ok(tensors)
}

/// Writes what an export gave.
fn write_export(path: &Path, tensors: candle_core::Result<StateDict>) -> Result<(), CommitError> {
    let tensors = tensors.map_err(std::io::Error::other).map_err(CommitError::not_committed(path))?;
    write_tensors(path, &tensors)
}

/// Overwrites each tensor of `state` to which `named` gives a name by the tensor of that name in `found`, the content of
/// `path`.
fn fill(
    path: &Path,
    layout: &str,
    state: &StateDict,
    found: &StateDict,
    named: impl Fn(&str) -> Option<String>,
) -> Result<Imported> {
    let mut state = state.clone();
    let mut missing = BTreeSet::new();
    let mut ignored: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    for (own, tensor) in &mut state {
        let Some(name) = named(own) else { continue };
        let Some(given) = found.get(&name) else {
            missing.insert(name);
            continue;
        };
        if given.dims() != tensor.dims() {
            let (found, needed) = (given.dims().to_vec(), tensor.dims().to_vec());
            return Err(Error::Shape { path: path.to_owned(), tensor: name, found, needed });
        }
        *tensor = given.to_dtype(tensor.dtype()).map_err(unfit(path))?;
        ignored.remove(name.as_str());
    }
    if ignored.len() == found.len() {
        let reason = format!("has none of the tensors asked for: not a file in the official {layout} layout");
        return Err(Error::mismatch(path, reason));
    }
    let ignored = ignored.into_iter().map(str::to_owned).collect();
    Ok(Imported { state, missing: missing.into_iter().collect(), ignored })
}

fn unfit(path: &Path) -> impl Fn(candle_core::Error) -> Error {
    move |error| Error::mismatch(path, error.to_string())
}

/// The tensors of a safetensors file or, where the name ends in `.pth` or `.pt`, of PyTorch's zip form: a dictionary of
/// tensors, or one with such a dictionary at `model` or `state_dict`.
fn read_any(path: &Path) -> Result<StateDict> {
    let pickled = path.extension().is_some_and(|ending| ending == "pth" || ending == "pt");
    if !pickled {
        return read_tensors(path, &Device::Cpu);
    }
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    within(path, size, MAX_TENSOR_FILE_BYTES)?;
    let damaged = |error: candle_core::Error| Error::damaged(path, error.to_string());
    let listed = |key| PthTensors::new(path, key).map(|tensors| tensors.tensor_infos().clone());
    let inner = INNER_DICTIONARIES.into_iter().find(|key| listed(Some(key)).is_ok_and(|infos| !infos.is_empty()));
    let promised = listed(inner).map_err(damaged)?;
    if let Some(info) = promised.values().find(|info| bytes(info).is_none_or(|bytes| bytes > size)) {
        let reason = format!("{} of shape {:?} is larger than the file", info.name, info.layout.dims());
        return Err(Error::damaged(path, reason));
    }
    Ok(read_all_with_key(path, inner).map_err(damaged)?.into_iter().collect())
}

/// Bytes of a tensor; none where there are more than can be counted.
fn bytes(info: &TensorInfo) -> Option<u64> {
    let numbers = info.layout.dims().iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim as u64))?;
    numbers.checked_mul(info.dtype.size_in_bytes() as u64)
}
