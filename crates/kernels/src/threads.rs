//! The threads of a process: one rayon pool for everything, and candle's own pool kept out of its way.

use crate::{Error, Result};
use std::error::Error as _;

const OP: &str = "threads";

/// Sets the number of threads that compute, for this crate, the matrix products and candle alike.
///
/// Call it first in `main`: before any thread starts, and before any tensor is made. candle reads its settings from the
/// environment, once, at first use; they are written here. On Linux other threads are noticed; elsewhere that none runs
/// is the caller's word.
///
/// # Errors
/// `threads` is 0, other threads run already, the pool exists already (a second call, or rayon was used before), or the
/// system does not start so many.
pub fn init(threads: usize) -> Result<()> {
    if threads == 0 {
        return Err(Error::argument(OP, "0 threads: must be at least 1"));
    }
    if running().is_some_and(|count| count != 1) {
        return Err(too_late("other threads run already"));
    }
    set("RAYON_NUM_THREADS", threads);
    // candle would split elementwise work over a pool of its own whose threads spin, the caller too, until the slowest
    // is done: on a busy machine that took a third of all time. With one thread there is no such pool.
    set("CANDLE_NUM_THREADS", 1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("occlude-{i}"));
    pool.build_global().map_err(|error| match error.source() {
        Some(cause) => Error::argument(OP, format!("{threads} threads could not be started ({cause}): ask for fewer")),
        None => too_late("the pool exists already"),
    })
}

fn too_late(what: &str) -> Error {
    Error::argument(OP, format!("{what}: call this first, and once"))
}

/// How many threads this process has, where the system says so.
fn running() -> Option<usize> {
    if cfg!(target_os = "linux") { std::fs::read_dir("/proc/self/task").ok().map(Iterator::count) } else { None }
}

fn set(name: &str, value: usize) {
    // SAFETY: no other thread reads the environment at the same time: `init` found none, or, where it cannot look, its
    // caller runs it before any other exists, as it documents.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var(name, value.to_string());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_threads_are_refused_before_anything_is_set() {
        let message = super::init(0).unwrap_err().to_string();
        assert_eq!(message, "threads: 0 threads: must be at least 1");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn beside_other_threads_nothing_is_set() {
        let before = std::env::var_os("CANDLE_NUM_THREADS");
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let message = super::init(1).unwrap_err().to_string();
        assert_eq!(message, "threads: other threads run already: call this first, and once");
        assert_eq!(std::env::var_os("CANDLE_NUM_THREADS"), before);
        drop(stop);
        assert!(other.join().unwrap().is_err());
    }
}
