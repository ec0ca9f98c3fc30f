//! `cargo xtask ci`: every check of the project, in the words a person would type.

use crate::start::{self, cargo};
use anyhow::{Result, bail};
use clap::Args;
use std::process::Command;
use std::time::{Duration, Instant};

/// Format, lints, tests, documentation and house rules; a summary closes the run.
#[derive(Args)]
pub(crate) struct Ci {
    /// Stop at the first check that fails.
    #[arg(long)]
    fail_fast: bool,
}

struct Check {
    name: &'static str,
    words: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
}

const CHECKS: &[Check] = &[
    Check { name: "format", words: &["fmt", "--all", "--check"], env: None },
    Check { name: "lints", words: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], env: None },
    Check { name: "tests", words: &["test", "--workspace"], env: None },
    Check {
        name: "documentation",
        words: &["doc", "--workspace", "--no-deps"],
        env: Some(("RUSTDOCFLAGS", "-D warnings")),
    },
    Check { name: "house rules", words: &["xtask", "tidy"], env: None },
];

struct Outcome {
    name: &'static str,
    passed: bool,
    took: Duration,
}

impl Ci {
    pub(crate) fn run(self) -> Result<()> {
        let mut outcomes = Vec::new();
        for check in CHECKS {
            let outcome = check.run();
            let stop = self.fail_fast && !outcome.passed;
            outcomes.push(outcome);
            if stop {
                break;
            }
        }
        summary(&outcomes)
    }
}

impl Check {
    fn run(&self) -> Outcome {
        let command = self.command();
        println!("==> {}: {}", self.name, start::shown(&command));
        let started = Instant::now();
        let result = start::run(command);
        if let Err(error) = &result {
            eprintln!("error: {error:#}");
        }
        Outcome { name: self.name, passed: result.is_ok(), took: started.elapsed() }
    }

    fn command(&self) -> Command {
        let mut command = cargo();
        command.args(self.words);
        if let Some((name, value)) = self.env {
            command.env(name, value);
        }
        command
    }
}

fn summary(outcomes: &[Outcome]) -> Result<()> {
    println!("\n{:<16}{:<9}{:>8}", "check", "result", "seconds");
    for outcome in outcomes {
        let result = if outcome.passed { "passed" } else { "FAILED" };
        println!("{:<16}{:<9}{:>8.0}", outcome.name, result, outcome.took.as_secs_f64());
    }
    let failed: Vec<&str> = outcomes.iter().filter(|outcome| !outcome.passed).map(|outcome| outcome.name).collect();
    if !failed.is_empty() {
        bail!("{} of {} checks failed: {}", failed.len(), CHECKS.len(), failed.join(", "));
    }
    println!("\nall {} checks passed", CHECKS.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CHECKS, Outcome, summary};
    use std::time::Duration;

    #[test]
    fn one_failure_fails_the_whole() {
        let outcome = |passed| Outcome { name: "tests", passed, took: Duration::from_secs(1) };
        assert!(summary(&[outcome(true), outcome(true)]).is_ok());
        let message = summary(&[outcome(true), outcome(false)]).unwrap_err().to_string();
        assert!(message.contains("tests"), "{message}");
    }

    #[test]
    fn warnings_are_denied_wherever_they_can_arise() {
        let strict = CHECKS.iter().filter(|check| {
            check.words.contains(&"warnings") || check.env.is_some_and(|(_, value)| value.contains("-D warnings"))
        });
        assert_eq!(strict.count(), 2);
    }
}
