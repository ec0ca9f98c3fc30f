//! Settings: layers, names, and what the program says about mistakes.

use occlude_e2e::Lab;

#[test]
fn show_prints_a_config_that_reads_back_as_itself() {
    let lab = Lab::new();
    let shown = lab.occlude("config show tiny.toml").succeeds().stdout;
    lab.write("shown.toml", &shown);
    assert_eq!(lab.occlude("config show shown.toml").succeeds().stdout, shown);
}

#[test]
fn later_layers_win() {
    let lab = Lab::new();
    let seed = |run: occlude_e2e::Run<'_>| {
        let shown = run.succeeds().stdout;
        shown.lines().find(|line| line.starts_with("seed = ")).unwrap().to_owned()
    };
    lab.write("seven.toml", "seed = 7\n");
    assert_eq!(seed(lab.occlude("config show seven.toml")), "seed = 7");
    assert_eq!(seed(lab.occlude("config show seven.toml").env("OCCLUDE_SEED", "8")), "seed = 8");
    let argument = lab.occlude("config show seven.toml --set seed=9").env("OCCLUDE_SEED", "8");
    assert_eq!(seed(argument), "seed = 9");
}

#[test]
fn a_preset_needs_no_file() {
    let shown = Lab::new().occlude("config show --set preset=capi-vit-s").succeeds().stdout;
    assert!(shown.contains("batch = 16384") && shown.contains("dim = 384"), "{shown}");
}

#[test]
fn a_length_in_epochs_waits_for_the_images() {
    let lab = Lab::new();
    // Ten epochs of 64 images fit into the run; ten of the 50,000 images assumed without looking do not.
    let set = "--set train.length.steps=100 --set method.optimizer.warmup.epochs=10 --set train.batch=64";
    lab.occlude(&format!("train tiny.toml --out run {set}")).succeeds();
    lab.occlude("report run").succeeds();
    let text = lab.occlude(&format!("config show tiny.toml {set}")).succeeds().stdout;
    lab.write("epochs.toml", text);
    let outcome = lab.occlude("config check epochs.toml").output();
    assert!(outcome.said().contains("taking an epoch for 50000 images"), "{}", outcome.report());
}

#[test]
fn check_names_every_bad_file_and_fails() {
    let lab = Lab::new();
    lab.occlude("config check tiny.toml").succeeds();
    lab.write("bad.toml", "[train]\nbatch = 0\n");
    let outcome = lab.occlude("config check tiny.toml bad.toml").output();
    assert_eq!(outcome.code, Some(1), "{}", outcome.report());
    assert!(outcome.said().contains("bad.toml") && outcome.said().contains("train.batch"), "{}", outcome.report());
}

#[test]
fn an_unknown_key_is_refused_from_every_layer() {
    let lab = Lab::new();
    lab.write("wrong.toml", "[train]\nbacth = 8\n");
    let hint = "did you mean `train.batch`?";
    for run in [
        lab.occlude("config show wrong.toml"),
        lab.occlude("config show tiny.toml --set train.bacth=8"),
        lab.occlude("config show tiny.toml").env("OCCLUDE_TRAIN__BACTH", "8"),
    ] {
        let error = run.refuses();
        assert!(error.contains("train.bacth") && error.contains(hint), "{error}");
    }
    let error = lab.occlude("config show tiny.toml").env("OCCLUDE_TRAIN__BACTH", "8").refuses();
    assert!(error.contains("OCCLUDE_TRAIN__BACTH"), "the variable is named: {error}");
}
