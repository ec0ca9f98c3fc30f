//! Threads of a process: one rayon pool for everything, and candle's own pool kept out of its way.

use crate::{Error, Result};

/// Sets the number of threads that compute, for this crate, the matrix products and candle alike.
///
/// Call it first in `main`: before any thread starts, and before any tensor is made.
/// candle reads its settings from the environment, once, at first use; they are written here.
///
/// # Errors
/// `threads` is 0, or the pool exists already (a second call, or rayon was used before).
pub fn init(threads: usize) -> Result<()> {
    const OP: &str = "threads";
    if threads == 0 {
        return Err(Error::argument(OP, "0 threads: must be at least 1"));
    }
    set("RAYON_NUM_THREADS", threads);
    // candle would split elementwise work over a pool of its own whose threads spin, the caller too, until the slowest
    // is done: on a busy machine that took a third of all time. With one thread there is no such pool.
    set("CANDLE_NUM_THREADS", 1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("occlude-{i}"));
    pool.build_global().map_err(|e| Error::argument(OP, format!("{e}: call this first, and once")))
}

fn set(name: &str, value: usize) {
    // SAFETY: the caller runs this before any other thread exists, as `init` documents, so nothing reads the
    // environment at the same time.
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
}
