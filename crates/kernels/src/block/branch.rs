//! The images that a residual branch is computed for.

use crate::cpu::{self, Real};
use crate::{Error, Result, input};
use std::borrow::Cow;

/// For which images a residual branch is computed: stochastic depth.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Images of the batch, each at most once; `None`: all. The others pass unchanged.
    pub images: Option<Vec<u32>>,
    /// Multiplies the branch where `images` are chosen.
    pub scale: f64,
}

impl Branch {
    /// Nothing is dropped.
    #[must_use]
    pub fn all() -> Self {
        Self { images: None, scale: 1.0 }
    }

    /// How many images of a batch it is computed for.
    pub(crate) fn check(&self, op: &'static str, batch: usize) -> Result<usize> {
        let Some(images) = &self.images else {
            if self.scale != 1.0 {
                let message = format!("a branch of all images has the scale {}: must be 1", self.scale);
                return Err(Error::argument(op, message));
            }
            return Ok(batch);
        };
        input::in_range(op, images, batch)?;
        match input::twice(images, batch) {
            Some(image) => Err(Error::argument(op, format!("image {image} is chosen twice"))),
            None => Ok(images.len()),
        }
    }

    /// The chosen images of a batch, times `scale`: all of it as it is, or a copy of some.  x: [batch, len]
    pub(crate) fn chosen<'a, T: Real>(&self, x: &'a [T], len: usize, scale: f64) -> Cow<'a, [T]> {
        match &self.images {
            None => Cow::Borrowed(x),
            Some(images) => Cow::Owned(crate::rows::taken(x, images, len, T::of(scale))),
        }
    }

    /// Adds `values` to the chosen images, in the memory of `x`.  x: [batch, len], values: [images, len]
    pub(crate) fn add<T: Real>(&self, x: &mut Vec<T>, len: usize, values: &[T]) {
        match &self.images {
            None => cpu::add_in_place(x, values),
            Some(images) => {
                let rows = x.len().checked_div(len).unwrap_or(0);
                *x = crate::rows::added(Some(&x[..]), rows, images, values, len, T::one());
            }
        }
    }
}

impl Default for Branch {
    fn default() -> Self {
        Self::all()
    }
}
