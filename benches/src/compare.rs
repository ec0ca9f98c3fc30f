//! Ours beside the peer: equal losses first, then steps in alternation.

use crate::precision::{PeerPrecision, Precision};
use crate::protocol::{Losses, Request};
use crate::report::{Agreement, Report, Side};
use crate::server::Server;
use crate::{Machine, StepBench, load_average};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The PyTorch programs, and what they share: written beside the weights they read, so that this binary can be moved.
const CAPI_PROGRAM: &str = include_str!("../peer/capi_step.py");
const MOCA_PROGRAM: &str = include_str!("../peer/moca_step.py");
const ENCODER_PROGRAM: &str = include_str!("../peer/encoder_step.py");
const SERVING: &str = include_str!("../peer/serving.py");

/// A comparison with the PyTorch program of the same method.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What is measured. `precision` is not used: every precision of this build is.
    pub bench: StepBench,
    /// This very program, able to `--serve`.
    pub ours: PathBuf,
    /// A Python that can import torch, numpy and safetensors.
    pub python: PathBuf,
    /// Steps of one side before the other one's turn.
    pub turn: usize,
}

/// One server and what it has measured so far.
struct Runner {
    server: Server,
    side: Side,
}

impl Comparison {
    /// Checks the losses, then times every precision of either side, a turn each at a time.
    ///
    /// # Errors
    /// A side that cannot be started or fails, losses that differ, numbers of parameters that differ.
    pub fn run(&self) -> Result<Report> {
        let load_before = load_average();
        let folder = tempfile::tempdir().context("a folder for what both sides read")?;
        let program = write_program(folder.path(), &self.bench.method)?;
        let machine = Machine::this();

        // Our losses come from a process of its own: without stochastic depth they need more memory than a timed step.
        let our_losses = {
            let mut server = self.our_server(Precision::F32)?;
            server.ask(&Request::Export(folder.path().to_owned()))?;
            server.ask(&Request::Loss)?.losses
        };
        let mut peers = PeerPrecision::ALL
            .into_iter()
            .filter(|precision| precision.runs_on(&machine.features))
            .map(|precision| Ok((precision, Runner::new(self.peer_server(precision, &program, folder.path())?))))
            .collect::<Result<Vec<_>>>()?;
        let reference = peers.iter_mut().find(|(precision, _)| *precision == PeerPrecision::F32);
        let (_, reference) = reference.context("the peer's f32 runs everywhere")?;
        let agreements = agree(&our_losses, &reference.server.ask(&Request::Loss)?.losses)?;

        let mut ours = Precision::ALL
            .into_iter()
            .filter(|precision| precision.is_of_its_own())
            .map(|precision| Ok((precision, Runner::new(self.our_server(precision)?))))
            .collect::<Result<Vec<_>>>()?;
        let everyone = ours.iter_mut().map(|(_, runner)| runner).chain(peers.iter_mut().map(|(_, runner)| runner));
        alternate(everyone.collect(), self.bench.warmup, self.bench.steps, self.turn)?;

        Ok(Report {
            method: self.bench.method.clone(),
            preset: self.bench.preset,
            threads: self.bench.threads,
            warmup: self.bench.warmup,
            turn: self.turn,
            machine,
            load_before,
            load_after: load_average(),
            ours: ours.into_iter().map(|(precision, runner)| (precision, runner.side)).collect(),
            peer: peers.into_iter().map(|(precision, runner)| (precision, runner.side)).collect(),
            agreements,
        })
    }

    fn our_server(&self, precision: Precision) -> Result<Server> {
        let StepBench { method, preset, threads, .. } = &self.bench;
        let mut command = Command::new(&self.ours);
        command.args(["--serve", "--method", method, "--preset", preset.name(), "--precision", precision.name()]);
        command.args(["--threads", &threads.to_string()]);
        Server::start(&format!("ours, {}", precision.name()), command)
    }

    fn peer_server(&self, precision: PeerPrecision, program: &Path, folder: &Path) -> Result<Server> {
        let threads = self.bench.threads.to_string();
        let mut command = Command::new(&self.python);
        command.arg(program).arg(folder).args(["--precision", precision.name(), "--threads", &threads]);
        // Waiting threads sleep, as ours do: the other side has the processor.
        command.env("OMP_WAIT_POLICY", "PASSIVE").env("OMP_NUM_THREADS", &threads).env("MKL_NUM_THREADS", &threads);
        Server::start(&format!("PyTorch, {}", precision.name()), command).with_context(|| {
            let python = self.python.display();
            format!(
                "{python}, which must have torch, numpy and safetensors (`cargo xtask bench step --peer` sees to it)"
            )
        })
    }
}

impl Runner {
    fn new(server: Server) -> Self {
        let side = Side::of(server.hello());
        Self { server, side }
    }
}

fn program_of(method: &str) -> Result<&'static str> {
    match method {
        "capi" => Ok(CAPI_PROGRAM),
        "moca" => Ok(MOCA_PROGRAM),
        "encoder" => Ok(ENCODER_PROGRAM),
        _ => bail!("--peer: there is no PyTorch program for `{method}`"),
    }
}

/// Writes the program of a method into `folder`. -> its path
fn write_program(folder: &Path, method: &str) -> Result<PathBuf> {
    let program = folder.join("step.py");
    for (path, text) in [(&program, program_of(method)?), (&folder.join("serving.py"), SERVING)] {
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(program)
}

/// Warms everyone up, then lets each make `turn` steps until all have made `steps`.
fn alternate(mut runners: Vec<&mut Runner>, warmup: usize, steps: usize, turn: usize) -> Result<()> {
    let first = runners.first().map(|runner| runner.side.parameters);
    if let Some(other) = runners.iter().find(|runner| Some(runner.side.parameters) != first) {
        bail!("the sides train different networks: {:?} and {:?} numbers", first.flatten(), other.side.parameters);
    }
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

/// The losses of both sides, one by one.
fn agree(ours: &Losses, peer: &Losses) -> Result<Vec<Agreement>> {
    if !ours.keys().eq(peer.keys()) {
        bail!("ours has the losses {:?}, PyTorch {:?}", ours.keys(), peer.keys());
    }
    let pairs = ours.iter().zip(peer.values());
    pairs.map(|((name, ours), peer)| Agreement { name: name.clone(), ours: *ours, peer: *peer }.checked()).collect()
}

#[cfg(test)]
mod tests {
    use super::{agree, write_program};
    use crate::protocol::Losses;

    fn losses(prediction: f64, clustering: f64) -> Losses {
        [("prediction".to_owned(), prediction), ("clustering".to_owned(), clustering)].into()
    }

    #[test]
    fn losses_are_paired_by_name() {
        let agreements = agree(&losses(9.5, 20.0), &losses(9.5, 20.001)).unwrap();
        assert_eq!(agreements.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["clustering", "prediction"]);
        assert_eq!((agreements[0].ours, agreements[0].peer), (20.0, 20.001));
        assert!(agree(&losses(9.5, 20.0), &Losses::new()).is_err());
        assert!(agree(&losses(9.5, 20.0), &losses(9.52, 20.0)).is_err());
    }

    #[test]
    fn every_method_that_can_be_stepped_has_its_program() {
        let folder = tempfile::tempdir().unwrap();
        for (method, loss) in [("capi", "clustering"), ("moca", "local"), ("encoder", "cross_entropy")] {
            let program = std::fs::read_to_string(write_program(folder.path(), method).unwrap()).unwrap();
            assert!(
                program.contains(&format!("\"{loss}\"")) && program.contains("from serving import serve"),
                "{method}"
            );
            assert!(folder.path().join("serving.py").is_file());
        }
        assert!(write_program(folder.path(), "abacus").unwrap_err().to_string().contains("abacus"));
    }
}

#[cfg(unix)]
#[cfg(test)]
mod alternation {
    use super::{Runner, alternate};
    use crate::server::Server;
    use std::process::Command;

    /// A side that writes its letter for every step into a file.
    fn runner(letter: &str, parameters: usize, log: &std::path::Path) -> Runner {
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

    #[test]
    fn sides_take_turns_and_make_equally_many_steps() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (mut a, mut b) = (runner("a", 7, &log), runner("b", 7, &log));
        alternate(vec![&mut a, &mut b], 1, 5, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "a2b2a2b2a1b1");
        assert_eq!((a.side.seconds.len(), b.side.seconds.len()), (3, 3), "the warm-up is not among them");
    }

    #[test]
    fn networks_of_different_size_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (mut a, mut b) = (runner("a", 7, &log), runner("b", 8, &log));
        let message = alternate(vec![&mut a, &mut b], 1, 5, 2).unwrap_err().to_string();
        assert!(message.contains('7') && message.contains('8'), "{message}");
    }
}
