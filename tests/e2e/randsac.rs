//! RandSAC and MAE from outside: train, kill, resume, report, score, export, and begin from what was exported.

use candle_core::Device;
use occlude_e2e::Lab;
use std::collections::HashMap;

const CONFIG: &str = include_str!("../randsac.toml");
/// The same network as a masked autoencoder.
const MAE: &str = "kind = \"mae\"";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("randsac.toml", CONFIG);
    let mae = CONFIG.replace("kind = \"randsac\"\narchitecture = \"skip\"", MAE);
    let (before, after) = mae.split_once("[method.segments]\nblobs = [4, 2]\n").unwrap();
    lab.write("mae.toml", format!("{before}{after}"));
    lab
}

fn exported(lab: &Lab, name: &str) -> HashMap<String, Vec<f32>> {
    let tensors = candle_core::safetensors::load(lab.path(name), &Device::Cpu).unwrap();
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let lab = lab();
    for config in ["randsac", "mae"] {
        lab.occlude(&format!("train {config}.toml --out {config}-straight")).succeeds();
        lab.occlude(&format!("train {config}.toml --out {config}-broken")).paused_at("step:5").kill();
        let resumed = lab.occlude(&format!("train {config}.toml --out {config}-broken")).succeeds();
        assert!(resumed.said().contains("resumed after step 4"), "{}", resumed.report());
        let (straight, broken) = (format!("{config}-straight"), format!("{config}-broken"));
        assert!(lab.weights(&straight) == lab.weights(&broken), "{config}: weights and optimizer");
        let metrics = |run: &str| lab.text(&format!("{run}/metrics.jsonl"));
        assert_eq!(metrics(&straight), metrics(&broken), "{config}");
    }
}

#[test]
fn the_report_shows_skips_and_predictions() {
    let lab = lab();
    let trained = lab.occlude("train randsac.toml --out run").succeeds();
    assert!(!trained.said().contains("left out"), "{}", trained.report());
    let matrices = lab.text("run/metrics.jsonl").lines().filter(|line| line.contains("\"matrix\":\"skips\"")).count();
    assert_eq!(matrices, 3, "at the start and after each of two epochs");
    let page = lab.text("run/report.html");
    for part in
        ["decoder layer", "encoder block", "4 -&gt; 2 blobs", "segments; the first sees itself", "first quarter"]
    {
        assert!(page.contains(part), "{part}");
    }
    assert!(!lab.text("run/scores.json").contains("teacher") && !page.contains("teacher, "), "there is one network");
    lab.occlude("train mae.toml --out mae").succeeds();
    let page = lab.text("mae/report.html");
    assert!(page.contains("12 of 16 patches hidden") && !page.contains("decoder layer"));
}

#[test]
fn the_probe_of_the_paper_scores_a_run() {
    let lab = lab();
    lab.occlude("train randsac.toml --out run").succeeds();
    let few = "--set eval.linear.mae.epochs=2 --set eval.linear.mae.warmup_epochs=1 --set eval.linear.mae.batch=16";
    let scored = lab.occlude(&format!("eval run --protocol linear --set eval.linear.protocol=mae {few}")).succeeds();
    assert!(scored.stdout.contains("linear probe, average pooling"), "{}", scored.report());
}

#[test]
fn official_names_make_the_round_trip() {
    let lab = lab();
    for (config, own) in [("randsac", "skip.weight"), ("mae", "mask_token")] {
        lab.occlude(&format!("train {config}.toml --out {config}")).succeeds();
        let export = |run: &str, options: &str, out: &str| {
            lab.occlude(&format!("export {run} --layout {config} {options} --out {out}")).succeeds();
            exported(&lab, out)
        };
        let full = export(config, "--full", "full.safetensors");
        let encoder = export(config, "", "encoder.safetensors");
        assert!(full.contains_key(own) && full.contains_key("decoder_pred.weight"), "{:?}", full.keys());
        assert!(!encoder.keys().any(|name| name == own || name.starts_with("decoder_")), "{:?}", encoder.keys());
        assert_eq!(encoder["blocks.0.attn.qkv.weight"].len(), 3 * 16 * 16);
        assert!(encoder.iter().all(|(name, values)| full[name] == *values));
        // A run that begins with all of it and learns nothing has it still.
        let still = "--set method.optimizer.lr=0 --set train.length.steps=1";
        let begin = |file: &str, run: &str| {
            lab.occlude(&format!("train {config}.toml --out {run} --init-from {file} {still}")).succeeds()
        };
        begin("full.safetensors", "again");
        assert!(export("again", "--full", "again.safetensors") == full, "{config}");
        // The encoder alone is enough to begin with; what it lacks is said.
        let begun = begin("encoder.safetensors", "third");
        assert!(begun.said().contains("missing") || begun.said().contains("left as"), "{}", begun.report());
        assert!(export("third", "", "third.safetensors") == encoder, "{config}");
        for run in ["again", "third"] {
            std::fs::remove_dir_all(lab.path(run)).unwrap();
        }
    }
    let refused = lab.occlude("export mae --layout randsac --out wrong.safetensors").refuses();
    assert!(refused.contains("give --layout mae"), "{refused}");
}

#[test]
fn settings_of_another_method_are_unknown_keys() {
    let lab = lab();
    let refused = lab.occlude("train randsac.toml --out run --set method.mask=0.5").refuses();
    assert!(refused.contains("method.mask"), "{refused}");
    let refused = lab.occlude("train randsac.toml --out run --set method.segments.kind=squares").refuses();
    assert!(refused.contains("method.segments.kind") && refused.contains("square"), "{refused}");
    let refused =
        lab.occlude("train randsac.toml --out run --set method.segments.kind=square --set method.segments.side=3");
    assert!(refused.refuses().contains("method.segments.side = 3: must divide"));
}
