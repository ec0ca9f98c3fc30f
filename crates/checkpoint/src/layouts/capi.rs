//! The official CAPI layout: one model, `backbone.*` and `head.*`, f32 or bf16.
//!
//! A method's state holds the student under `student.` and its average under `student_ema.`; the official file holds
//! one of them with the prefix removed. Reading fills one of them again: tensors the file lacks keep their values and
//! are reported, and the frequency tables of the file are used as stored.

use crate::tensors::read_tensors;
use crate::{CommitError, Error, Result, write_tensors};
use candle_core::{DType, Device};
use occlude_kernels::StateDict;
use std::path::Path;

/// Which of the two models of a training state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// The exponential moving average: what is evaluated and exported unless said otherwise.
    #[default]
    Average,
    /// The network trained by gradient.
    Student,
}

impl Model {
    /// Beginning of its names in a training state.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Average => "student_ema.",
            Self::Student => "student.",
        }
    }
}

/// How much of a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Encoder and predictor: what evaluation needs.
    #[default]
    Backbone,
    /// The prediction head as well.
    All,
}

/// A training state with one model filled from a file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The whole state, ready to be loaded by the method.
    pub state: StateDict,
    /// Tensors of the model, under their official names, that the file does not have: they kept their values.
    pub missing: Vec<String>,
    /// Tensors of the file that were not read.
    pub ignored: Vec<String>,
}

/// The tensors of one model under their official names, in `dtype`.
///
/// # Errors
/// The state has no tensor of that model, or a cast fails.
pub fn export(state: &StateDict, model: Model, dtype: DType) -> candle_core::Result<StateDict> {
    let tensors = state
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(model.prefix())?, tensor)))
        .filter(|(name, _)| is_official(name))
        .map(|(name, tensor)| Ok((name.to_owned(), tensor.detach().to_dtype(dtype)?)))
        .collect::<candle_core::Result<StateDict>>()?;
    if tensors.is_empty() {
        candle_core::bail!("this state has no tensors named {}backbone.*", model.prefix());
    }
    Ok(tensors)
}

/// Writes [`export`] to a safetensors file, whole.
///
/// # Errors
/// As [`write_tensors`]; an export that fails is [`CommitError::NotCommitted`].
pub fn write(path: &Path, state: &StateDict, model: Model, dtype: DType) -> Result<(), CommitError> {
    let tensors =
        export(state, model, dtype).map_err(std::io::Error::other).map_err(CommitError::not_committed(path))?;
    write_tensors(path, &tensors)
}

/// Reads a file in the official layout (safetensors, or PyTorch's zip form where the name ends in `.pth` or `.pt`)
/// into `model` of `state`.
///
/// # Errors
/// The file cannot be read, has none of the official names, or a tensor of another shape.
pub fn read(path: &Path, state: &StateDict, model: Model, scope: Scope) -> Result<Imported> {
    let mut found = read_any(path)?;
    let wanted = |name: &str| name.starts_with("backbone.") || (scope == Scope::All && name.starts_with("head."));
    if !found.keys().any(|name| wanted(name)) {
        return Err(Error::mismatch(path, "no tensor named backbone.*: not a file in the official CAPI layout"));
    }
    let (mut state, mut missing) = (state.clone(), Vec::new());
    for (full, tensor) in &mut state {
        let Some(name) = full.strip_prefix(model.prefix()).filter(|name| wanted(name)) else { continue };
        let Some(given) = found.remove(name) else {
            missing.push(name.to_owned());
            continue;
        };
        if given.dims() != tensor.dims() {
            let reason = format!("{name} has shape {:?}, the config needs {:?}", given.dims(), tensor.dims());
            return Err(Error::mismatch(path, reason));
        }
        *tensor = given.to_dtype(tensor.dtype()).map_err(|error| Error::mismatch(path, error.to_string()))?;
    }
    Ok(Imported { state, missing, ignored: found.into_keys().collect() })
}

fn is_official(name: &str) -> bool {
    name.starts_with("backbone.") || name.starts_with("head.")
}

fn read_any(path: &Path) -> Result<StateDict> {
    let pickled = path.extension().is_some_and(|ending| ending == "pth" || ending == "pt");
    if !pickled {
        return read_tensors(path, &Device::Cpu);
    }
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    crate::tensors::within(path, size, crate::MAX_TENSOR_FILE_BYTES)?;
    let tensors = candle_core::pickle::read_all(path).map_err(|error| Error::damaged(path, error.to_string()))?;
    Ok(tensors.into_iter().collect())
}
