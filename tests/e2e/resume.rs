//! A run that is stopped in any way ends where it would have ended.

use occlude_e2e::{Lab, Outcome};

/// Eight steps, a checkpoint every second one.
const TRAIN: &str = "train tiny.toml --out";

/// Both runs have the same weights, optimizer, averages, prototypes and state, and wrote the same rows.
fn assert_same(lab: &Lab, one: &str, other: &str) {
    let (left, right) = (lab.weights(one), lab.weights(other));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&left), ["method.safetensors", "optimizer.safetensors"]);
    assert_eq!(names(&left), names(&right));
    for ((name, left), (_, right)) in left.iter().zip(&right) {
        assert!(left == right, "{name} differs between {one} and {other}");
    }
    assert_eq!(lab.text(&format!("{one}/metrics.jsonl")), lab.text(&format!("{other}/metrics.jsonl")));
}

fn straight(lab: &Lab) -> Outcome {
    lab.occlude(&format!("{TRAIN} straight")).succeeds()
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let lab = Lab::new();
    straight(&lab);
    // Step 5 lies between two checkpoints, so rows that were written must be taken back.
    lab.occlude(&format!("{TRAIN} broken")).paused_at("step:5").kill();
    let resumed = lab.occlude(&format!("{TRAIN} broken")).succeeds();
    assert!(resumed.said().contains("resumed after step 4"), "{}", resumed.report());
    assert_same(&lab, "straight", "broken");
}

#[test]
fn a_run_killed_twice_and_before_its_first_checkpoint_resumes() {
    let lab = Lab::new();
    straight(&lab);
    lab.occlude(&format!("{TRAIN} broken")).paused_at("step:1").kill();
    lab.occlude(&format!("{TRAIN} broken")).paused_at("step:3").kill();
    lab.occlude(&format!("{TRAIN} broken")).paused_at("step:7").kill();
    lab.occlude(&format!("{TRAIN} broken")).succeeds();
    assert_same(&lab, "straight", "broken");
}

#[test]
fn a_kill_in_the_middle_of_a_save_loses_nothing() {
    let lab = Lab::new();
    straight(&lab);
    for phase in ["Begun", "PartsWritten", "Written", "Published"] {
        let out = format!("broken-{phase}");
        lab.occlude(&format!("{TRAIN} {out}")).paused_at(&format!("commit:6:{phase}")).kill();
        let newest = if phase == "Published" { "step-00000006" } else { "step-00000004" };
        assert_eq!(lab.checkpoints(&out).last().map(String::as_str), Some(newest), "{}", lab.tree());
        lab.occlude(&format!("{TRAIN} {out}")).succeeds();
        assert_same(&lab, "straight", &out);
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_and_named() {
    let lab = Lab::new();
    straight(&lab);
    lab.occlude(&format!("{TRAIN} broken")).paused_at("step:7").kill();
    let newest = format!("broken/checkpoints/{}", lab.checkpoints("broken").pop().unwrap());
    let mut bytes = lab.read(&format!("{newest}/method.safetensors"));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    lab.write(&format!("{newest}/method.safetensors"), bytes);
    let resumed = lab.occlude(&format!("{TRAIN} broken")).succeeds();
    let said = resumed.said();
    assert!(said.contains("step-00000006") && said.contains("damaged"), "{}", resumed.report());
    assert!(said.contains("resumed after step 4"), "{}", resumed.report());
    assert_same(&lab, "straight", "broken");
}

#[test]
fn a_polite_stop_saves_and_says_how_to_go_on() {
    let lab = Lab::new();
    straight(&lab);
    for signal in ["TERM", "INT", "USR2"] {
        let out = format!("stopped-{signal}");
        let stopped = lab.occlude(&format!("{TRAIN} {out}")).paused_at("step:5").signal(signal);
        assert_eq!(stopped.code, Some(0), "{}", stopped.report());
        assert!(stopped.stdout.contains(&format!("occlude train tiny.toml --out {out}")), "{}", stopped.report());
        // The checkpoint is of the step that was finished, not of the last regular one.
        assert!(lab.checkpoints(&out).contains(&"step-00000005".into()), "{}", lab.tree());
        let resumed = lab.occlude(&format!("{TRAIN} {out}")).succeeds();
        assert!(resumed.said().contains("resumed after step 5"), "{}", resumed.report());
        assert_same(&lab, "straight", &out);
    }
}

#[test]
fn a_stop_while_scoring_ends_the_program_and_the_next_start_scores() {
    let lab = Lab::new();
    for signal in ["TERM", "INT"] {
        let out = format!("stopped-{signal}");
        let stopped = lab.occlude(&format!("{TRAIN} {out}")).paused_at("scoring").signal(signal);
        assert_eq!(stopped.code, None, "ended by the signal\n{}", stopped.report());
        assert!(!lab.path(&format!("{out}/report.html")).exists(), "{}", lab.tree());
        let again = lab.occlude(&format!("{TRAIN} {out}")).succeeds();
        assert!(again.stdout.contains("linear probe") && !again.said().contains("already"), "{}", again.report());
        assert!(lab.text(&format!("{out}/summary.json")).contains("\"linear\""));
    }
}

#[test]
fn the_command_to_go_on_with_names_settings_of_the_environment() {
    let lab = Lab::new();
    let run =
        lab.occlude(&format!("{TRAIN} run")).env("OCCLUDE_SEED", "8").env("OCCLUDE_TRAIN__LENGTH", "{ steps = 9 }");
    let stopped = run.paused_at("step:5").signal("TERM");
    let settings = "go on with: OCCLUDE_SEED=8 OCCLUDE_TRAIN__LENGTH='{ steps = 9 }' ";
    assert!(stopped.stdout.contains(settings), "{}", stopped.report());
}

#[test]
fn a_failing_score_costs_neither_summary_nor_report() {
    let lab = Lab::new();
    // A bank whose images turn unreadable has no neighbours left.
    let lab = lab.images(60);
    let train =
        format!("{TRAIN} run --set data.source.path=images --set probe.every.steps=0 --set data.source.cache_mb=0");
    let paused = lab.occlude(&train).paused_at("scoring");
    std::fs::remove_dir_all(lab.path("images")).unwrap();
    let outcome = paused.goes_on();
    assert_eq!(outcome.code, Some(0), "{}", outcome.report());
    assert!(outcome.stderr.contains("no scores: "), "{}", outcome.report());
    assert!(lab.text("run/summary.json").contains("\"finished\": true"));
    assert!(lab.text("run/report.html").starts_with("<!"));
}

#[test]
fn a_finished_run_is_not_trained_again() {
    let lab = Lab::new();
    straight(&lab);
    let before = (lab.weights("straight"), lab.text("straight/metrics.jsonl"));
    let again = straight(&lab);
    assert!(again.stdout.contains("already finished"), "{}", again.report());
    assert_eq!(before, (lab.weights("straight"), lab.text("straight/metrics.jsonl")));
}

#[test]
fn fresh_begins_anew() {
    let lab = Lab::new();
    straight(&lab);
    let fresh = lab.occlude(&format!("{TRAIN} straight --fresh --set seed=5")).succeeds();
    assert!(!fresh.said().contains("resumed"), "{}", fresh.report());
    assert!(lab.text("straight/config.toml").contains("seed = 5"));
}

#[test]
fn a_run_is_the_same_for_any_number_of_workers_and_threads() {
    let lab = Lab::new();
    straight(&lab);
    lab.occlude(&format!("{TRAIN} one --set data.loader.workers=3 --set threads=1")).succeeds();
    lab.occlude(&format!("{TRAIN} three --set threads=3")).succeeds();
    assert_same(&lab, "straight", "one");
    assert_same(&lab, "straight", "three");
}

#[test]
#[cfg(target_os = "linux")] // other systems do not tell how much memory was used
fn a_run_that_recomputes_is_the_same_in_less_memory() {
    let lab = Lab::new();
    let deep =
        "--set train.batch=64 --set train.length.steps=2 --set method.encoder.dim=64 --set method.encoder.depth=16";
    let peak = |name: &str, recompute: bool| {
        lab.occlude(&format!("{TRAIN} {name} {deep} --set method.encoder.recompute={recompute}")).succeeds();
        let summary: serde_json::Value = serde_json::from_str(&lab.text(&format!("{name}/summary.json"))).unwrap();
        summary["peak_memory_mb"].as_f64().unwrap()
    };
    let (kept, recomputed) = (peak("kept", false), peak("recomputed", true));
    assert_same(&lab, "kept", "recomputed");
    assert!(recomputed < 0.85 * kept, "{recomputed} of {kept} MiB");
}

#[test]
fn a_run_ends_with_its_files() {
    let lab = Lab::new();
    let outcome = straight(&lab);
    for file in ["config.toml", "run.json", "metrics.jsonl", "timing.jsonl", "summary.json", "report.html"] {
        assert!(!lab.read(&format!("straight/{file}")).is_empty(), "{file}");
        assert!(file != "report.html" || outcome.stdout.contains(file), "{}", outcome.report());
    }
    let summary: serde_json::Value = serde_json::from_str(&lab.text("straight/summary.json")).unwrap();
    assert_eq!(summary["steps"], 8);
    for score in ["knn", "knn_random_weights", "knn_pixels", "linear"] {
        let value = summary[score].as_f64().unwrap_or_else(|| panic!("{score} in {summary}"));
        assert!((0.0..=100.0).contains(&value), "{score} = {value}");
    }
    let run: serde_json::Value = serde_json::from_str(&lab.text("straight/run.json")).unwrap();
    for key in ["version", "seed", "device", "command"] {
        assert!(!run[key].is_null(), "{key} in {run}");
    }
}
