//! Plain forms of the operators made of matrix products, and of what stands between them.

use crate::finish::Activation;
use crate::linear::with_last;
use crate::linear_with::LinearOptions;
use crate::nearest::{Measure, Nearest};
use crate::position::Angles;
use crate::visibility::Visibility;
use crate::{Error, Result};
use candle_core::{D, DType, Tensor};

/// [`crate::linear`] as a matrix product and a broadcast sum.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (rows, out) = (x.elem_count() / x.dim(D::Minus1)?.max(1), w.dim(0)?);
    let shape = with_last(x.shape(), out);
    if rows == 0 || out == 0 || x.elem_count() == 0 {
        let y = Tensor::zeros(shape, x.dtype(), x.device())?;
        return Ok(b.map_or_else(|| Ok(y.clone()), |b| y.broadcast_add(b))?);
    }
    // One product of two matrices: candle would copy the weight for every leading index.
    let y = x.contiguous()?.reshape((rows, x.dim(D::Minus1)?))?.matmul(&w.t()?)?; // [rows, out]
    let y = y.reshape(shape)?;
    Ok(b.map_or_else(|| Ok(y.clone()), |b| y.broadcast_add(b))?)
}

/// [`crate::linear_with`] operator by operator.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear_with(x: &Tensor, w: &Tensor, b: Option<&Tensor>, options: &LinearOptions<'_>) -> Result<Tensor> {
    let y = linear(x, w, b)?;
    let y = match options.activation {
        Some(Activation::Gelu) => gelu(&y)?,
        None => y,
    };
    match (options.residual, &options.branch.images) {
        (None, _) => Ok(y),
        (Some(residual), None) => Ok((residual + y)?),
        (Some(residual), Some(images)) => super::scatter_add_rows(residual, images, &y, options.branch.scale),
    }
}

/// [`crate::gelu`] by candle's error function. (Not by candle's own GELU, whose gradient rounds 1/sqrt(2 pi) to six
/// digits.)
///
/// # Errors
/// A dtype that is not a float.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let distribution = (((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    Ok((x * distribution)?)
}

/// [`crate::relu`] by a product, which keeps NaN.
///
/// # Errors
/// A dtype that is not a float.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    let above = x.detach().gt(0.0)?.to_dtype(x.dtype())?;
    Ok((x * above)?)
}

/// [`crate::packed_attention`] on three views.
///
/// # Errors
/// Shapes that do not fit.
pub fn packed_attention(qkv: &Tensor, heads: usize, visibility: &Visibility) -> Result<Tensor> {
    let dim = qkv.dim(2)? / 3;
    let third = |i: usize| qkv.narrow(2, i * dim, dim);
    attention(&third(0)?, &third(1)?, &third(2)?, heads, visibility)
}

/// [`crate::attention`] with whole score matrices.
///
/// # Errors
/// Shapes that do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, visibility: &Visibility) -> Result<Tensor> {
    let (batch, nq, dim) = q.dims3()?;
    let nk = k.dim(1)?;
    if heads == 0 || batch * nq * nk * dim == 0 {
        return Ok(Tensor::zeros((batch, nq, dim), q.dtype(), q.device())?);
    }
    let split = |x: &Tensor| -> Result<Tensor> {
        let (batch, n, _) = x.dims3()?;
        Ok(x.contiguous()?.reshape((batch, n, heads, dim / heads))?.transpose(1, 2)?.contiguous()?)
    };
    let (q, k, v) = (split(q)?, split(k)?, split(v)?); // [batch, heads, n, head_size]
    let scores = (q.matmul(&k.t()?)? / ((dim / heads) as f64).sqrt())?; // [batch, heads, nq, nk]
    let probabilities = match visibility.pairs(batch, nq, nk)? {
        None => super::softmax(&scores)?,
        Some((visible, images)) => {
            let visible = Tensor::from_vec(visible, (images, 1, nq, nk), q.device())?;
            let visible = visible.broadcast_as(scores.shape())?;
            let low = scores.min_all()?.detach().broadcast_as(scores.shape())?;
            // A hidden score takes no part in the maximum, and its weight is a hard zero.
            let scores = visible.where_cond(&scores, &low)?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
            let weights = visible.where_cond(&weights, &weights.zeros_like()?)?;
            let total = weights.sum_keepdim(D::Minus1)?; // [batch, heads, nq, 1]
            // A row that sees nothing has the total 0 and weights of 0: dividing by 1 keeps them.
            let total = (&total + total.eq(0.0)?.to_dtype(total.dtype())?)?;
            weights.broadcast_div(&total)?
        }
    };
    let out = probabilities.matmul(&v)?; // [batch, heads, nq, head_size]
    Ok(out.transpose(1, 2)?.contiguous()?.reshape((batch, nq, dim))?)
}

/// [`crate::nearest`] with the whole score matrix.
///
/// # Errors
/// Shapes that do not fit.
pub fn nearest(x: &Tensor, centroids: &Tensor, measure: Measure) -> Result<Nearest> {
    let (x, centroids) = (x.detach(), centroids.detach());
    if x.elem_count() == 0 {
        let rows = x.dim(0)?;
        let indices = Tensor::zeros(rows, DType::U32, x.device())?;
        return Ok(Nearest { indices, values: Tensor::zeros(rows, x.dtype(), x.device())? });
    }
    let products = x.contiguous()?.matmul(&centroids.t()?)?; // [rows, k]
    let scores = match measure {
        Measure::Dot => products,
        Measure::Euclidean => products.broadcast_sub(&(centroids.sqr()?.sum(1)? / 2.0)?)?,
    };
    // candle's largest passes over NaN, so those are looked for apart.
    let broken = scores.ne(&scores)?; // [rows, k]
    let low = scores.ones_like()?.affine(f64::NEG_INFINITY, 0.0)?;
    let best = broken.where_cond(&low, &scores)?.argmax(1)?; // [rows]
    let any = broken.max(1)?;
    let indices = any.where_cond(&broken.to_dtype(DType::F32)?.argmax(1)?, &best)?;
    let chosen = centroids.contiguous()?.index_select(&indices, 0)?; // [rows, dim]
    let values = match measure {
        Measure::Dot => (&x * chosen)?.sum(1)?,
        Measure::Euclidean => (&x - chosen)?.sqr()?.sum(1)?,
    };
    let nan = values.zeros_like()?.affine(1.0, f64::NAN)?;
    Ok(Nearest { indices, values: any.where_cond(&nan, &values)? })
}

/// Cosines and sines of [`crate::Angles`], [batch, n, head_size].
///
/// # Errors
/// Shapes that do not fit.
pub fn position_angles(coords: &Tensor, table: &Tensor) -> Result<(Tensor, Tensor)> {
    let y = coords.narrow(2, 0, 1)?.broadcast_mul(&table.narrow(0, 0, 1)?.unsqueeze(0)?)?;
    let x = coords.narrow(2, 1, 1)?.broadcast_mul(&table.narrow(0, 1, 1)?.unsqueeze(0)?)?;
    let angle = (y + x)?; // [batch, n, head_size]
    Ok((angle.cos()?, angle.sin()?))
}

/// [`crate::position_encode`] on halves of the channels.
///
/// # Errors
/// Shapes that do not fit.
pub fn position_encode(x: &Tensor, angles: &Angles, heads: usize) -> Result<Tensor> {
    let (batch, n, dim) = x.dims3()?;
    let half = angles.head_size() / 2;
    if heads == 0 || 2 * half * heads != dim {
        return Err(Error::shape("position_encode", format!("[batch, n, {heads} * {}]", 2 * half), x.dims()));
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let x = x.contiguous()?.reshape((batch, n, heads, 2 * half))?;
    let (first, second) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let part = |table: &Tensor, start| -> Result<Tensor> { Ok(table.unsqueeze(2)?.narrow(3, start, half)?) };
    let (cos, sin) = (angles.cos(), angles.sin()); // [batch or 1, n, head_size]
    let low = (first.broadcast_mul(&part(cos, 0)?)? - second.broadcast_mul(&part(sin, 0)?)?)?;
    let high = (second.broadcast_mul(&part(cos, half)?)? + first.broadcast_mul(&part(sin, half)?)?)?;
    Ok(Tensor::cat(&[low, high], 3)?.reshape((batch, n, dim))?)
}
