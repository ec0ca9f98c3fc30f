//! A linear map whose result is finished while it is in the cache: bias, activation, residual.

use crate::block::Branch;
use crate::cpu::{self, Matrix, Real, SharedRows};
use crate::{gelu, simd};
use candle_core::Tensor;

/// What every element of a linear map goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// GELU in its exact form, as [`crate::gelu`].
    Gelu,
}

/// `residual + scale * act(x w^T + b)`: what follows the product.
pub(crate) struct Finishing<'a, T> {
    /// `[out]`.
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) activation: Option<Activation>,
    /// Whether the map before its activation is wanted as well.
    pub(crate) keep: bool,
    pub(crate) onto: Option<Onto<'a, T>>,
}

/// What the map is added to.
pub(crate) struct Onto<'a, T> {
    /// [batch, len]; the rows of the map are those of the branch's images.
    pub(crate) residual: &'a [T],
    pub(crate) branch: &'a Branch,
    /// Elements of one image.
    pub(crate) len: usize,
}

/// A finished map.
pub(crate) struct Finished<T> {
    /// [rows, out], or the shape of the residual.
    pub(crate) y: Vec<T>,
    /// [rows, out], before the activation; empty unless it was to be kept.
    pub(crate) before: Vec<T>,
}

impl<T> Default for Finishing<'_, T> {
    fn default() -> Self {
        Self { bias: None, activation: None, keep: false, onto: None }
    }
}

impl<T: Real> Finishing<'_, T> {
    /// The product of x [rows, in] and w [in, out], finished. `weight` is the tensor whose elements `w` holds, if it stays
    /// as it is for a while.
    pub(crate) fn product(self, x: Matrix<'_, T>, w: Matrix<'_, T>, weight: Option<&Tensor>) -> Finished<T> {
        let (out, mut before) = (w.shape().1, Vec::new());
        let size = if self.keep { x.shape().0 * out } else { 0 };
        let kept = SharedRows::spare(&mut before, size);
        // Where images are chosen, the map has a row for these alone, and is added to a copy of all.
        let some = self.onto.as_ref().and_then(|onto| Some((onto, onto.branch.images.as_deref()?)));
        let mut all = some.map(|(onto, _)| cpu::copied(onto.residual));
        let target = SharedRows::new(all.as_deref_mut().unwrap_or_default());
        let finish = |row: usize, column: usize, c: &mut [T]| {
            if let Some(bias) = self.bias {
                simd::add_assign(c, &bias[column..column + c.len()]);
            }
            if self.keep {
                // SAFETY: pieces of rows are disjoint, and each comes once.
                #[allow(unsafe_code)]
                unsafe {
                    kept.write(row * out + column, c);
                }
            }
            if self.activation == Some(Activation::Gelu) {
                gelu::activate(c);
            }
            match (&self.onto, some) {
                (None, _) => {}
                (Some(onto), None) => simd::add_assign(c, &onto.residual[row * out + column..][..c.len()]),
                (Some(onto), Some((_, images))) => {
                    let rows = onto.len / out;
                    let row = images[row / rows] as usize * rows + row % rows;
                    // SAFETY: no image is chosen twice, so pieces are disjoint here, too.
                    #[allow(unsafe_code)]
                    let target = unsafe { target.range(row * out + column, c.len()) };
                    simd::add_scaled(target, c, T::of(onto.branch.scale));
                }
            }
        };
        let y = cpu::finished(x, w, weight, &finish);
        // SAFETY: the finished pieces cover the product, and each was written.
        #[allow(unsafe_code)]
        unsafe {
            before.set_len(size);
        }
        Finished { y: all.unwrap_or(y), before }
    }
}
