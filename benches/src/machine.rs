//! What the figures were taken on, and what the process used.

/// The processor and the instruction sets that matter here.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Name of the processor, where the system tells.
    pub cpu: String,
    /// Instruction sets, widest last.
    pub features: Vec<&'static str>,
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn this() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field =
            |name: &str| info.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1));
        let flags: Vec<&str> = field("flags").unwrap_or_default().split_whitespace().collect();
        let known = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"];
        Self {
            cpu: field("model name").unwrap_or("unknown processor").to_owned(),
            features: known.into_iter().filter(|name| flags.contains(name)).collect(),
        }
    }
}

/// Largest resident memory of the process so far, in MiB; `None` where the system does not tell.
#[must_use]
pub fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// CPU time of all threads so far, in seconds; `None` where the system does not tell.
#[must_use]
pub fn cpu_seconds() -> Option<f64> {
    // Linux reports in ticks of 1/100 s on every architecture this runs on.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets and may hold spaces.
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// Processes that ran or waited to run, averaged over 1, 5 and 15 minutes; `None` where the system does not tell.
#[must_use]
pub fn load_average() -> Option<[f64; 3]> {
    parse_load(&std::fs::read_to_string("/proc/loadavg").ok()?)
}

fn parse_load(text: &str) -> Option<[f64; 3]> {
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
}

#[cfg(test)]
mod tests {
    use super::{cpu_seconds, parse_load, peak_memory_mib};

    #[test]
    fn the_load_is_read() {
        assert_eq!(parse_load("0.52 1.00 2.13 3/167 4711\n"), Some([0.52, 1.0, 2.13]));
        assert_eq!((parse_load(""), parse_load("a b c")), (None, None));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_and_time_are_seen() {
        let block = vec![1_u8; 64 << 20];
        assert!(peak_memory_mib().unwrap() > 60.0, "{}", block.iter().map(|b| u64::from(*b)).sum::<u64>());
        assert!(cpu_seconds().unwrap() >= 0.0);
    }
}
