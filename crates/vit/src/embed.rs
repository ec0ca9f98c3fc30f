//! Patch embedding: a convolution whose kernel is its stride, as one linear over the pixels of each patch.

use candle_core::{DType, Tensor, WithDType};
use occlude_kernels::{Error, Factors, Init, Result, Scope, gather_rows, linear};
use occlude_masking::Grid;

/// Pixels of a patch to a token.
#[derive(Clone, Debug)]
pub struct PatchEmbed {
    weight: Tensor, // [dim, 3, patch, patch]
    bias: Tensor,   // [dim]
    patch: usize,
}

impl PatchEmbed {
    /// An embedding of patches of `patch` x `patch` pixels into width `dim`; `lr` multiplies its learning rate. Biases
    /// begin as those of a convolution.
    ///
    /// # Errors
    /// A name exists already.
    pub fn new(scope: &mut Scope<'_>, dim: usize, patch: usize, lr: f64) -> Result<Self> {
        let bias = Init::Uniform { bound: 1.0 / ((3 * patch * patch) as f64).sqrt() };
        Self::with_bias(scope, dim, patch, lr, &bias)
    }

    /// As [`PatchEmbed::new`], with biases that begin as `bias` says.
    ///
    /// # Errors
    /// A name exists already.
    pub fn with_bias(scope: &mut Scope<'_>, dim: usize, patch: usize, lr: f64, bias: &Init) -> Result<Self> {
        let init = Init::xavier_uniform(3 * patch * patch, dim);
        let weight = scope.trained("weight", &[dim, 3, patch, patch], &init, Factors { lr, wd: 1.0 })?;
        let bias = scope.trained("bias", &[dim], bias, Factors { lr, wd: 0.0 })?;
        Ok(Self { weight, bias, patch })
    }

    /// The grid of `images` [batch, 3, height, width].
    ///
    /// # Errors
    /// No images, not three channels, or a side that is not a multiple of the patch size.
    pub fn grid(&self, images: &Tensor) -> Result<Grid> {
        grid_of(images, self.patch)
    }

    /// Tokens of the patches `list` (flat indices; all where `None`). Patches are picked before they are embedded: the
    /// same tokens as picking afterwards, without the work for the rest.
    /// images: [batch, 3, height, width] -> [patches, dim]
    ///
    /// # Errors
    /// As [`PatchEmbed::grid`], or an index out of range.
    pub fn forward(&self, images: &Tensor, list: Option<&[u32]>) -> Result<Tensor> {
        let dim = self.bias.dim(0)?;
        let images = images.detach().to_dtype(self.weight.dtype())?;
        let rows = patch_rows(&images, self.patch, list)?; // [patches, 3 * patch * patch]
        linear(&rows, &self.weight.reshape((dim, 3 * self.patch * self.patch))?, Some(&self.bias))
    }

    pub(crate) fn detach(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach(), patch: self.patch }
    }
}

fn grid_of(images: &Tensor, patch: usize) -> Result<Grid> {
    match *images.dims() {
        [batch, 3, height, width]
            if batch > 0
                && patch > 0
                && height >= patch
                && width >= patch
                && height % patch == 0
                && width % patch == 0 =>
        {
            Ok(Grid::new(height / patch, width / patch))
        }
        _ => {
            let expected =
                format!("at least one image, [batch, 3, height, width], with sides that are multiples of {patch}");
            Err(Error::shape("patch_embed", expected, images.dims()))
        }
    }
}

/// The pixels of the patches `list` (flat indices `image * patches + patch`; all where `None`), channel by channel and
/// row by row. No gradient.  [batch, 3, height, width] -> [patches, 3 * patch * patch]
///
/// # Errors
/// No images, not three channels, a side that is not a multiple of the patch size, or an index out of range.
pub fn patch_rows(images: &Tensor, patch: usize, list: Option<&[u32]>) -> Result<Tensor> {
    let grid = grid_of(images, patch)?;
    let count = images.dim(0)? * grid.count();
    if let Some(index) = list.and_then(|list| list.iter().find(|index| **index as usize >= count)) {
        return Err(Error::argument("patch_embed", format!("patch {index} of a batch of {count} patches")));
    }
    let all: Vec<u32>;
    let wanted = match list {
        Some(list) => list,
        None => {
            all = (0..count as u32).collect();
            &all
        }
    };
    match (images.device().is_cpu(), images.dtype()) {
        (true, DType::F32) => copy_rows::<f32>(images, grid, patch, wanted),
        (true, DType::F64) => copy_rows::<f64>(images, grid, patch, wanted),
        _ => unfold(images, grid, patch, list),
    }
}

/// Pixels of patches as they are predicted: [`patch_rows`] in f32 with the values in the order row, column, channel.
/// [batch, 3, height, width] -> [patches, patch * patch * 3]
///
/// # Errors
/// As [`patch_rows`].
pub fn patch_pixels(images: &Tensor, patch: usize, list: Option<&[u32]>) -> Result<Tensor> {
    let rows = patch_rows(&images.detach().to_dtype(DType::F32)?, patch, list)?;
    let (count, values) = rows.dims2()?;
    Ok(rows.reshape((count, 3, values / 3))?.transpose(1, 2)?.reshape((count, values))?)
}

/// On the CPU a patch is `3 * patch` short copies: several times faster than a general transposition.
fn copy_rows<T: WithDType>(images: &Tensor, grid: Grid, patch: usize, wanted: &[u32]) -> Result<Tensor> {
    let pixels: Vec<T> = images.flatten_all()?.to_vec1()?;
    let (height, width) = (grid.rows * patch, grid.cols * patch);
    let mut rows = Vec::with_capacity(wanted.len() * 3 * patch * patch);
    for &index in wanted {
        let (image, place) = (index as usize / grid.count(), index as usize % grid.count());
        let (top, left) = (place / grid.cols * patch, place % grid.cols * patch);
        for channel in 0..3 {
            for line in top..top + patch {
                let start = ((image * 3 + channel) * height + line) * width + left;
                rows.extend_from_slice(&pixels[start..start + patch]);
            }
        }
    }
    Ok(Tensor::from_vec(rows, (wanted.len(), 3 * patch * patch), images.device())?)
}

/// The same map in tensor operations: other devices.
fn unfold(images: &Tensor, grid: Grid, patch: usize, list: Option<&[u32]>) -> Result<Tensor> {
    let batch = images.dim(0)?;
    let split = images.reshape(&[batch, 3, grid.rows, patch, grid.cols, patch][..])?;
    let rows = split.permute([0, 2, 4, 1, 3, 5])?.reshape((batch * grid.count(), 3 * patch * patch))?;
    match list {
        Some(list) => gather_rows(&rows, list),
        None => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use super::{grid_of, patch_rows, unfold};
    use candle_core::{Device, Tensor};

    #[test]
    fn copies_equal_the_transposition() {
        let images = Tensor::arange(0_f32, 2.0 * 3.0 * 6.0 * 9.0, &Device::Cpu).unwrap().reshape((2, 3, 6, 9)).unwrap();
        let grid = grid_of(&images, 3).unwrap();
        for list in [None, Some(&[7_u32, 0, 11, 7][..])] {
            let fast = patch_rows(&images, 3, list).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(fast, unfold(&images, grid, 3, list).unwrap().to_vec2::<f32>().unwrap());
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let images = Tensor::zeros((1, 3, 6, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(patch_rows(&images, 3, None).unwrap_err().to_string().contains("multiples of 3"));
        assert!(patch_rows(&images, 2, Some(&[12])).unwrap_err().to_string().contains("patch 12"));
        let none = Tensor::zeros((0, 3, 6, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(patch_rows(&none, 2, None).unwrap_err().to_string().contains("at least one image"));
    }
}
