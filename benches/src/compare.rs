//! Ours beside the peer: equal losses first, then steps in alternation.

use crate::precision::{PeerPrecision, Precision};
use crate::protocol::Request;
use crate::report::{Report, agree};
use crate::server::Server;
use crate::turns::{Runner, alternate, our_server};
use crate::{Conditions, StepBench};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The PyTorch programs, and what they share: written beside the weights they read, so that this binary can be moved.
const CAPI_PROGRAM: &str = include_str!("../peer/capi_step.py");
const MOCA_PROGRAM: &str = include_str!("../peer/moca_step.py");
const RANDSAC_PROGRAM: &str = include_str!("../peer/randsac_step.py");
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

impl Comparison {
    /// Checks the losses, then times every precision of either side, a turn each at a time.
    ///
    /// # Errors
    /// A side that cannot be started or fails, losses that differ, numbers of parameters that differ.
    pub fn run(&self) -> Result<Report> {
        let conditions = Conditions::before(&self.bench, self.turn);
        let folder = tempfile::tempdir().context("a folder for what both sides read")?;
        let program = write_program(folder.path(), &self.bench.method)?;

        // Our losses come from a process of its own: without stochastic depth they need more memory than a timed step.
        let our_losses = {
            let mut server = self.our_server(Precision::F32)?;
            server.ask(&Request::Export(folder.path().to_owned()))?;
            server.ask(&Request::Loss)?.losses
        };
        let mut peers = PeerPrecision::ALL
            .into_iter()
            .filter(|precision| precision.runs_on(&conditions.machine.features))
            .map(|precision| Ok((precision, Runner::new(self.peer_server(precision, &program, folder.path())?))))
            .collect::<Result<Vec<_>>>()?;
        let reference = peers.iter_mut().find(|(precision, _)| *precision == PeerPrecision::F32);
        let (_, reference) = reference.context("the peer's f32 runs everywhere")?;
        let agreements = agree(["ours", "PyTorch"], &our_losses, &reference.server.ask(&Request::Loss)?.losses)?;

        let mut ours = Precision::ALL
            .into_iter()
            .filter(|precision| precision.is_of_its_own())
            .map(|precision| Ok((precision, Runner::new(self.our_server(precision)?))))
            .collect::<Result<Vec<_>>>()?;
        let everyone = ours.iter_mut().map(|(_, runner)| runner).chain(peers.iter_mut().map(|(_, runner)| runner));
        let everyone: Vec<_> = everyone.collect();
        same_network(&everyone)?;
        alternate(everyone, self.bench.warmup, self.bench.steps, self.turn)?;

        Ok(Report {
            method: self.bench.method.clone(),
            preset: self.bench.preset,
            conditions: conditions.after(),
            ours: ours.into_iter().map(|(precision, runner)| (precision, runner.side)).collect(),
            peer: peers.into_iter().map(|(precision, runner)| (precision, runner.side)).collect(),
            agreements,
        })
    }

    fn our_server(&self, precision: Precision) -> Result<Server> {
        let name = format!("ours, {}", precision.name());
        our_server(&name, &self.ours, &StepBench { precision, ..self.bench.clone() })
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

fn program_of(method: &str) -> Result<&'static str> {
    match method {
        "capi" => Ok(CAPI_PROGRAM),
        "moca" => Ok(MOCA_PROGRAM),
        "randsac" => Ok(RANDSAC_PROGRAM),
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

/// Refuses sides that train different networks.
fn same_network(runners: &[&mut Runner]) -> Result<()> {
    let first = runners.first().map(|runner| runner.side.parameters);
    match runners.iter().find(|runner| Some(runner.side.parameters) != first) {
        None => Ok(()),
        Some(other) => {
            let (first, other) = (first.flatten(), other.side.parameters);
            bail!("the sides train different networks: {first:?} and {other:?} numbers")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::write_program;

    #[test]
    fn every_method_that_is_compared_has_its_program() {
        let folder = tempfile::tempdir().unwrap();
        let programs = [("capi", "clustering"), ("moca", "local"), ("randsac", "pixels"), ("encoder", "cross_entropy")];
        for (method, loss) in programs {
            let program = std::fs::read_to_string(write_program(folder.path(), method).unwrap()).unwrap();
            assert!(
                program.contains(&format!("\"{loss}\"")) && program.contains("from serving import serve"),
                "{method}"
            );
            assert!(folder.path().join("serving.py").is_file());
        }
        for method in ["mae", "abacus"] {
            let error = write_program(folder.path(), method).unwrap_err().to_string();
            assert!(error.contains(method) && error.contains("--peer"), "{error}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn networks_of_different_size_are_refused() {
        use crate::turns::pretended::runner;
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (mut a, mut b, mut c) = (runner("a", 7, &log), runner("b", 8, &log), runner("c", 7, &log));
        super::same_network(&[&mut a, &mut c]).unwrap();
        let message = super::same_network(&[&mut a, &mut b]).unwrap_err().to_string();
        assert!(message.contains('7') && message.contains('8'), "{message}");
    }
}
