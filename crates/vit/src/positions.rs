//! The coordinates of a set of tokens, and the angles computed from them.

use candle_core::{DType, Device, Tensor};
use occlude_kernels::{Angles, Error, Result, gather_rows};
use std::cell::RefCell;

/// Coordinates of the tokens of a batch. Angles are computed once for each distinct frequency table and shared by all
/// attentions that use equal tables.
///
/// Tables are compared by value at every use: loading a checkpoint writes new values into the tensors that blocks hold,
/// so a comparison made earlier could be stale. A table has 2 x head_dim numbers: next to nothing to read on a CPU; on
/// other devices each use waits for the work before it.
#[derive(Debug)]
pub struct Positions {
    coords: Tensor, // [batch, tokens, 2], or [1, tokens, 2] where all images agree
    batch: usize,
    angles: RefCell<Vec<(Vec<f64>, Angles)>>,
}

impl Positions {
    /// Positions of tokens that differ from image to image; every list has the same length.
    ///
    /// # Errors
    /// Lists of unequal length.
    pub fn each(images: &[Vec<[f64; 2]>], dtype: DType, device: &Device) -> Result<Self> {
        let tokens = images.first().map_or(0, Vec::len);
        if let Some((image, list)) = images.iter().enumerate().find(|(_, list)| list.len() != tokens) {
            let message = format!("image {image} has {} tokens, image 0 has {tokens}", list.len());
            return Err(Error::argument("positions", message));
        }
        let flat: Vec<f64> = images.iter().flatten().flatten().copied().collect();
        let coords = Tensor::from_vec(flat, (images.len(), tokens, 2), &Device::Cpu)?;
        Ok(Self::new(coords.to_dtype(dtype)?.to_device(device)?, images.len()))
    }

    /// Positions of tokens that are the same in every image of a batch.
    ///
    /// # Errors
    /// A failing cast.
    pub fn same(tokens: &[[f64; 2]], batch: usize, dtype: DType, device: &Device) -> Result<Self> {
        let flat: Vec<f64> = tokens.iter().flatten().copied().collect();
        let coords = Tensor::from_vec(flat, (1, tokens.len(), 2), &Device::Cpu)?;
        Ok(Self::new(coords.to_dtype(dtype)?.to_device(device)?, batch))
    }

    fn new(coords: Tensor, batch: usize) -> Self {
        Self { coords, batch, angles: RefCell::new(Vec::new()) }
    }

    /// (row, column) of every token.  [batch, tokens, 2]
    ///
    /// # Errors
    /// A failing copy.
    pub fn coords(&self) -> Result<Tensor> {
        let (_, tokens, axes) = self.coords.dims3()?;
        Ok(self.coords.broadcast_as((self.batch, tokens, axes))?)
    }

    /// These tokens, then `more` tokens of each image.
    ///
    /// # Errors
    /// Lists of unequal length, or another number of them than images.
    pub fn and(&self, more: &[Vec<[f64; 2]>]) -> Result<Self> {
        let coords = self.coords()?;
        let more = Self::each(more, coords.dtype(), coords.device())?;
        Ok(Self::new(Tensor::cat(&[&coords, &more.coords], 1)?, self.batch))
    }

    /// The angles of `table` [2, head_dim] for these tokens, or for the images `rows` only.
    ///
    /// # Errors
    /// A table of another shape or dtype.
    pub fn angles(&self, table: &Tensor, rows: Option<&[u32]>) -> Result<Angles> {
        if let (Some(rows), true) = (rows, self.coords.dim(0)? == self.batch && self.batch > 1) {
            return Angles::new(&gather_rows(&self.coords, rows)?, table);
        }
        let values: Vec<f64> = table.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
        let known = self.angles.borrow().iter().find(|(key, _)| *key == values).map(|(_, angles)| angles.clone());
        if let Some(angles) = known {
            return Ok(angles);
        }
        let angles = Angles::new(&self.coords, table)?;
        self.angles.borrow_mut().push((values, angles.clone()));
        Ok(angles)
    }
}

#[cfg(test)]
mod tests {
    use super::Positions;
    use candle_core::{DType, Device};

    #[test]
    fn lists_of_unequal_length_are_refused() {
        // As many coordinates as three lists of two would have.
        let images = [vec![[0.0; 2]; 2], vec![[0.0; 2]; 1], vec![[0.0; 2]; 3]];
        let error = Positions::each(&images, DType::F32, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("image 1 has 1 tokens, image 0 has 2"), "{error}");
        assert!(Positions::each(&[], DType::F32, &Device::Cpu).is_ok());
    }
}
