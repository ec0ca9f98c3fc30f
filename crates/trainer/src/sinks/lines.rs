//! JSON lines: `metrics.jsonl`, equal for equal seeds, and `timing.jsonl`, which never is.

use super::Sink;
use super::growing::GrowingFile;
use crate::Event;
use serde::Serialize;
use std::io;
use std::path::Path;

/// Writes rows of steps, probes and matrices. f64 are written with the digits that give back every bit.
#[derive(Debug)]
pub struct MetricsSink {
    lines: Lines,
}

/// Writes speeds.
#[derive(Debug)]
pub struct TimingSink {
    lines: Lines,
}

#[derive(Debug)]
struct Lines {
    file: GrowingFile,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: GrowingFile::open(path)? })
    }

    fn add(&mut self, row: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        self.file.append(&line)
    }
}

impl MetricsSink {
    /// Writes to `path`, usually `RunDir::metrics_file`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { lines: Lines::open(path)? })
    }
}

impl TimingSink {
    /// Writes to `path`, usually `RunDir::timing_file`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { lines: Lines::open(path)? })
    }
}

impl Sink for MetricsSink {
    fn name(&self) -> &str {
        "metrics.jsonl"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Step { row, logged: true, .. } => self.lines.add(row),
            Event::Probed(row) => self.lines.add(row),
            Event::Shown(row) => self.lines.add(row),
            _ => Ok(()),
        }
    }

    fn position(&mut self) -> io::Result<Option<u64>> {
        self.lines.file.position().map(Some)
    }

    fn rewind(&mut self, position: u64) -> io::Result<()> {
        self.lines.file.rewind(position)
    }
}

impl Sink for TimingSink {
    fn name(&self) -> &str {
        "timing.jsonl"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Step { timing, logged: true, .. } => self.lines.add(timing),
            _ => Ok(()),
        }
    }

    fn position(&mut self) -> io::Result<Option<u64>> {
        self.lines.file.position().map(Some)
    }

    fn rewind(&mut self, position: u64) -> io::Result<()> {
        self.lines.file.rewind(position)
    }
}
