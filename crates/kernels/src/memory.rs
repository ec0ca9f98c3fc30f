//! Memory of a process that makes and drops large tensors all the time.

/// Lets the allocator keep what is freed. By default glibc hands every large block back to the system, and each step of
/// training pays for it in page faults.
///
/// Call it first in `main`. Elsewhere than on glibc it does nothing; the price is that memory freed after a peak stays
/// with the process.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The largest value that glibc takes; larger blocks still go back.
        const LARGEST: libc::c_int = 32 << 20;
        for (option, value) in [(libc::M_MMAP_THRESHOLD, LARGEST), (libc::M_TRIM_THRESHOLD, libc::c_int::MAX)] {
            // SAFETY: `mallopt` takes two integers and touches nothing of ours; a refused option changes nothing.
            #[allow(unsafe_code)]
            unsafe {
                libc::mallopt(option, value);
            }
        }
    }
}
