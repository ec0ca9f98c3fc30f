//! Our side as a server: see [`crate::Request`].

use crate::machine::{cpu_seconds, peak_memory_mib};
use crate::protocol::{Reply, Request};
use crate::step::StepBench;
use crate::subject::{Subject, subject};
use anyhow::{Result, bail};
use std::io::{BufRead, Write};
use std::time::Instant;

/// Answers the lines of `input` until `quit` or its end. Must be called first in a process: it starts the thread pool.
///
/// # Errors
/// The method cannot be built, or `output` cannot be written. A request that fails is answered by its error.
pub fn serve(bench: &StepBench, input: impl BufRead, output: impl Write) -> Result<()> {
    bench.prepare()?;
    let start = peak_memory_mib();
    let subject = subject(&bench.method, bench.preset, bench.precision)?;
    converse(subject, start, input, output)
}

fn converse(
    mut subject: Box<dyn Subject>,
    start_mib: Option<f64>,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<()> {
    let mut say = |reply: &Reply| -> Result<()> {
        writeln!(output, "{}", reply.line()?)?;
        Ok(output.flush()?)
    };
    let version = Some(concat!("Occlude ", env!("CARGO_PKG_VERSION")).to_owned());
    say(&Reply { ready: true, parameters: Some(subject.parameters()), version, start_mib, ..Reply::default() })?;
    for line in input.lines() {
        let reply = Request::parse(&line?).and_then(|request| answer(&mut *subject, request));
        let reply = reply.unwrap_or_else(|error| Reply { error: Some(format!("{error:#}")), ..Reply::default() });
        say(&reply)?;
        if reply.bye {
            break;
        }
    }
    Ok(())
}

fn answer(subject: &mut dyn Subject, request: Request) -> Result<Reply> {
    match request {
        Request::Warmup(count) | Request::Step(count) => timed(subject, count),
        Request::Loss => Ok(Reply { losses: subject.losses()?, ..Reply::default() }),
        Request::Export(folder) => {
            subject.export(&folder)?;
            Ok(Reply::default())
        }
        Request::Quit => Ok(Reply { bye: true, ..Reply::default() }),
    }
}

/// This many steps, each timed.
pub(crate) fn timed(subject: &mut dyn Subject, count: usize) -> Result<Reply> {
    let mut reply = Reply::default();
    for _ in 0..count {
        let (cpu, started) = (cpu_seconds(), Instant::now());
        reply.losses = subject.step()?;
        reply.seconds.push(started.elapsed().as_secs_f64());
        reply.cpu_seconds.extend(cpu_seconds().zip(cpu).map(|(end, start)| end - start));
        if let Some((name, loss)) = reply.losses.iter().find(|(_, loss)| !loss.is_finite()) {
            bail!("{name} loss is {loss}");
        }
    }
    reply.peak_mib = peak_memory_mib();
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::{converse, subject};
    use crate::protocol::Reply;
    use crate::{Precision, Preset};

    #[test]
    fn every_line_has_its_answer_and_a_bad_one_does_not_end_it() {
        let tiny = subject("capi", Preset::Tiny, Precision::F32).unwrap();
        let mut output = Vec::new();
        converse(tiny, None, &b"loss\nwarmup 1\njump\nstep 2\nloss\nquit\nloss\n"[..], &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7, "nothing is answered after `quit`: {text}");
        let replies: Vec<Reply> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(replies[0].ready && replies[0].parameters.unwrap() > 0);
        assert_eq!((replies[1].losses.len(), replies[2].seconds.len(), replies[4].seconds.len()), (2, 1, 2));
        assert!(replies[3].error.as_ref().unwrap().contains("jump"));
        assert_ne!(replies[5].losses, replies[1].losses, "steps were made in between");
        assert!(replies[6].bye);
    }
}
