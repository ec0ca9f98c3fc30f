//! Where numbers go.

mod growing;
mod lines;
mod progress;
mod tensorboard;

pub use lines::{MetricsSink, TimingSink};
pub use progress::ProgressSink;
pub use tensorboard::TensorBoardSink;

use crate::Event;
use std::io;

/// Takes events and does something with them.
///
/// A sink with a file tells its length when a checkpoint is written and is cut back to it when the run resumes.
pub trait Sink {
    /// Short name, unique in a run: the key of its file's length in a checkpoint, and the subject of its errors.
    fn name(&self) -> &str;

    /// Takes an event.
    ///
    /// # Errors
    /// The event could not be written; it ends the run.
    fn record(&mut self, event: &Event<'_>) -> io::Result<()>;

    /// Brings everything recorded to disk and tells the length of the file; `None` without a file.
    ///
    /// # Errors
    /// The bytes could not be brought to disk.
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Forgets everything after the first `position` bytes: the run goes on from there, or starts (0).
    ///
    /// # Errors
    /// The file could not be cut.
    fn rewind(&mut self, position: u64) -> io::Result<()> {
        let _ = position;
        Ok(())
    }
}
