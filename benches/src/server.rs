//! A server in a process of its own, idle between requests.

use crate::protocol::{Reply, Request};
use anyhow::{Context, Result, anyhow};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running server. It ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
    hello: Reply,
}

impl Server {
    /// Starts `command` and waits until it is ready. Its messages go where ours go.
    pub(crate) fn start(name: &str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("{name}: could not start {}", command.get_program().to_string_lossy()))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (requests, replies) = pipes.with_context(|| format!("{name}: no pipes to it"))?;
        let mut server =
            Self { name: name.to_owned(), child, requests, replies: BufReader::new(replies), hello: Reply::default() };
        server.hello = server.reply().with_context(|| format!("{name}: did not start"))?;
        Ok(server)
    }

    /// Its first answer: parameters, version, memory at the start.
    pub(crate) fn hello(&self) -> &Reply {
        &self.hello
    }

    /// Asks and waits.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply> {
        let failed = || format!("{}: `{request}`", self.name);
        writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()).with_context(failed)?;
        self.reply().with_context(|| format!("{}: `{request}`", self.name))
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        if self.replies.read_line(&mut line)? == 0 {
            return Err(anyhow!("it ended without an answer; what it said is above"));
        }
        Reply::parse(&line)
    }
}

impl Drop for Server {
    /// A server holds no state worth a farewell.
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::Server;
    use crate::protocol::Request;
    use std::process::Command;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn it_is_asked_and_answers() {
        let script = r#"echo '{"ready": true, "version": "sh"}'
            while read word count; do echo "{\"seconds\": [$count]}"; done"#;
        let mut server = Server::start("the shell", shell(script)).unwrap();
        assert_eq!(server.hello().version.as_deref(), Some("sh"));
        assert_eq!(server.ask(&Request::Step(3)).unwrap().seconds, [3.0]);
        assert_eq!(server.ask(&Request::Warmup(1)).unwrap().seconds, [1.0]);
    }

    #[test]
    fn one_that_fails_is_named() {
        let script = r#"echo '{"ready": true}'; read line; echo '{"error": "out of paper"}'"#;
        let mut server = Server::start("the shell", shell(script)).unwrap();
        let message = format!("{:#}", server.ask(&Request::Loss).unwrap_err());
        assert_eq!(message, "the shell: `loss`: out of paper");
        assert!(format!("{:#}", Server::start("the shell", shell("exit 3")).unwrap_err()).contains("ended"));
        assert!(Server::start("nothing", Command::new("occlude-no-such-program")).is_err());
    }
}
