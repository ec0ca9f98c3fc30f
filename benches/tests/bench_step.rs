//! The real program: two presets in turn, and what it refuses.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::process::{Command, Output};

fn bench(arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench-step")).args(arguments.split(' ')).output().unwrap()
}

fn refusal(arguments: &str) -> String {
    let output = bench(arguments);
    assert!(!output.status.success(), "{arguments}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn two_presets_take_turns() {
    for method in ["randsac", "mae"] {
        let arguments = format!("--method {method} --preset tiny --against tiny --steps 2 --warmup 1 --json");
        let output = bench(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        for key in ["ratios", "cpu_ratios", "memory_ratios"] {
            assert!(report[key].get("f32").is_some(), "{key}: {report}");
        }
        for side in ["ours", "other"] {
            assert_eq!(report[side]["f32"]["seconds"].as_array().unwrap().len(), 2, "{side}: {report}");
        }
        // Two presets that make the same step are compared by their losses first.
        assert_eq!(report["losses"]["pixels"]["relative"], 0.0, "{report}");
    }
}

#[test]
fn what_cannot_be_measured_is_named() {
    assert!(refusal("--method mae --preset tiny --peer").contains("no PyTorch program for `mae`"));
    assert!(refusal("--method randsac --preset tiny --against vit-s-full-decoding").contains("`--method moca` alone"));
    assert!(refusal("--method capi --preset pixels").contains("`--method randsac` alone"));
    assert!(refusal("--method randsac --preset abacus").contains("abacus"));
    assert!(refusal("--method randsac --preset tiny --against tiny --peer").contains("cannot be used with"));
}
