//! The loader: batches for training, made ahead by worker threads and handed over in order.
//!
//! The batch of a step depends on the seed and the step alone. Workers take whole steps, so they share nothing but a
//! counter; at most `queue` batches are made or waiting at any time.

mod maker;
mod settings;

pub use maker::Batch;
pub use settings::{LoaderConfig, LoaderSettings};

use crate::{Augment, Dataset, Error, Result};
use maker::{Made, Maker};
use occlude_random::Streams;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Images looked at before the share of corrupt ones is taken at its word (or the whole set, if that is smaller).
const FAIR_SAMPLE: u64 = 1000;

/// An endless sequence of batches. Dropping it stops and joins its threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    settings: LoaderSettings,
    /// The step whose batch comes next.
    step: u64,
    corrupt: HashSet<u64>,
    first_corrupt: Option<String>,
    ended: Option<String>,
    /// Images handed over.
    images: u64,
}

struct Shared {
    maker: Maker,
    stop: AtomicBool,
    queue: u64,
    state: Mutex<State>,
    /// Signalled when a batch was handed over, so that another may be begun.
    room: Condvar,
    /// Signalled when a batch is ready or a worker is gone.
    ready: Condvar,
}

struct State {
    /// The next step to be begun.
    begin: u64,
    /// The next step to be handed over.
    deliver: u64,
    made: BTreeMap<u64, Result<Made>>,
    /// A worker ended by a panic.
    lost: bool,
}

impl Shared {
    /// A worker that panicked cannot leave the state half changed: every critical section is a few assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for room in the queue and takes the next step; `None` when the loader was dropped.
    fn claim(&self) -> Option<u64> {
        let full = |state: &mut State| !self.stopped() && state.begin >= state.deliver.saturating_add(self.queue);
        let mut state = self.room.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if self.stopped() {
            return None;
        }
        let step = state.begin;
        state.begin += 1;
        Some(step)
    }

    fn work(&self) {
        let alarm = Alarm(self);
        while let Some(step) = self.claim() {
            let Some(result) = self.maker.make(step, &self.stop).transpose() else { break };
            self.lock().made.insert(step, result);
            self.ready.notify_all();
        }
        drop(alarm);
    }

    /// Waits for the batch of `step`.
    fn take(&self, step: u64) -> Result<Made> {
        let absent = |state: &mut State| !state.lost && !state.made.contains_key(&step);
        let mut state = self.ready.wait_while(self.lock(), absent).unwrap_or_else(PoisonError::into_inner);
        let Some(made) = state.made.remove(&step) else {
            return Err(Error::Ended { reason: "a worker thread was lost".into() });
        };
        state.deliver = step + 1;
        drop(state);
        self.room.notify_one();
        made
    }
}

/// Tells the consumer if a worker ends by a panic; it would wait for ever otherwise.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().lost = true;
            self.0.ready.notify_all();
        }
    }
}

impl Loader {
    /// Starts the workers; the first batch is that of `first_step`.
    ///
    /// # Errors
    /// An empty data set, one with more than 2^32 images, or a thread that cannot be started.
    pub fn start(
        dataset: Arc<dyn Dataset>,
        augment: Arc<dyn Augment>,
        settings: LoaderSettings,
        streams: Streams,
        first_step: u64,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            maker: Maker::new(dataset, augment, settings, streams)?,
            stop: AtomicBool::new(false),
            queue: settings.queue() as u64,
            state: Mutex::new(State { begin: first_step, deliver: first_step, made: BTreeMap::new(), lost: false }),
            room: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut loader = Self {
            shared,
            threads: Vec::new(),
            settings,
            step: first_step,
            corrupt: HashSet::new(),
            first_corrupt: None,
            ended: None,
            images: 0,
        };
        for number in 0..settings.workers() {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new().name(format!("loader-{number}"));
            let thread = thread.spawn(move || shared.work()).map_err(Error::io("loader thread"))?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// The batch of the next step; waits until it is made. Without workers it is made here.
    ///
    /// # Errors
    /// [`Error::TooManyCorrupt`] or [`Error::NoneReadable`]; afterwards, and after any other error, the loader has ended.
    #[expect(clippy::should_implement_trait, reason = "an iterator would have to end or to wrap errors in options")]
    pub fn next(&mut self) -> Result<Batch> {
        if let Some(reason) = &self.ended {
            return Err(Error::Ended { reason: reason.clone() });
        }
        let made = match self.threads.is_empty() {
            false => self.shared.take(self.step),
            true => self
                .shared
                .maker
                .make(self.step, &self.shared.stop)
                .and_then(|made| made.ok_or_else(|| Error::Ended { reason: "it was stopped".into() })),
        };
        let result = made.and_then(|made| self.accept(made));
        match &result {
            Ok(_) => self.step += 1,
            Err(error) => self.end(error.to_string()),
        }
        result
    }

    /// Counts what was unreadable and stops above the allowed share.
    fn accept(&mut self, made: Made) -> Result<Batch> {
        self.images += made.batch.ids.len() as u64;
        for (id, message) in made.unreadable {
            if self.corrupt.insert(id) {
                tracing::warn!("unreadable image left out: {message}");
                self.first_corrupt.get_or_insert(message);
            }
        }
        let of = self.images.max(FAIR_SAMPLE).min(self.shared.maker.images());
        if self.corrupt.len() as f64 > self.settings.max_corrupt_share() * of as f64 {
            return Err(Error::TooManyCorrupt {
                count: self.corrupt.len(),
                of,
                share: self.settings.max_corrupt_share(),
                first: self.first_corrupt.clone().unwrap_or_default(),
            });
        }
        Ok(made.batch)
    }

    fn end(&mut self, reason: String) {
        self.ended = Some(reason);
        self.shared.stop.store(true, Ordering::Relaxed);
        // Under the lock: a worker between its check and its wait would miss the signal.
        drop(self.shared.lock());
        self.shared.room.notify_all();
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.end("it was dropped".into());
        for thread in self.threads.drain(..) {
            // A worker's panic was reported by `next`; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}
