//! What a scoring is doing: a line a stage in the log, a bar on a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// The stages of one scoring. The bar goes when this does.
pub(crate) struct Stages {
    bar: ProgressBar,
}

impl Stages {
    /// A bar on standard error, shown on a terminal only.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        crate::log::above(Some(bar.clone()));
        Self { bar }
    }

    /// Begins a stage: from here [`Self::at`] is of it.
    pub(crate) fn begin(&self, what: &str) {
        tracing::info!("scoring: {what}");
        self.bar.reset();
        self.bar.set_message(what.to_owned());
    }

    /// So many of so many are done.
    pub(crate) fn at(&self, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        crate::log::above(None);
        self.bar.finish_and_clear();
    }
}
