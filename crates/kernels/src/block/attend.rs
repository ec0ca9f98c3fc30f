//! The attention branch of a block, on slices.

use super::Branch;
use super::weights::{Affine, BlockWeights, NormWeights};
use crate::attention::{all_backward, all_forward};
use crate::cpu::{self, Matrix, Real, Values};
use crate::finish::{Finished, Finishing, Onto};
use crate::gradients::{collect, collect_linear};
use crate::heads::Sizes;
use crate::norms::Norm;
use crate::position::Encode;
use crate::visibility::Sight;
use std::borrow::Cow;

/// What stays the same over the calls of one pass. Sizes and tables are those of the chosen images.
pub(super) struct Attend<'a> {
    pub(super) weights: &'a BlockWeights,
    pub(super) branch: &'a Branch,
    /// Fewer keys than queries, without a context: those of the leading tokens of each image.
    pub(super) sizes: Sizes,
    /// Width of the context; `None` where the tokens attend to each other.
    pub(super) context: Option<usize>,
    pub(super) sight: Option<&'a Sight>,
    pub(super) encode: Option<&'a (Encode, Encode)>,
}

/// What the backward pass reads.
pub(super) struct Saved<T> {
    queries: Vec<T>,  // [images, nq, dim], encoded
    keys: Vec<T>,     // [images, nk, dim], encoded
    values: Vec<T>,   // [images, nk, dim]
    attended: Vec<T>, // [images, nq, dim]
    log_sums: Vec<T>, // [images, heads, nq]
}

/// `x w^T + b`, finished.  x: [rows, in] -> [rows, out]
pub(super) fn apply_with<T: Real>(
    map: &Affine,
    x: &[T],
    finishing: Finishing<'_, T>,
) -> candle_core::Result<Finished<T>> {
    let (out, inner) = map.weight.dims2()?;
    let (rows, weight) = (x.len().checked_div(inner).unwrap_or(0), Values::<T>::of(&map.weight)?);
    let bias = map.bias.as_ref().map(Values::<T>::of).transpose()?;
    let (x, w) = (Matrix::new(x, rows, inner), Matrix::new(&weight, out, inner));
    Ok(Finishing { bias: bias.as_deref(), ..finishing }.product(x, w.t(), Some(&map.weight)))
}

/// `x w^T + b`.  x: [rows, in] -> [rows, out]
pub(super) fn apply<T: Real>(map: &Affine, x: &[T]) -> candle_core::Result<Vec<T>> {
    Ok(apply_with(map, x, Finishing::default())?.y)
}

/// `residual + scale * (x w^T + b)` at the images of a branch.  residual: [batch, len]
pub(super) fn apply_onto<T: Real>(
    map: &Affine,
    x: &[T],
    residual: &[T],
    branch: &Branch,
    len: usize,
) -> candle_core::Result<Vec<T>> {
    let onto = Some(Onto { residual, branch, len });
    Ok(apply_with(map, x, Finishing { onto, ..Finishing::default() })?.y)
}

/// The gradient of what the map read, `gradient w`.  [rows, out] -> [rows, in]
pub(super) fn back<T: Real>(map: &Affine, gradient: &[T]) -> candle_core::Result<Vec<T>> {
    let (out, inner) = map.weight.dims2()?;
    let (rows, weight) = (gradient.len().checked_div(out).unwrap_or(0), Values::<T>::of(&map.weight)?);
    let (dy, w) = (Matrix::new(gradient, rows, out), Matrix::new(&weight, out, inner));
    Ok(cpu::affine(dy, w, Some(&map.weight)))
}

/// As [`back`], added to what other maps gave.
pub(super) fn pull<T: Real>(map: &Affine, gradient: &[T], into: &mut [T]) -> candle_core::Result<()> {
    let (out, inner) = map.weight.dims2()?;
    let (rows, weight) = (gradient.len().checked_div(out).unwrap_or(0), Values::<T>::of(&map.weight)?);
    let (dy, w) = (Matrix::new(gradient, rows, out), Matrix::new(&weight, out, inner));
    cpu::add_product(into, dy, w, Some(&map.weight));
    Ok(())
}

/// The norm's rows, and the norm with the statistics that its backward pass reads.
pub(super) fn normed<T: Real>(norm: &NormWeights, x: &[T]) -> candle_core::Result<(Vec<T>, Norm)> {
    let op = Norm::new(norm.centred, norm.eps);
    let bias = bias_or_zeros::<T>(norm)?;
    let y = op.forward(x, &Values::<T>::of(&norm.weight)?, &bias);
    Ok((y, op))
}

/// The gradient of what the norm read; that of its weights is collected.
pub(super) fn norm_backward<T: Real>(
    norm: &NormWeights,
    op: &Norm,
    x: &[T],
    gradient: &[T],
) -> candle_core::Result<Vec<T>> {
    let (dx, vectors) = op.backward(x, &Values::<T>::of(&norm.weight)?, gradient);
    let (dw, db) = vectors.split_at(vectors.len() / 2);
    collect(&norm.weight, |sum: &mut [T]| crate::simd::add_assign(sum, dw))?;
    norm.bias.iter().try_for_each(|bias| collect(bias, |sum: &mut [T]| crate::simd::add_assign(sum, db)))?;
    Ok(dx)
}

fn bias_or_zeros<T: Real>(norm: &NormWeights) -> candle_core::Result<Vec<T>> {
    match &norm.bias {
        Some(bias) => Ok(Values::<T>::of(bias)?.to_vec()),
        None => Ok(vec![T::zero(); norm.weight.elem_count()]),
    }
}

impl Attend<'_> {
    /// Elements of one image of the stream.
    fn len(&self) -> usize {
        self.sizes.nq * self.sizes.dim()
    }

    /// Elements of one image of the tokens that the keys are made from.
    fn leading(&self) -> usize {
        self.sizes.nk * self.sizes.dim()
    }

    /// The context of the chosen images, or the normed tokens themselves: all, or a copy of the leading ones.
    fn source<'a, T: Real>(&self, context: Option<&'a [T]>, normed: &'a [T]) -> Cow<'a, [T]> {
        match (context, self.context) {
            (Some(context), Some(width)) => self.branch.chosen(context, self.sizes.nk * width, 1.0),
            _ if self.leading() == self.len() => Cow::Borrowed(normed),
            _ => {
                let (from, to) = (self.len(), self.leading());
                let len = self.sizes.batch * to;
                Cow::Owned(cpu::fill_chunks(len, to, len, |image, tokens: &mut [T]| {
                    tokens.copy_from_slice(&normed[image * from..][..to]);
                }))
            }
        }
    }

    /// Adds the gradient of the leading tokens to that of all.
    fn add_leading<T: Real>(&self, all: &mut [T], leading: &[T]) {
        let work = leading.len();
        cpu::for_chunks(all, self.len(), work, |image, tokens| {
            crate::simd::add_assign(
                &mut tokens[..self.leading()],
                &leading[image * self.leading()..][..self.leading()],
            );
        });
    }

    fn encoded<T: Real>(
        &self,
        x: Vec<T>,
        which: impl Fn(&(Encode, Encode)) -> &Encode,
        back: bool,
    ) -> crate::Result<Vec<T>> {
        let tokens = x.len() / self.sizes.dim().max(1);
        match self.encode {
            None => Ok(x),
            Some(both) => which(both).apply(&x, &[tokens, self.sizes.dim()], back),
        }
    }

    /// `x + scale * attention(norm(x))`.  x: [batch, nq, dim], context: [batch, nk, context]
    pub(super) fn forward<T: Real>(&self, x: &[T], context: Option<&[T]>) -> candle_core::Result<(Vec<T>, Saved<T>)> {
        let some = self.branch.chosen(x, self.len(), 1.0); // [images, nq, dim]
        let (tokens, _) = normed(&self.weights.norm1, &some)?; // [images, nq, dim]
        let source = self.source(context, &tokens); // [images, nk, context]
        let queries = self.encoded(apply(&self.weights.queries, &tokens)?, |both| &both.0, false)?;
        let keys = self.encoded(apply(&self.weights.keys, &source)?, |both| &both.1, false)?;
        let values = apply(&self.weights.values, &source)?;
        let (attended, log_sums) = all_forward([&queries, &keys, &values], self.sizes, self.sight);
        let y = apply_onto(&self.weights.projection, &attended, x, self.branch, self.len())?;
        Ok((y, Saved { queries, keys, values, attended, log_sums }))
    }

    /// The gradients of `x` and of the context from that of the output; those of the weights are collected.
    pub(super) fn backward<T: Real>(
        &self,
        x: &[T],
        context: Option<&[T]>,
        saved: Saved<T>,
        gradient: Vec<T>,
    ) -> candle_core::Result<(Vec<T>, Option<Vec<T>>)> {
        let BlockWeights { norm1, queries, keys, values, projection, .. } = self.weights;
        let outward = self.branch.chosen(&gradient, self.len(), self.branch.scale); // [images, nq, dim]
        collect_linear(&projection.weight, projection.bias.as_ref(), &outward, &saved.attended)?;
        let slopes = back(projection, &outward)?; // [images, nq, dim]
        let inputs = [&saved.queries[..], &saved.keys, &saved.values];
        let [dq, dk, dv] = all_backward(inputs, &slopes, &saved.log_sums, self.sizes, self.sight);
        drop((saved, slopes));
        let (dq, dk) = (self.encoded(dq, |both| &both.0, true)?, self.encoded(dk, |both| &both.1, true)?);
        let some = self.branch.chosen(x, self.len(), 1.0);
        let (tokens, norm) = normed(norm1, &some)?;
        let source = self.source(context, &tokens);
        collect_linear(&queries.weight, queries.bias.as_ref(), &dq, &tokens)?;
        collect_linear(&keys.weight, keys.bias.as_ref(), &dk, &source)?;
        collect_linear(&values.weight, values.bias.as_ref(), &dv, &source)?;
        let mut inward = back(queries, &dq)?; // [images, nq, dim]
        let outside = match self.context {
            None if self.leading() == self.len() => {
                pull(keys, &dk, &mut inward)?;
                pull(values, &dv, &mut inward)?;
                None
            }
            None => {
                let mut leading = back(keys, &dk)?; // [images, nk, dim]
                pull(values, &dv, &mut leading)?;
                self.add_leading(&mut inward, &leading);
                None
            }
            Some(width) => {
                let mut some = back(keys, &dk)?; // [images, nk, context]
                pull(values, &dv, &mut some)?;
                Some(self.spread(some, context.map_or(0, <[T]>::len), self.sizes.nk * width))
            }
        };
        let through = norm_backward(norm1, &norm, &some, &inward)?;
        drop(outward);
        let mut dx = gradient;
        self.branch.add(&mut dx, self.len(), &through);
        Ok((dx, outside))
    }

    /// Rows of the chosen images, zeros for the others.
    fn spread<T: Real>(&self, some: Vec<T>, total: usize, len: usize) -> Vec<T> {
        match &self.branch.images {
            None => some,
            Some(images) => crate::rows::added(None, total / len.max(1), images, &some, len, T::one()),
        }
    }
}
