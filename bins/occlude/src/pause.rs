//! Waiting where a test wants it: the end-to-end tests stop the real program at a chosen point and then end it.
//!
//! `OCCLUDE_TEST_PAUSE=step:7` waits after the step of that number, `OCCLUDE_TEST_PAUSE=commit:100:Written` in that
//! phase of committing the checkpoint after that step, `OCCLUDE_TEST_PAUSE=scoring` before the first score at the end.
//! The program writes the file `OCCLUDE_TEST_MARKER` and goes on when it is removed. Without the variables nothing
//! happens.

use occlude_checkpoint::CommitPhase;
use occlude_trainer::{Event, Sink};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The point to wait at.
#[derive(Clone, Debug)]
pub(crate) struct Pause {
    point: String,
    marker: PathBuf,
    /// Steps done.
    step: Arc<AtomicU64>,
}

impl Pause {
    /// Reads the two variables.
    pub(crate) fn from_environment() -> Option<Self> {
        let point = std::env::var("OCCLUDE_TEST_PAUSE").ok()?;
        Some(Self { point, marker: std::env::var_os("OCCLUDE_TEST_MARKER")?.into(), step: Arc::default() })
    }

    /// What sees steps, and what sees commits.
    pub(crate) fn parts(self) -> (Self, impl Fn(CommitPhase) -> io::Result<()> + Send + Sync + 'static) {
        let observer = self.clone();
        (self, move |phase| observer.at(&format!("commit:{}:{phase:?}", observer.step.load(Ordering::Relaxed))))
    }

    /// Waits if `point` is the one asked for.
    pub(crate) fn at(&self, point: &str) -> io::Result<()> {
        if self.point == point {
            std::fs::write(&self.marker, point)?;
            while self.marker.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Sink for Pause {
    fn name(&self) -> &str {
        "pause"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        if let Event::Step { row, .. } = event {
            self.step.store(row.step, Ordering::Relaxed);
            self.at(&format!("step:{}", row.step))?;
        }
        Ok(())
    }
}
