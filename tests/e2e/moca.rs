//! MOCA from outside: train, kill, resume, score, export, and begin from what was exported.

use candle_core::Device;
use occlude_e2e::Lab;
use std::collections::HashMap;

const CONFIG: &str = include_str!("../moca.toml");

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("moca.toml", CONFIG);
    lab
}

/// Values by name.
fn exported(lab: &Lab, name: &str) -> HashMap<String, Vec<f32>> {
    let tensors = candle_core::safetensors::load(lab.path(name), &Device::Cpu).unwrap();
    let values = |tensor: &candle_core::Tensor| {
        tensor.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap().to_vec1().unwrap()
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let lab = lab();
    lab.occlude("train moca.toml --out straight").succeeds();
    lab.occlude("train moca.toml --out broken").paused_at("step:5").kill();
    let resumed = lab.occlude("train moca.toml --out broken").succeeds();
    assert!(resumed.said().contains("resumed after step 4"), "{}", resumed.report());
    assert!(lab.weights("straight") == lab.weights("broken"), "weights, codebook and optimizer");
    assert_eq!(lab.text("straight/metrics.jsonl"), lab.text("broken/metrics.jsonl"));
}

#[test]
fn every_protocol_scores_a_run() {
    let lab = lab();
    lab.occlude("train moca.toml --out run").succeeds();
    let few = "--set eval.linear.moca.epochs=2 --set eval.linear.moca.batch=16 --set eval.lowshot.shots=[1,2]";
    let scored = lab
        .occlude(&format!("eval run --protocol knn,linear,lowshot --set eval.linear.protocol=moca {few}"))
        .succeeds();
    for line in ["k-NN, average pooling", "linear probe, average pooling", "1-shot", "2-shot", "random weights"] {
        assert!(scored.stdout.contains(line), "{line}\n{}", scored.report());
    }
    assert!(lab.text("run/scores.json").contains("\"lowshot\""));
}

#[test]
fn official_names_make_the_round_trip() {
    let lab = lab();
    lab.occlude("train moca.toml --out run").succeeds();
    lab.occlude("export run --layout moca --full --out full.safetensors").succeeds();
    lab.occlude("export run --layout moca --out teacher.safetensors").succeeds();
    let (full, teacher) = (exported(&lab, "full.safetensors"), exported(&lab, "teacher.safetensors"));
    for name in ["encoder.blocks.0.attn.qkv.weight", "bow_extractor.bow_extractor.0._embedding"] {
        assert!(full.contains_key(name), "{name} in {:?}", full.keys());
    }
    assert!(teacher.iter().all(|(name, values)| full[&format!("encoder_teacher.{name}")] == *values));
    // A run that begins with the whole state and learns nothing has it still, but for words and what follows them.
    let still = "--set method.optimizer.lr=0 --set method.optimizer.generator_lr=0 --set method.optimizer.momentum=1 --set train.length.steps=1";
    lab.occlude(&format!("train moca.toml --out again --init-from full.safetensors {still}")).succeeds();
    lab.occlude("export again --layout moca --full --out again.safetensors").succeeds();
    let again = exported(&lab, "again.safetensors");
    let kept = |name: &&String| !name.contains("bow_extractor") && !name.contains("b0_bn");
    assert!(full.keys().filter(kept).count() > 60);
    assert!(full.keys().filter(kept).all(|name| full[name] == again[name]));
    // The encoder alone is enough to begin with; what it lacks is said.
    let begun = lab.occlude(&format!("train moca.toml --out third --init-from teacher.safetensors {still}")).succeeds();
    assert!(begun.said().contains("missing") || begun.said().contains("left as"), "{}", begun.report());
    lab.occlude("export third --layout moca --out third.safetensors").succeeds();
    assert!(exported(&lab, "third.safetensors") == teacher);
}
