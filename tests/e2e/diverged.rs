//! A run whose loss is no number stops before it does harm, and the step can be run again.

use occlude_e2e::Lab;

#[test]
fn a_diverged_step_is_stored_and_replayed() {
    let lab = Lab::new();
    let error = lab.occlude("train tiny.toml --out run --set method.optimizer.lr=1e38").refuses();
    assert!(error.contains("is not finite") && error.contains("lower learning rate"), "{error}");
    let command =
        error.split('`').find(|part| part.starts_with("occlude replay ")).unwrap_or_else(|| panic!("{error}"));
    let replayed = lab.occlude(command.trim_start_matches("occlude ")).succeeds();
    assert!(
        replayed.stdout.contains("prediction = ") && replayed.stdout.contains("of seed 3"),
        "{}",
        replayed.report()
    );
    // The report is written with what there is; pictures of such weights say why they are missing.
    let report = lab.occlude("report run").succeeds();
    assert!(report.stderr.contains("left out"), "{}", report.report());
    assert!(lab.text("run/report.html").contains("Not made"));
}

#[test]
fn what_is_no_stored_step_is_refused() {
    let lab = Lab::new();
    lab.occlude("train tiny.toml --out run").succeeds();
    let error = lab.occlude("replay run/replay/step-00000001").refuses();
    assert!(error.contains("step-00000001"), "{error}");
}
