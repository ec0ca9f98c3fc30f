//! Messages: events of the libraries and errors, on standard error, one line each.

use indicatif::ProgressBar;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Warnings of all libraries, and what the program and its loop tell about progress.
const SHOWN: &str = "warn,occlude=info,occlude_trainer=info";

/// The progress bar, so that a message does not land in the middle of it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows events of the libraries; `RUST_LOG` chooses others. A panic becomes one line as well.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(SHOWN));
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveTheBar);
    let events = events.with_ansi(io::stderr().is_terminal());
    events.without_time().with_target(false).compact().init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let words = panic.payload().downcast_ref::<&str>().map(|words| (*words).to_owned());
        let words = words.or_else(|| panic.payload().downcast_ref::<String>().cloned()).unwrap_or_default();
        let message = words.replace('\n', " ");
        eprintln!("error: internal error{place}: {message}; please report it");
    }));
}

/// From now on messages appear above `bar`; with `None` there is no bar any more.
pub(crate) fn above(bar: Option<ProgressBar>) {
    *held() = bar;
}

/// A message that panicked leaves the bar as it was.
fn held() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Standard error, with the bar out of the way.
struct AboveTheBar;

impl Write for AboveTheBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &*held() {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for AboveTheBar {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

/// An error and its causes in one line, each said once. (Causes that are already part of the message above them are
/// left out, and so is a backtrace, whatever the environment asks for.)
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if !line.contains(&text) {
            let separator = if line.is_empty() { "" } else { ": " };
            line = format!("{line}{separator}{text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::one_line;
    use anyhow::{Context, anyhow};

    #[test]
    fn an_error_is_one_line_and_says_each_cause_once() {
        let error =
            Err::<(), _>(anyhow!("no such\nfile")).context("a.toml: no such file").context("reading").unwrap_err();
        assert_eq!(one_line(&error), "reading: a.toml: no such file");
    }
}
