//! Features of a folder in three formats, and scores of a finished run.

use occlude_e2e::{Lab, speckles};

fn trained() -> Lab {
    let lab = Lab::new().images(10);
    lab.occlude("train tiny.toml --out run").succeeds();
    lab
}

#[test]
fn every_format_is_written() {
    let lab = trained();
    for (file, magic) in [("f.npy", &b"\x93NUMPY"[..]), ("f.parquet", b"PAR1")] {
        lab.occlude(&format!("features run --data images --out {file}")).succeeds();
        assert!(lab.read(file).starts_with(magic), "{file}");
    }
    lab.occlude("features run --data images --out f.safetensors").succeeds();
    let tensors = candle_core::safetensors::load(lab.path("f.safetensors"), &candle_core::Device::Cpu).unwrap();
    let features = tensors.values().find(|tensor| tensor.rank() == 2).unwrap();
    assert_eq!(features.dims(), [10, 16], "one row an image, the width of the encoder");
    let error = lab.occlude("features run --data images --out f.txt").refuses();
    assert!(error.contains("npy") && error.contains("parquet"), "{error}");
}

#[test]
fn eval_scores_a_run_and_a_checkpoint() {
    let lab = trained();
    let newest = lab.checkpoints("run").pop().unwrap();
    for target in ["run".to_owned(), format!("run/checkpoints/{newest}")] {
        let outcome = lab.occlude(&format!("eval {target}")).succeeds();
        for row in ["k-NN", "linear", "random weights", "pixels", "global"] {
            assert!(outcome.stdout.contains(row), "{row}: {}", outcome.report());
        }
    }
    for (folder, target) in [("run", format!("checkpoints/{newest}")), ("run/checkpoints", newest), ("run", ".".into())]
    {
        lab.occlude(&format!("eval {target}")).inside(folder).succeeds();
    }
    let student = lab.occlude("eval run --weights student").succeeds();
    assert!(student.stdout.contains("student"), "{}", student.report());
}

#[test]
fn scores_of_an_evaluation_go_into_the_run() {
    let lab = trained();
    let linear = lab.text("run/summary.json");
    let outcome = lab.occlude("eval run --protocol lowshot --set eval.lowshot.shots=[1,3] --json").succeeds();
    let told: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let scores = told["details"]["lowshot"]["scores"].as_array().unwrap();
    assert_eq!((scores.len(), scores[1]["accuracies"].as_array().unwrap().len()), (2, 3), "{told}");
    let stored: serde_json::Value = serde_json::from_str(&lab.text("run/scores.json")).unwrap();
    assert_eq!(stored["lowshot"], told["details"]["lowshot"]);
    assert!(stored["knn"].is_array() && stored["linear"].is_array(), "older scores stay: {stored}");
    let summary: serde_json::Value = serde_json::from_str(&lab.text("run/summary.json")).unwrap();
    assert_eq!(summary["scores"]["lowshot_3-shot"], told["low-shot, 3-shot"]);
    assert_eq!(summary["linear"], serde_json::from_str::<serde_json::Value>(&linear).unwrap()["linear"]);
    assert!(lab.text("run/report.html").contains("Low-shot classification"));
    assert!(!lab.text("run/report.html").contains("shots = [\n    1,\n    3"), "the settings are those of the run");

    let before = lab.text("run/scores.json");
    let student =
        lab.occlude("eval run --weights student --protocol linear --set eval.linear.protocol=moca").succeeds();
    assert!(student.stdout.contains("best of all heads and epochs"), "{}", student.report());
    assert_eq!(lab.text("run/scores.json"), before, "of other weights: printed only");
    let refused = lab.occlude("eval run --set train.batch=3").refuses();
    assert!(refused.contains("only settings of the evaluation"), "{refused}");
    let lacking = lab.occlude("eval run --protocol knn --set eval.poolings=[\"class\"]").refuses();
    assert!(lacking.contains("no class token"), "{lacking}");
}

#[test]
fn a_split_folder_is_not_cut_in_half_without_a_word() {
    let lab = trained();
    for n in 0..5 {
        let split = if n < 3 { "train" } else { "val" };
        speckles(&lab.path(&format!("both/{split}/a/{n}.png")), 24, n);
        speckles(&lab.path(&format!("both/{split}/b/{n}.png")), 24, 10 + n);
    }
    let default = lab.occlude("features run --data both --out train.npy").succeeds();
    assert!(default.stderr.contains("4 test images") && default.stdout.contains("6 images"), "{}", default.report());
    let test = lab.occlude("features run --data both --split test --out test.npy").succeeds();
    assert!(test.stdout.contains("4 images") && !test.stderr.contains("WARN"), "{}", test.report());
}

#[test]
fn what_is_no_run_is_refused() {
    let lab = Lab::new();
    for command in ["eval nowhere", "report nowhere", "features nowhere --data images --out f.npy"] {
        let error = lab.occlude(command).refuses();
        assert!(error.contains("nowhere"), "{error}");
    }
}
