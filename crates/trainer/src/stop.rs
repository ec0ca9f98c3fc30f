//! A wish to stop: the step in progress is finished and saved.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A wish to stop, shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    wish: Arc<AtomicBool>,
    // Only held: the last clone to go takes the handlers with it.
    _handlers: Arc<Handlers>,
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
    /// with exit code 130. Handlers are removed when the last clone is dropped.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn on_signals() -> io::Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        use signal_hook::flag::{register, register_conditional_shutdown};
        let wish = Arc::new(AtomicBool::new(false));
        // Handlers run in this order: the first SIGINT finds the wish unmade and then makes it.
        let mut handlers = Handlers { ids: vec![register_conditional_shutdown(SIGINT, 130, Arc::clone(&wish))?] };
        handlers.ids.push(register(SIGINT, Arc::clone(&wish))?);
        handlers.ids.push(register(SIGTERM, Arc::clone(&wish))?);
        #[cfg(unix)]
        handlers.ids.push(register(signal_hook::consts::SIGUSR2, Arc::clone(&wish))?);
        Ok(Self { wish, _handlers: Arc::new(handlers) })
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
