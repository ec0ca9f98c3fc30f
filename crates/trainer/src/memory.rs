//! The memory a process has used.

/// The largest resident memory of this process so far, in MiB: `VmHWM` on Linux, `None` elsewhere.
#[must_use]
pub fn peak_memory_mb() -> Option<f64> {
    // A system that does not tell is no reason to stop a run.
    high_water(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn high_water(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::{high_water, peak_memory_mb};

    #[test]
    fn the_line_of_the_kernel_is_read() {
        assert_eq!(high_water("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2.0));
        assert_eq!(high_water("Name:\tx\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory() {
        assert!(peak_memory_mb().unwrap() > 0.5);
    }
}
