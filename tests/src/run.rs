//! One start of the program.

use crate::{Lab, occlude};
use std::fs::File;
use std::io::{Read, Seek};
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
    /// Runs in a folder of the laboratory.
    #[must_use]
    pub fn inside(mut self, folder: &str) -> Self {
        self.command.current_dir(self.lab.path(folder));
        self.shown = format!("cd {folder} && {}", self.shown);
        self
    }

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
    pub fn output(self) -> Outcome {
        self.start().end()
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
        let mut started = self.start();
        while !marker.exists() {
            assert!(started.goes_on(), "{point} not reached\n{}", started.end().report());
            std::thread::sleep(Duration::from_millis(5));
        }
        started.at = Instant::now();
        Paused { started }
    }

    fn start(mut self) -> Started<'a> {
        // Streams go to files: a pipe that nobody reads would stop the program elsewhere than meant.
        let (stdout, stderr) = (scratch(), scratch());
        let shared = |stream: &File| stream.try_clone().expect("a file can be shared");
        self.command.stdin(Stdio::null()).stdout(shared(&stdout)).stderr(shared(&stderr));
        let child = self.command.spawn().expect("the program starts");
        Started { run: self, child, stdout, stderr, at: Instant::now() }
    }
}

/// A file without a name.
fn scratch() -> File {
    tempfile::tempfile().expect("a scratch file")
}

/// A program that runs.
#[derive(Debug)]
struct Started<'a> {
    run: Run<'a>,
    child: Child,
    stdout: File,
    stderr: File,
    at: Instant,
}

impl Started<'_> {
    fn goes_on(&mut self) -> bool {
        self.child.try_wait().expect("the program can be asked").is_none() && self.at.elapsed() < PATIENCE
    }

    /// Waits for the end; a program that hangs is killed, and its exit code is none.
    fn end(mut self) -> Outcome {
        while self.goes_on() {
            std::thread::sleep(Duration::from_millis(2));
        }
        // One that has ended already cannot be killed.
        drop(self.child.kill());
        let status = self.child.wait().expect("the program ends");
        self.outcome(status)
    }

    fn outcome(mut self, status: ExitStatus) -> Outcome {
        Outcome {
            code: status.code(),
            stdout: text(&mut self.stdout),
            stderr: text(&mut self.stderr),
            shown: self.run.shown.clone(),
            tree: self.run.lab.tree(),
        }
    }
}

fn text(stream: &mut File) -> String {
    let mut bytes = Vec::new();
    stream.rewind().and_then(|()| stream.read_to_end(&mut bytes)).expect("a scratch file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
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
    started: Started<'a>,
}

impl Paused<'_> {
    /// Ends it at once (SIGKILL): nothing is flushed, no handler runs.
    ///
    /// # Panics
    /// It cannot be ended.
    pub fn kill(mut self) {
        self.started.child.kill().expect("the program can be killed");
        let status = self.started.child.wait().expect("the program ends");
        assert_eq!(status.code(), None, "ended by the signal");
    }

    /// Lets it go on and waits for its end.
    ///
    /// # Panics
    /// The marker is gone.
    #[must_use]
    pub fn goes_on(self) -> Outcome {
        std::fs::remove_file(self.started.run.lab.path("paused")).expect("the marker lets it go on");
        self.started.end()
    }

    /// Asks it to end (`TERM`, `INT` or `USR2`), lets it go on, and waits for its end.
    ///
    /// # Panics
    /// The signal cannot be sent.
    #[must_use]
    pub fn signal(self, name: &str) -> Outcome {
        let sent = Command::new("kill").args([format!("-{name}"), self.started.child.id().to_string()]).status();
        assert!(sent.expect("kill exists").success(), "SIG{name} not sent");
        self.goes_on()
    }
}
