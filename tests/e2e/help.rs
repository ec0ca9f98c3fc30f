//! Every command explains itself, with examples that are real.

use occlude_e2e::Lab;

const COMMANDS: &[&str] = &["train", "eval", "features", "report", "config", "export", "replay"];

#[test]
fn every_command_shows_examples() {
    let lab = Lab::new();
    let all = lab.occlude("--help").succeeds();
    for command in COMMANDS {
        assert!(all.stdout.contains(command), "{}", all.report());
        let help = lab.occlude(&format!("{command} --help")).succeeds();
        assert!(help.stdout.contains("Example"), "{}", help.report());
        assert!(help.stdout.contains(&format!("occlude {command}")), "{}", help.report());
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let lab = Lab::new();
    for wrong in ["", "trian", "train --no-such-flag", "export"] {
        let outcome = lab.occlude(wrong).output();
        assert_eq!(outcome.code, Some(2), "{}", outcome.report());
    }
}

#[test]
fn the_version_is_known() {
    let lab = Lab::new();
    assert!(lab.occlude("--version").succeeds().stdout.starts_with("occlude "));
}
