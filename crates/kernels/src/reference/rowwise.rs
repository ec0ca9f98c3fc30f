//! Plain forms of the operators that work row by row: norms, softmax, row moves, losses, Sinkhorn.

use crate::batch_norm::BatchNorm;
use crate::{Result, input};
use candle_core::{D, DType, Device, Tensor};

/// [`crate::rms_norm`] in four tensor operations.
///
/// # Errors
/// Shapes that do not broadcast.
pub fn rms_norm(x: &Tensor, w: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?; // [.., 1]
    affine(x.broadcast_div(&rms)?, w, None)
}

/// [`crate::layer_norm`] in plain tensor operations.
///
/// # Errors
/// Shapes that do not broadcast.
pub fn layer_norm(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?; // [.., 1]
    affine(centred.broadcast_div(&std)?, w, b)
}

/// [`crate::batch_norm`] in plain tensor operations.
///
/// # Errors
/// Another rank than 2, or shapes that do not broadcast.
pub fn batch_norm(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>, eps: f64) -> Result<BatchNorm> {
    let (rows, dim) = x.dims2()?;
    let mean = if dim == 0 { Tensor::zeros((1, 0), x.dtype(), x.device())? } else { x.mean_keepdim(0)? };
    let centred = x.broadcast_sub(&mean)?;
    let square = if dim == 0 { mean.clone() } else { centred.sqr()?.sum_keepdim(0)? }; // [1, dim]
    let std = ((&square / rows as f64)? + eps)?.sqrt()?;
    let y = affine(centred.broadcast_div(&std)?, w, b)?;
    let variance = (square.detach() / rows.saturating_sub(1) as f64)?.squeeze(0)?;
    Ok(BatchNorm { y, mean: mean.detach().squeeze(0)?, variance })
}

/// [`crate::batch_norm_with`] in plain tensor operations.
///
/// # Errors
/// Shapes that do not broadcast.
pub fn batch_norm_with(
    x: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    w: Option<&Tensor>,
    b: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let std = (variance.detach() + eps)?.sqrt()?; // [dim]
    affine(x.broadcast_sub(&mean.detach())?.broadcast_div(&std)?, w, b)
}

fn affine(x: Tensor, w: Option<&Tensor>, b: Option<&Tensor>) -> Result<Tensor> {
    let x = w.map_or_else(|| Ok(x.clone()), |w| x.broadcast_mul(w))?;
    Ok(b.map_or_else(|| Ok(x.clone()), |b| x.broadcast_add(b))?)
}

/// [`crate::softmax`] in plain tensor operations.
///
/// # Errors
/// A scalar.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    // The shift cancels, so it carries no gradient; candle's own gradient of a maximum counts ties twice.
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

fn index_tensor(index: &[u32], device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(index, index.len(), device)?)
}

/// [`crate::gather_rows`] as an index selection.
///
/// # Errors
/// An index out of range.
pub fn gather_rows(x: &Tensor, index: &[u32]) -> Result<Tensor> {
    Ok(x.contiguous()?.index_select(&index_tensor(index, x.device())?, 0)?)
}

/// [`crate::scatter_add_rows`] as an index addition.
///
/// # Errors
/// An index out of range, or shapes that do not fit.
pub fn scatter_add_rows(base: &Tensor, index: &[u32], src: &Tensor, scale: f64) -> Result<Tensor> {
    if src.elem_count() == 0 {
        return Ok(base.clone());
    }
    let scaled = src.contiguous()?.affine(scale, 0.0)?;
    Ok(base.contiguous()?.index_add(&index_tensor(index, base.device())?, &scaled, 0)?)
}

/// [`crate::scatter_rows`] as a choice between `base` and moved rows.
///
/// # Errors
/// A scalar, an index out of range, or shapes that do not fit.
pub fn scatter_rows(base: &Tensor, index: &[u32], src: &Tensor) -> Result<Tensor> {
    if src.elem_count() == 0 {
        return Ok(base.clone());
    }
    let rows = base.dim(0)?;
    input::in_range("scatter_rows", index, rows)?;
    let mut written = vec![0_u8; rows];
    index.iter().for_each(|&row| written[row as usize] = 1);
    let mut column = vec![1; base.rank()];
    column[0] = rows;
    let written = Tensor::from_vec(written, column, base.device())?.broadcast_as(base.shape())?;
    let moved = scatter_add_rows(&base.zeros_like()?, index, src, 1.0)?;
    Ok(written.where_cond(&moved, base)?)
}

/// [`crate::l2_normalize`] in plain tensor operations.
///
/// # Errors
/// A scalar.
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let square = x.sqr()?.sum_keepdim(D::Minus1)?; // [.., 1]
    let short = square.le(eps * eps)?;
    let floor = square.ones_like()?.affine(eps, 0.0)?;
    // The root is taken of 1 where the floor is used: its gradient at 0 is infinite, and infinity times 0 is not 0.
    let norm = short.where_cond(&floor, &short.where_cond(&square.ones_like()?, &square)?.sqrt()?)?;
    Ok(x.broadcast_div(&norm)?)
}

/// [`crate::weight_norm`] in plain tensor operations.
///
/// # Errors
/// Shapes that do not broadcast.
pub fn weight_norm(v: &Tensor, g: &Tensor, eps: f64) -> Result<Tensor> {
    if v.elem_count() == 0 {
        return Ok(v.clone());
    }
    let square = v.sqr()?.sum_keepdim(D::Minus1)?; // [rows, 1]
    let empty = square.eq(0.0)?;
    let root = empty.where_cond(&square.ones_like()?, &square)?.sqrt()?;
    let norm = empty.where_cond(&square.zeros_like()?, &root)?;
    Ok(v.broadcast_mul(&g.broadcast_div(&(norm + eps)?)?)?)
}

/// [`crate::soft_cross_entropy`] in plain tensor operations.
///
/// # Errors
/// Shapes that differ.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<Tensor> {
    let rows = logits.dim(0)? as f64;
    let scores = log_softmax(&(logits / temperature)?)?;
    let per_row = (scores * targets.detach())?.sum(D::Minus1)?; // [rows]
    Ok((per_row.to_dtype(DType::F64)?.sum_all()? / -rows)?.to_dtype(logits.dtype())?)
}

/// [`crate::pixel_loss`] in plain tensor operations.
///
/// # Errors
/// Shapes that differ.
pub fn pixel_loss(predictions: &Tensor, pixels: &Tensor, eps: Option<f64>) -> Result<Tensor> {
    let pixels = pixels.detach();
    if pixels.elem_count() == 0 {
        let leading = &pixels.dims()[..pixels.rank().saturating_sub(1)];
        return Ok(Tensor::zeros(leading, pixels.dtype(), pixels.device())?);
    }
    let target = match eps {
        None => pixels,
        Some(eps) => {
            let std = (pixels.var_keepdim(D::Minus1)? + eps)?.sqrt()?; // [.., 1], divisor dim - 1
            pixels.broadcast_sub(&pixels.mean_keepdim(D::Minus1)?)?.broadcast_div(&std)?
        }
    };
    Ok((predictions - target)?.sqr()?.mean(D::Minus1)?)
}

/// [`crate::sinkhorn`] in plain tensor operations.
///
/// # Errors
/// Another rank than 3.
pub fn sinkhorn(logits: &Tensor, temperature: f64, iterations: usize) -> Result<Tensor> {
    if logits.elem_count() == 0 {
        return Ok(logits.detach());
    }
    let scaled = (logits.detach() / temperature)?; // [groups, samples, k]
    let mut x = (scaled.broadcast_sub(&scaled.max_keepdim(1)?)? + 50.0)?.exp()?;
    for _ in 0..iterations {
        x = x.broadcast_div(&(x.sum_keepdim(1)? + 1e-8)?)?;
        x = x.broadcast_div(&(x.sum_keepdim(2)? + 1e-8)?)?;
    }
    Ok(x)
}
