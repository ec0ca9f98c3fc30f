//! A group of threads.

use crate::{Collective, Error, Result, copied};
use candle_core::{DType, Device, Tensor};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One rank of a group whose ranks are threads of this process: for tests, and for several devices in one process.
///
/// A handle can be moved to its thread but not shared. Dropping it, in a panic too, leaves the group.
pub struct InProcess {
    rank: usize,
    group: Arc<Group>,
    /// One thread at a time: two calls of one rank would meet each other.
    unshared: PhantomData<Cell<()>>,
}

/// What the handles of a group share.
struct Group {
    size: usize,
    state: Mutex<State>,
    /// Signalled when a round is complete, when it has been handed to all, and when a rank leaves.
    turned: Condvar,
}

/// Ranks meet in rounds: each puts down an offer, and takes all of them once the last has come.
struct State {
    offers: Vec<Option<Offer>>,
    complete: Option<Arc<[Offer]>>,
    /// Ranks that have not taken the complete round yet.
    takers: usize,
    lost: Option<usize>,
}

/// What a rank brings to a round. The tensor is a copy: its owner may write to the original when its call returns.
#[derive(Clone)]
struct Offer {
    operation: Operation,
    tensor: Option<Tensor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    AllReduce,
    AllGather,
    Broadcast { root: usize },
    Barrier,
}

/// What ranks must agree on.
#[derive(PartialEq, Eq)]
struct Call<'a> {
    operation: Operation,
    tensor: Option<(&'a [usize], DType)>,
}

impl InProcess {
    /// The handles of a group of `size` ranks, in their order.
    #[must_use]
    pub fn group(size: usize) -> Vec<Self> {
        let state = State { offers: vec![None; size], complete: None, takers: 0, lost: None };
        let group = Arc::new(Group { size, state: Mutex::new(state), turned: Condvar::new() });
        (0..size).map(|rank| Self { rank, group: Arc::clone(&group), unshared: PhantomData }).collect()
    }

    /// The tensors of all ranks, in their order, once all have come with the same call.
    fn exchange(&self, operation: Operation, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let offers = self.meet(Offer { operation, tensor: Some(copied(tensor)?) })?;
        Ok(offers.iter().filter_map(|offer| offer.tensor.clone()).collect())
    }

    fn meet(&self, offer: Offer) -> Result<Arc<[Offer]>> {
        let offers = self.group.meet(self.rank, offer)?;
        let mut ranks = offers.iter().map(Offer::call).enumerate();
        if let Some((_, first)) = ranks.next()
            && let Some((rank, other)) = ranks.find(|(_, call)| *call != first)
        {
            return Err(Error::Mismatch { first: (0, first.to_string()), other: (rank, other.to_string()) });
        }
        Ok(offers)
    }
}

impl Collective for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.size
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Tensor> {
        sum(&self.exchange(Operation::AllReduce, tensor)?, tensor.device())
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let tensors = self.exchange(Operation::AllGather, tensor)?;
        tensors.iter().map(|other| own(other, tensor.device())).collect()
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor> {
        // Checked after the exchange, so that a rank that names another root does not leave the rest waiting.
        let tensors = self.exchange(Operation::Broadcast { root }, tensor)?;
        let chosen = tensors.get(root).ok_or(Error::Root { root, size: self.group.size })?;
        own(chosen, tensor.device())
    }

    fn barrier(&self) -> Result<()> {
        self.meet(Offer { operation: Operation::Barrier, tensor: None }).map(drop)
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("InProcess").field("rank", &self.rank).field("size", &self.group.size).finish()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.group.lock().lost.get_or_insert(self.rank);
        self.group.turned.notify_all();
    }
}

impl Group {
    /// A thread that panicked cannot leave the state half changed: every critical section is a few assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, until: impl Fn(&State) -> bool) -> MutexGuard<'a, State> {
        self.turned.wait_while(state, |state| !until(state)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts down the offer of `rank` and waits for those of all ranks.
    fn meet(&self, rank: usize, offer: Offer) -> Result<Arc<[Offer]>> {
        let call = offer.call().to_string();
        // Whoever put something into the round before is still inside its call and will take it.
        let mut state = self.wait(self.lock(), |state| state.complete.is_none());
        if state.lost.is_none() {
            state.offers[rank] = Some(offer);
            if state.offers.iter().all(Option::is_some) {
                state.complete = Some(state.offers.iter_mut().filter_map(Option::take).collect());
                state.takers = self.size;
                self.turned.notify_all();
            }
            state = self.wait(state, |state| state.complete.is_some() || state.lost.is_some());
        }
        match (state.complete.clone(), state.lost) {
            (Some(offers), _) => {
                state.takers -= 1;
                if state.takers == 0 {
                    state.complete = None;
                    self.turned.notify_all();
                }
                Ok(offers)
            }
            (None, lost) => Err(Error::Lost { call, rank: lost.unwrap_or(rank), size: self.size }),
        }
    }
}

impl Offer {
    fn call(&self) -> Call<'_> {
        Call { operation: self.operation, tensor: self.tensor.as_ref().map(|tensor| (tensor.dims(), tensor.dtype())) }
    }
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operation {
            Operation::AllReduce => out.write_str("all_reduce")?,
            Operation::AllGather => out.write_str("all_gather")?,
            Operation::Broadcast { root } => write!(out, "broadcast from rank {root}")?,
            Operation::Barrier => out.write_str("barrier")?,
        }
        self.tensor.map_or(Ok(()), |(shape, dtype)| write!(out, " of {dtype:?} {shape:?}"))
    }
}

/// The sum in the order of the ranks, that of floats in f64.
fn sum(tensors: &[Tensor], device: &Device) -> Result<Tensor> {
    let (first, others) = tensors.split_first().ok_or_else(|| candle_core::Error::msg("a group without ranks"))?;
    let dtype = first.dtype();
    let wide = if dtype.is_float() { DType::F64 } else { dtype };
    let widened = |tensor: &Tensor| tensor.to_device(device)?.to_dtype(wide);
    let mut sum = widened(first)?;
    for other in others {
        sum = (sum + widened(other)?)?;
    }
    Ok(sum.to_dtype(dtype)?)
}

/// A copy on a device.
fn own(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    copied(&tensor.to_device(device)?)
}
