//! Sides that take turns: one works while the others wait.

use crate::StepBench;
use crate::protocol::Request;
use crate::report::Side;
use crate::server::Server;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// One server and what it has measured so far.
pub(crate) struct Runner {
    pub(crate) server: Server,
    pub(crate) side: Side,
}

impl Runner {
    pub(crate) fn new(server: Server) -> Self {
        let side = Side::of(server.hello());
        Self { server, side }
    }
}

/// Our side in a process of its own, which answers to `name`: `program` is this very one, able to `--serve`.
pub(crate) fn our_server(name: &str, program: &Path, bench: &StepBench) -> Result<Server> {
    let StepBench { method, preset, precision, threads, .. } = bench;
    let mut command = Command::new(program);
    command.args(["--serve", "--method", method, "--preset", preset.name(), "--precision", precision.name()]);
    command.args(["--threads", &threads.to_string()]);
    Server::start(name, command)
}

/// Warms everyone up, then lets each make `turn` steps until all have made `steps`.
pub(crate) fn alternate(mut runners: Vec<&mut Runner>, warmup: usize, steps: usize, turn: usize) -> Result<()> {
    for runner in &mut runners {
        runner.server.ask(&Request::Warmup(warmup))?;
    }
    let mut left = steps;
    while left > 0 {
        let now = turn.clamp(1, left);
        for runner in &mut runners {
            let reply = runner.server.ask(&Request::Step(now))?;
            runner.side.add(reply);
        }
        left -= now;
    }
    Ok(())
}

/// Sides for tests.
#[cfg(unix)]
#[cfg(test)]
pub(crate) mod pretended {
    use super::Runner;
    use crate::server::Server;
    use std::path::Path;
    use std::process::Command;

    /// A side that writes its letter for every step into a file.
    pub(crate) fn runner(letter: &str, parameters: usize, log: &Path) -> Runner {
        let log = log.display();
        let script = format!(
            r#"echo '{{"ready": true, "parameters": {parameters}}}'
            while read word count; do
                [ $word = step ] && printf {letter}$count >> '{log}'
                echo '{{"seconds": [1.0]}}'
            done"#
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        Runner::new(Server::start(letter, command).unwrap())
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::alternate;
    use super::pretended::runner;

    #[test]
    fn sides_take_turns_and_make_equally_many_steps() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (mut a, mut b) = (runner("a", 7, &log), runner("b", 8, &log));
        alternate(vec![&mut a, &mut b], 1, 5, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "a2b2a2b2a1b1");
        assert_eq!((a.side.seconds.len(), b.side.seconds.len()), (3, 3), "the warm-up is not among them");
    }
}
