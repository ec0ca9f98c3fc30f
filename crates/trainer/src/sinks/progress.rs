//! The progress bar, or lines in the log where there is no terminal.

use super::Sink;
use crate::{Event, StepRow, TimingRow};
use indicatif::{ProgressBar, ProgressStyle};
use std::io;
use std::time::{Duration, Instant};

const TEMPLATE: &str = "{bar:28} {pos}/{len} [{elapsed} < {eta}] {msg}";

/// Shows how a run goes. Draws on the bar it is given; where that bar is hidden, it logs a line every so often.
#[derive(Debug)]
pub struct ProgressSink {
    bar: ProgressBar,
    log_every: Duration,
    logged: Option<Instant>,
    total: u64,
    /// The last score of each name, as shown.
    scores: String,
}

impl ProgressSink {
    /// Draws on `bar`, which decides where to (a hidden one draws nothing); logs every `log_every` if it is hidden.
    #[must_use]
    pub fn new(bar: ProgressBar, log_every: Duration) -> Self {
        Self { bar, log_every, logged: None, total: 0, scores: String::new() }
    }

    fn start(&mut self, step: u64, total: u64) {
        self.total = total;
        self.bar.set_length(total);
        self.bar.set_position(step);
        // A template that does not parse leaves the standard bar.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            self.bar.set_style(style.progress_chars("━╸─"));
        }
        self.bar.reset_eta();
    }

    fn step(&mut self, row: &StepRow, timing: &TimingRow) {
        if !self.bar.is_hidden() {
            self.bar.set_position(row.step);
            self.bar.set_message(format!("{}{}", described(row, timing), self.scores));
        } else if self.logged.is_none_or(|at| at.elapsed() >= self.log_every) || row.step == self.total {
            self.logged = Some(Instant::now());
            tracing::info!("step {}/{} {}{}", row.step, self.total, described(row, timing), self.scores);
        }
    }
}

/// `loss 5.123 · lr 1.0e-3 · 85 images/s · waits 2 %`, with each loss where there are several.
fn described(row: &StepRow, timing: &TimingRow) -> String {
    let mut parts: Vec<String> = row.losses.0.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
    parts.extend(row.lr.0.first().map(|(_, lr)| format!("lr {lr:.1e}")));
    parts.push(format!("{:.0} images/s", timing.images_per_second));
    parts.push(format!("waits {:.0} %", 100.0 * timing.wait_share));
    parts.join(" · ")
}

impl Sink for ProgressSink {
    fn name(&self) -> &str {
        "progress"
    }

    fn record(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Started { step, total, resumed } => {
                self.start(*step, *total);
                if let Some(path) = resumed {
                    tracing::info!("resumed after step {step} from {}", path.display());
                }
            }
            Event::Step { row, timing, .. } => self.step(row, timing),
            Event::Probed(row) => {
                let scores: Vec<String> = row.scores.0.iter().map(|(name, v)| format!("{name} {v:.1}")).collect();
                self.scores = format!(" · {}", scores.join(" · "));
                tracing::info!("after step {}: {}", row.step, scores.join(", "));
            }
            Event::Shown(row) => tracing::debug!("{} after step {}", row.matrix, row.step),
            Event::Saved { step, path } => tracing::debug!("saved after step {step}: {}", path.display()),
            Event::Ended { .. } => self.bar.abandon(),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ProgressSink;
    use crate::{Event, Named, ProbeRow, Sink, StepRow, TimingRow};
    use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// Keeps what is drawn.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            160
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_bar_shows_loss_speed_and_score() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let mut sink = ProgressSink::new(bar.clone(), Duration::from_secs(5));
        sink.record(&Event::Started { step: 10, total: 40, resumed: None }).unwrap();
        let scores = Named(vec![("knn".into(), 43.26)]);
        sink.record(&Event::Probed(&ProbeRow { step: 10, scores })).unwrap();
        let row = StepRow {
            step: 11,
            losses: Named(vec![("prediction".into(), 5.1234)]),
            lr: Named(vec![("student".into(), 1e-3)]),
            ..StepRow::default()
        };
        let timing = TimingRow { step: 11, images_per_second: 85.4, wait_share: 0.021, ..TimingRow::default() };
        sink.record(&Event::Step { row: &row, timing: &timing, logged: false }).unwrap();
        screen.0.lock().unwrap().clear();
        bar.abandon();
        let shown = screen.0.lock().unwrap().clone();
        for part in ["11/40", "prediction 5.123", "lr 1.0e-3", "85 images/s", "waits 2 %", "knn 43.3"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }
}
