//! The batch of a step: which samples, their pixels, their views.

use super::LoaderSettings;
use crate::augment::{Augment, Draws};
use crate::draw::{below, permutation};
use crate::{Dataset, Error, Image, Result};
use occlude_random::Streams;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Draws for one unreadable image before the batch is given up.
const REPLACEMENTS: usize = 32;
/// Epochs whose order is remembered; workers are rarely more than one apart.
const KEPT_ORDERS: usize = 4;

/// Images of one step, decoded, augmented and normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The step it belongs to.
    pub step: u64,
    /// Index in the data set of each image that was used.
    pub ids: Vec<u64>,
    /// The views; each holds `shape` values.
    pub views: Vec<Vec<f32>>,
    /// `[batch, 3, height, width]` of every view.
    pub shape: [usize; 4],
    /// Messages of the images that could not be read and were replaced.
    pub corrupt: Vec<String>,
}

/// A batch and the unreadable images met on the way.
pub(super) struct Made {
    pub(super) batch: Batch,
    /// Index and message.
    pub(super) unreadable: Vec<(u64, String)>,
}

/// Makes batches; shared by the workers.
pub(super) struct Maker {
    dataset: Arc<dyn Dataset>,
    augment: Arc<dyn Augment>,
    settings: LoaderSettings,
    streams: Streams,
    count: u32,
    /// Epoch and order, newest last.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl Maker {
    pub(super) fn new(
        dataset: Arc<dyn Dataset>,
        augment: Arc<dyn Augment>,
        settings: LoaderSettings,
        streams: Streams,
    ) -> Result<Self> {
        let count = u32::try_from(dataset.len()).ok().filter(|&count| count > 0);
        let reason = || format!("a data set of {} images cannot be sampled", dataset.len());
        let count = count.ok_or_else(|| Error::Ended { reason: reason() })?;
        Ok(Self { dataset, augment, settings, streams, count, orders: Mutex::new(Vec::new()) })
    }

    /// Images in the data set.
    pub(super) fn images(&self) -> u64 {
        u64::from(self.count)
    }

    /// The batch of `step`: the sampler positions from `step * batch` on. `None` if `stop` was set meanwhile.
    pub(super) fn make(&self, step: u64, stop: &AtomicBool) -> Result<Option<Made>> {
        let [channels, height, width] = self.augment.shape();
        let batch = self.settings.batch();
        let size = channels * height * width;
        let mut views = vec![vec![0.0_f32; batch * size]; self.augment.count()];
        let mut ids = Vec::with_capacity(batch);
        let mut unreadable = Vec::new();
        for slot in 0..batch {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let position = step.wrapping_mul(batch as u64).wrapping_add(slot as u64);
            let epoch = position / self.images();
            let (id, image) = self.sample(epoch, position, &mut unreadable)?;
            let place = slot * size..(slot + 1) * size;
            let mut out: Vec<&mut [f32]> = views.iter_mut().map(|view| &mut view[place.clone()]).collect();
            self.augment.views(&image, &Draws::new(self.streams, epoch, id), &mut out);
            ids.push(id);
        }
        let corrupt = unreadable.iter().map(|(_, message): &(u64, String)| message.clone()).collect();
        let shape = [batch, channels, height, width];
        Ok(Some(Made { batch: Batch { step, ids, views, shape, corrupt }, unreadable }))
    }

    /// The image at a sampler position. One that cannot be read is replaced by a draw from the stream `replacement`
    /// at (epoch, position), so that the batch stays the same whoever makes it.
    fn sample(&self, epoch: u64, position: u64, unreadable: &mut Vec<(u64, String)>) -> Result<(u64, Image)> {
        let mut id = self.order(epoch)[(position % self.images()) as usize] as usize;
        let mut replacements = self.streams.stream("replacement", epoch, position);
        let before = unreadable.len();
        for _ in 0..=REPLACEMENTS {
            match self.read(id) {
                Ok(image) => return Ok((id as u64, image)),
                Err(error) => unreadable.push((id as u64, error.to_string())),
            }
            id = below(&mut replacements, self.count as usize);
        }
        let first = unreadable.get(before).map(|(_, message)| message.clone()).unwrap_or_default();
        Err(Error::NoneReadable { tries: REPLACEMENTS + 1, first })
    }

    /// Reads an image; a data set that panics on one costs that image, not the run.
    fn read(&self, id: usize) -> Result<Image> {
        let refused = |reason: &str| Error::Decode { name: self.dataset.name(id), reason: reason.to_owned() };
        let read = catch_unwind(AssertUnwindSafe(|| self.dataset.read(id)));
        let image = read.unwrap_or_else(|_| Err(refused("reading it failed")))?;
        if image.is_whole() { Ok(image) } else { Err(refused("the image has no pixels")) }
    }

    /// The order of the samples in `epoch`: stream `order` at (epoch, 0).
    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(kept, _)| *kept == epoch) {
            return Arc::clone(order);
        }
        let order = Arc::new(permutation(&mut self.streams.stream("order", epoch, 0), self.count));
        if orders.len() == KEPT_ORDERS {
            orders.remove(0);
        }
        orders.push((epoch, Arc::clone(&order)));
        order
    }
}
