//! What the processes that train one model tell each other: sums, means and copies of tensors.
//!
//! A group has [`Collective::size`] members, the ranks; each calls the same operations in the same order and gets the
//! same numbers. [`SingleProcess`] is a group of one; [`InProcess::group`] joins threads of one process.
//!
//! Invariants: sums are taken in the order of the ranks, so that equal tensors give equal bits whoever comes first; a
//! result is a constant in memory of its own; ranks that call different things, and a rank that is gone, are errors and
//! never a wait without end.
//! Not here: groups over several processes or machines, who starts the ranks, and what is exchanged (`methods`,
//! `trainer`).
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use occlude_distributed::{Collective, InProcess};
//! let sums = std::thread::scope(|scope| {
//!     let ranks = InProcess::group(2).into_iter().map(|rank| {
//!         scope.spawn(move || {
//!             let own = Tensor::new(&[1.0_f32, rank.rank() as f32], &Device::Cpu)?;
//!             Ok::<_, occlude_distributed::Error>(rank.all_reduce(&own)?.to_vec1::<f32>()?)
//!         })
//!     });
//!     ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect::<Result<Vec<_>, _>>()
//! })?;
//! assert_eq!(sums, [[2.0, 1.0], [2.0, 1.0]]);
//! # Ok::<(), occlude_distributed::Error>(())
//! ```

mod error;
mod in_process;
mod single;

pub use error::{Error, Result};
pub use in_process::InProcess;
pub use single::SingleProcess;

use candle_core::Tensor;
use std::fmt;

/// One rank of a group. Every rank calls the same operations in the same order, with tensors of one shape and dtype;
/// each call waits for all others. Results lie on the device of the rank's own tensor, in memory of their own, and no
/// gradient flows through them.
///
/// Errors of an exchange come to every rank that takes part in it. A rank that goes on no longer, for whatever reason,
/// drops its end: the others' calls then fail with [`Error::Lost`].
pub trait Collective: fmt::Debug {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Ranks in the group, at least 1.
    fn size(&self) -> usize;

    /// The sum of all ranks' tensors, taken in the order of the ranks, that of floats in f64.  [any shape]
    ///
    /// # Errors
    /// Ranks that disagree about the call, shape or dtype, or a lost rank.
    fn all_reduce(&self, tensor: &Tensor) -> Result<Tensor>;

    /// The mean of all ranks' tensors: their sum, in their dtype, over the size.  [any shape], floats
    ///
    /// # Errors
    /// As [`Collective::all_reduce`], and integers.
    fn all_reduce_mean(&self, tensor: &Tensor) -> Result<Tensor> {
        let sum = self.all_reduce(tensor)?;
        if !sum.dtype().is_float() {
            return Err(Error::Mean(sum.dtype()));
        }
        Ok((sum / self.size() as f64)?)
    }

    /// All ranks' tensors in the order of the ranks.  [any shape] each
    ///
    /// # Errors
    /// As [`Collective::all_reduce`].
    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>>;

    /// The tensor of rank `root`. Each other rank gives one of its shape and dtype, as the one it is to replace.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`], and a root outside the group.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor>;

    /// Waits until every rank has come here.
    ///
    /// # Errors
    /// Ranks that call something else, or a lost rank.
    fn barrier(&self) -> Result<()>;
}

/// A constant with the same values in memory of its own.
fn copied(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.detach().force_contiguous()?)
}
