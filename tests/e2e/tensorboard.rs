//! The event file, opened by TensorBoard's own reader where there is one.

use occlude_e2e::Lab;
use std::process::Command;

/// Prints `tag step value` for every scalar, with the reader that the TensorBoard page uses.
const READER: &str = r#"
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
for tag in events.Tags()["scalars"]:
    for event in events.Scalars(tag):
        print(tag, event.step, event.value)
"#;

/// A Python that has TensorBoard (`OCCLUDE_TEST_PYTHON`, else `python3`); `None`, after saying so, where there is none. With
/// `CI=true` that is a failure.
fn python() -> Option<String> {
    let name = std::env::var("OCCLUDE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&name).args(["-c", "import tensorboard"]).output().is_ok_and(|out| out.status.success());
    assert!(found || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has a Python with TensorBoard");
    if !found {
        eprintln!("skipped: no Python with TensorBoard here to open the event file");
    }
    found.then_some(name)
}

#[test]
fn tensorboard_reads_every_scalar_once_after_a_kill() {
    let Some(python) = python() else { return };
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").paused_at("step:5").kill();
    lab.occlude("train tiny.toml --out run").succeeds();
    let output = Command::new(python).args(["-c", READER]).arg(lab.path("run")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut read: Vec<(u64, f64)> = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("loss/prediction ")) {
        let mut words = line.split(' ').skip(1);
        read.push((words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap()));
    }
    let rows = lab.text("run/metrics.jsonl");
    let rows = rows.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let written: Vec<(u64, f64)> =
        rows.filter_map(|row| Some((row["step"].as_u64()?, row["losses"]["prediction"].as_f64()?))).collect();
    assert_eq!(written.len(), 8, "eight steps, each logged once");
    assert_eq!(read.len(), written.len(), "{text}");
    for ((step, value), (expected_step, expected)) in read.iter().zip(&written) {
        assert_eq!(step, expected_step);
        assert!((value - expected).abs() <= 1e-6 * expected.abs(), "step {step}: {value}, {expected}"); // f32 in the file
    }
}
