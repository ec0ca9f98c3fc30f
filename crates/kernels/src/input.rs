//! What operators ask of their inputs before they touch a value.

use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// `x` is f32 or f64.
pub(crate) fn float(op: &'static str, x: &Tensor) -> Result<()> {
    match x.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        got => Err(Error::Dtype { op, expected: "F32 or F64", got }),
    }
}

/// `other` has the dtype of `x`, which is f32 or f64.
pub(crate) fn same_float(op: &'static str, x: &Tensor, other: &Tensor) -> Result<()> {
    float(op, x)?;
    if other.dtype() == x.dtype() {
        return Ok(());
    }
    Err(Error::Dtype { op, expected: if x.dtype() == DType::F32 { "F32" } else { "F64" }, got: other.dtype() })
}

/// `x` has exactly the shape `expected`; `what` names it in the message.
pub(crate) fn shape(op: &'static str, what: &str, x: &Tensor, expected: &[usize]) -> Result<()> {
    if x.dims() == expected {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} of shape {expected:?}"), x.dims()))
}

/// The size of the last axis and the number of rows before it. A scalar has no last axis.
pub(crate) fn rows(op: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match x.dims().split_last() {
        Some((dim, leading)) => Ok((leading.iter().product(), *dim)),
        None => Err(Error::shape(op, "at least one axis", x.dims())),
    }
}

/// `value` is a positive finite number.
pub(crate) fn positive(op: &'static str, what: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::argument(op, format!("{what} = {value}: must be positive and finite")))
}

/// `value` is zero or a positive finite number.
pub(crate) fn not_negative(op: &'static str, what: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::argument(op, format!("{what} = {value}: must be at least 0 and finite")))
}

/// Every entry of `index` is below `rows`.
pub(crate) fn in_range(op: &'static str, index: &[u32], rows: usize) -> Result<()> {
    match index.iter().find(|&&row| row as usize >= rows) {
        Some(row) => Err(Error::argument(op, format!("row {row} of a tensor of {rows} rows"))),
        None => Ok(()),
    }
}

/// The first entry of `index` that stood there before; every entry is below `rows`.
pub(crate) fn twice(index: &[u32], rows: usize) -> Option<u32> {
    let mut seen = vec![false; rows];
    index.iter().copied().find(|&row| std::mem::replace(&mut seen[row as usize], true))
}
