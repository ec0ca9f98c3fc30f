//! Every command explains itself, with examples that are real.

use occlude_e2e::{Lab, speckles};

const COMMANDS: &[&str] = &["train", "eval", "features", "report", "draw", "config", "export", "replay", "repro"];

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

/// Examples of a command: the lines of its help that begin with it, less what they say beside it.
fn examples(help: &str, command: &str) -> Vec<String> {
    let start = format!("  occlude {command} ");
    let lines = help.lines().filter(|line| line.starts_with(&start));
    lines.map(|line| line.trim().split("   ").next().unwrap().trim_start_matches("occlude ").to_owned()).collect()
}

#[test]
fn examples_about_settings_run_as_they_stand() {
    let lab = Lab::new();
    lab.write("my.toml", "seed = 1\n");
    let help = lab.occlude("config --help").succeeds().stdout;
    let examples = examples(&help, "config");
    assert_eq!(examples.len(), 4, "{help}");
    for example in examples {
        // No shell here to find files for a star.
        lab.occlude(&example.replace("configs/capi/*.toml", "tiny.toml")).succeeds();
    }
}

#[test]
fn examples_about_pictures_draw() {
    let lab = Lab::new();
    let help = lab.occlude("draw --help").succeeds().stdout;
    let examples = examples(&help, "draw");
    assert_eq!(examples.len(), 6, "{help}");
    speckles(&lab.path("photo.png"), 24, 1);
    for example in examples {
        let file = lab.occlude(&example).succeeds().stdout;
        let svg = lab.text(file.trim());
        assert!(svg.starts_with("<svg") && svg.matches("<rect").count() > 16, "{example}");
        assert_eq!(svg.contains("<image"), example.contains("--image"), "{example}");
    }
    assert!(lab.occlude("draw masks --image photo.png --out no.svg").refuses().contains("--image"));
    assert!(lab.occlude("draw animation --seconds 0 --out no.svg").refuses().contains("between 1 and 600"));
    let refused = lab.occlude("draw hierarchy --blobs 1 --out no.svg").refuses();
    assert!(refused.contains("blobs = [1]: must be between 2"), "{refused}");
    assert!(lab.occlude("draw serialisations --grid 7 --out no.svg").refuses().contains("side = 2: must divide"));
}

#[test]
fn examples_name_checkpoints_that_the_quick_start_writes() {
    let lab = Lab::new();
    let shown = lab.occlude("config show").succeeds().stdout;
    let last = lab.occlude("eval --help").succeeds().stdout;
    let named = last.split("checkpoints/step-").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    assert!(shown.contains(&format!("steps = {}", named.trim_start_matches('0'))), "{named}: {shown}");
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
