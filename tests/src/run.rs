//! One start of the program.

use crate::{Lab, occlude};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest that any start of the program may take here; far more than it needs, so that only a hang is caught.
const PATIENCE: Duration = Duration::from_secs(300);

/// A start of the program that is being prepared.
#[derive(Debug)]
pub struct Run<'a> {
    lab: &'a Lab,
    command: Command,
    shown: String,
}

/// How a start of the program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it reported.
    pub stderr: String,
    shown: String,
    tree: String,
}

impl<'a> Run<'a> {
    pub(crate) fn new(lab: &'a Lab, arguments: &str) -> Self {
        let mut command = Command::new(occlude());
        command.args(arguments.split_whitespace()).current_dir(lab.root()).env_clear();
        for kept in ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        Self { lab, command, shown: format!("occlude {arguments}") }
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self.shown = format!("{name}={value} {}", self.shown);
        self
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// The program does not start.
    #[must_use]
    pub fn output(mut self) -> Outcome {
        let output = self.command.stdin(Stdio::null()).output().expect("the program starts");
        self.outcome(output.status, &output.stdout, &output.stderr)
    }

    /// Runs to the end, which must be a good one.
    ///
    /// # Panics
    /// The exit code is not 0.
    pub fn succeeds(self) -> Outcome {
        let outcome = self.output();
        assert_eq!(outcome.code, Some(0), "{}", outcome.report());
        outcome
    }

    /// Runs to the end, which must be exit code 1 after one line that begins with `error: `.
    ///
    /// # Panics
    /// Anything else.
    pub fn refuses(self) -> String {
        let outcome = self.output();
        assert_eq!(outcome.code, Some(1), "{}", outcome.report());
        let lines: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        let last = outcome.stderr.lines().last().unwrap_or_default();
        assert!(lines.len() == 1 && lines[0] == last, "one line, the last one\n{}", outcome.report());
        last.to_owned()
    }

    /// Starts the program and waits until it has reached `point` (`OCCLUDE_TEST_PAUSE`), where it stays.
    ///
    /// # Panics
    /// It ends before.
    #[must_use]
    pub fn paused_at(mut self, point: &str) -> Paused<'a> {
        let marker = self.lab.path("paused");
        drop(std::fs::remove_file(&marker));
        self.command.env("OCCLUDE_TEST_PAUSE", point).env("OCCLUDE_TEST_MARKER", &marker);
        // Streams go to files: a pipe that nobody reads would stop the program elsewhere than meant.
        let stream = |name: &str| std::fs::File::create(self.lab.path(name)).expect("a scratch file");
        self.command.stdin(Stdio::null()).stdout(stream("paused.stdout")).stderr(stream("paused.stderr"));
        let mut child = self.command.spawn().expect("the program starts");
        let started = Instant::now();
        while !marker.exists() {
            let ended = child.try_wait().expect("the program can be asked");
            assert!(ended.is_none() && started.elapsed() < PATIENCE, "{point} not reached\n{}", {
                drop(child.kill());
                self.streams(child.wait().expect("the program ends")).report()
            });
            std::thread::sleep(Duration::from_millis(5));
        }
        Paused { run: self, child }
    }

    fn streams(&self, status: ExitStatus) -> Outcome {
        let read = |name: &str| std::fs::read(self.lab.path(name)).unwrap_or_default();
        self.outcome(status, &read("paused.stdout"), &read("paused.stderr"))
    }

    fn outcome(&self, status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Outcome {
        Outcome {
            code: status.code(),
            stdout: String::from_utf8_lossy(stdout).into_owned(),
            stderr: String::from_utf8_lossy(stderr).into_owned(),
            shown: self.shown.clone(),
            tree: self.lab.tree(),
        }
    }
}

impl Outcome {
    /// Everything a person needs to see.
    #[must_use]
    pub fn report(&self) -> String {
        let Self { code, stdout, stderr, shown, tree } = self;
        format!("$ {shown}\nexit code: {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- files\n{tree}")
    }

    /// Both streams together.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// A program that waits at a point the test chose.
#[derive(Debug)]
pub struct Paused<'a> {
    run: Run<'a>,
    child: Child,
}

impl Paused<'_> {
    /// Ends it at once (SIGKILL): nothing is flushed, no handler runs.
    ///
    /// # Panics
    /// It cannot be ended.
    pub fn kill(mut self) {
        self.child.kill().expect("the program can be killed");
        let status = self.child.wait().expect("the program ends");
        assert_eq!(status.code(), None, "ended by the signal");
    }

    /// Asks it to end (`TERM`, `INT` or `USR2`), lets it go on, and waits for its end.
    ///
    /// # Panics
    /// The signal cannot be sent.
    #[must_use]
    pub fn signal(mut self, name: &str) -> Outcome {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.expect("kill exists").success(), "SIG{name} not sent");
        std::fs::remove_file(self.run.lab.path("paused")).expect("the marker lets it go on");
        let status = self.child.wait().expect("the program ends");
        self.run.streams(status)
    }
}
