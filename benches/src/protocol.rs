//! What a server is asked, line by line, and what it answers: one line of JSON.
//!
//! The same lines go to our side (`bench-step --serve`) and to the PyTorch program; `export` is for ours only.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Losses by name.
pub type Losses = BTreeMap<String, f64>;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// This many steps that nobody looks at.
    Warmup(usize),
    /// This many steps.
    Step(usize),
    /// Losses of the present weights, without stochastic depth; nothing moves.
    Loss,
    /// Weights, batch and settings, written into this folder.
    Export(PathBuf),
    /// The end.
    Quit,
}

impl Request {
    /// The request of one line.
    ///
    /// # Errors
    /// A word that is none, or a number that is missing.
    pub fn parse(line: &str) -> Result<Self> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let count = || rest.parse().with_context(|| format!("`{line}`: expected `{word} N`, a number of steps"));
        let alone = |request| if rest.is_empty() { Ok(request) } else { bail!("`{line}`: `{word}` stands alone") };
        match word {
            "warmup" => Ok(Self::Warmup(count()?)),
            "step" => Ok(Self::Step(count()?)),
            "loss" => alone(Self::Loss),
            "quit" => alone(Self::Quit),
            "export" if !rest.is_empty() => Ok(Self::Export(rest.into())),
            _ => bail!("`{line}`: there are `warmup N`, `step N`, `loss`, `export FOLDER` and `quit`"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Warmup(count) => write!(f, "warmup {count}"),
            Self::Step(count) => write!(f, "step {count}"),
            Self::Loss => f.write_str("loss"),
            Self::Export(folder) => write!(f, "export {}", folder.display()),
            Self::Quit => f.write_str("quit"),
        }
    }
}

/// An answer; what does not apply is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// The first line of a server, unasked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ready: bool,
    /// Numbers that are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<usize>,
    /// What computes: name and version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Largest resident memory before anything of the step was there: the program and its libraries, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_mib: Option<f64>,
    /// Wall seconds of each step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<f64>,
    /// CPU seconds of all threads, of each step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpu_seconds: Vec<f64>,
    /// Largest resident memory so far, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_mib: Option<f64>,
    /// Losses: of the last step, or of `loss`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub losses: Losses,
    /// The request failed, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last line.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bye: bool,
}

impl Reply {
    /// The answer of one line.
    ///
    /// # Errors
    /// A line that is not such an answer, or the error it carries.
    pub fn parse(line: &str) -> Result<Self> {
        let reply: Self = serde_json::from_str(line).with_context(|| format!("not an answer: `{}`", line.trim()))?;
        match reply.error {
            Some(error) => bail!("{error}"),
            None => Ok(reply),
        }
    }

    /// One line.
    ///
    /// # Errors
    /// None in practice: numbers that are not finite become `null`.
    pub fn line(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{Reply, Request};

    #[test]
    fn requests_are_what_they_print() {
        let folder = Request::Export("some folder/with spaces".into());
        for request in [Request::Warmup(2), Request::Step(31), Request::Loss, folder, Request::Quit] {
            assert_eq!(Request::parse(&format!("  {request}\n")).unwrap(), request);
        }
    }

    #[test]
    fn nonsense_is_named() {
        for line in ["", "jump", "step", "step -1", "warmup many", "loss 3", "quit now", "export "] {
            let message = Request::parse(line).unwrap_err().to_string();
            assert!(message.contains(&format!("`{}`", line.trim())), "{line}: {message}");
        }
    }

    #[test]
    fn answers_come_back_and_say_only_what_applies() {
        let reply = Reply {
            seconds: vec![0.5, 0.25],
            peak_mib: Some(64.0),
            losses: [("prediction".to_owned(), 9.5)].into(),
            ..Reply::default()
        };
        let line = reply.line().unwrap();
        assert_eq!(line, r#"{"seconds":[0.5,0.25],"peak_mib":64.0,"losses":{"prediction":9.5}}"#);
        assert_eq!(Reply::parse(&line).unwrap(), reply);
        assert_eq!(Reply::parse(r#"{"bye": true}"#).unwrap(), Reply { bye: true, ..Reply::default() });
    }

    #[test]
    fn an_error_is_an_error() {
        assert_eq!(Reply::parse(r#"{"error": "no such file"}"#).unwrap_err().to_string(), "no such file");
        assert!(Reply::parse("Traceback").unwrap_err().to_string().contains("Traceback"));
    }
}
