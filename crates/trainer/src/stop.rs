//! A wish to stop: the step in progress is finished and saved.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A wish to stop, shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    wish: Arc<AtomicBool>,
    /// Whether signals do again what they do by default.
    released: Arc<AtomicBool>,
    /// The last clone to go takes them with it.
    handlers: Arc<Handlers>,
}

/// Signal handlers in place.
#[derive(Debug, Default)]
struct Handlers {
    ids: Vec<signal_hook::SigId>,
}

impl Drop for Handlers {
    fn drop(&mut self) {
        for id in &self.ids {
            signal_hook::low_level::unregister(*id);
        }
    }
}

impl Stop {
    /// A wish that only [`Stop::request`] makes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A wish that SIGINT, SIGTERM and SIGUSR2 make as well. A SIGINT that finds it made ends the process at once,
    /// with exit code 130. Without [`Stop::release`] the signals do nothing once the last clone is dropped: removing a
    /// handler does not bring back what the system does by default.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn on_signals() -> io::Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        use signal_hook::flag::{register, register_conditional_default, register_conditional_shutdown};
        #[cfg(unix)]
        let signals = [SIGINT, SIGTERM, signal_hook::consts::SIGUSR2];
        #[cfg(not(unix))]
        let signals = [SIGINT, SIGTERM];
        let (wish, released) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut handlers = Handlers::default();
        for signal in signals {
            // Handlers run in this order: the first SIGINT finds the wish unmade and then makes it.
            handlers.ids.push(register_conditional_default(signal, Arc::clone(&released))?);
            if signal == SIGINT {
                handlers.ids.push(register_conditional_shutdown(signal, 130, Arc::clone(&wish))?);
            }
            handlers.ids.push(register(signal, Arc::clone(&wish))?);
        }
        Ok(Self { wish, released, handlers: Arc::new(handlers) })
    }

    /// From now on, also when every clone is gone, the signals end the process as they do where nobody listens.
    pub fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
        // A removed handler would leave nothing behind that could end the process.
        std::mem::forget(Arc::clone(&self.handlers));
    }

    /// Makes the wish.
    pub fn request(&self) {
        self.wish.store(true, Ordering::Relaxed);
    }

    /// Whether it was made.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.wish.load(Ordering::Relaxed)
    }
}
