//! What a simulated process does.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{AgentError, LogStream, Result};

/// A process about to be started, as the image's program sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Program and arguments, resolved by Docker's rules.
    pub command: Vec<String>,
    /// The spec's environment.
    pub env: BTreeMap<String, String>,
}

/// What comes of starting a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// It runs.
    Runs(Behaviour),
    /// There is no such program: 127.
    NotFound,
    /// It cannot be executed: 126.
    NotExecutable,
}

/// A simulated process: what it writes when it starts, when it ends, and how it takes signals.
///
/// ```
/// use runtime_core::memory::{Behaviour, Reaction};
/// use runtime_core::LogStream;
/// let server = Behaviour::runs()
///     .writes(LogStream::Stdout, "listening\n")
///     .on("TERM", Reaction::Exit(0))
///     .on("HUP", Reaction::Write(LogStream::Stdout, b"reloaded\n".to_vec()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behaviour {
    pub(super) output: Vec<(LogStream, Vec<u8>)>,
    /// When it ends by itself, and with which code.
    pub(super) end: Option<(Duration, i32)>,
    pub(super) reactions: BTreeMap<String, Reaction>,
}

impl Behaviour {
    /// Exits with `code` at once.
    #[must_use]
    pub fn exits(code: i32) -> Self {
        Self { output: Vec::new(), end: Some((Duration::ZERO, code)), reactions: BTreeMap::new() }
    }

    /// Runs until a signal ends it.
    #[must_use]
    pub fn runs() -> Self {
        Self { end: None, ..Self::exits(0) }
    }

    /// Ends by itself only after `time`, by tokio's clock.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.end = self.end.map(|(_, code)| (time, code));
        self
    }

    /// Writes `bytes` when it starts.
    #[must_use]
    pub fn writes(mut self, stream: LogStream, bytes: impl Into<Vec<u8>>) -> Self {
        self.output.push((stream, bytes.into()));
        self
    }

    /// Takes `signal` (TERM, INT, HUP, USR1, USR2, without SIG) so; any other ends it, and KILL always does.
    #[must_use]
    pub fn on(mut self, signal: &str, reaction: Reaction) -> Self {
        self.reactions.insert(signal.to_owned(), reaction);
        self
    }
}

/// How a simulated process takes a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    /// It exits with this code.
    Exit(i32),
    /// It writes this and runs on.
    Write(LogStream, Vec<u8>),
    /// Nothing happens.
    Ignore,
}

type Program = dyn Fn(&Invocation) -> Launch + Send + Sync;

/// An image: a function that knows what each command does in it, for containers and execs alike.
#[derive(Clone)]
pub struct MemoryImage {
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    program: Arc<Program>,
}

impl MemoryImage {
    /// An image whose commands behave as `program` says, with neither ENTRYPOINT nor CMD.
    #[must_use]
    pub fn new(program: impl Fn(&Invocation) -> Launch + Send + Sync + 'static) -> Self {
        Self { entrypoint: Vec::new(), cmd: Vec::new(), program: Arc::new(program) }
    }

    /// Sets its ENTRYPOINT.
    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        Self { entrypoint: words.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    /// Sets its CMD.
    #[must_use]
    pub fn cmd(self, words: &[&str]) -> Self {
        Self { cmd: words.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    /// Starts `invocation` in it.
    pub(super) fn launch(&self, invocation: &Invocation) -> Launch {
        (self.program)(invocation)
    }

    /// The command that results by Docker's rules.
    pub(super) fn resolve(&self, command: &crate::spec::CommandSpec) -> Result<Vec<String>> {
        let args = command.args.as_deref();
        let words = match &command.entrypoint {
            Some(entrypoint) => [entrypoint, args.unwrap_or_default()].concat(),
            None => [self.entrypoint.as_slice(), args.unwrap_or(&self.cmd)].concat(),
        };
        if words.is_empty() {
            return Err(AgentError::InvalidSpec(
                "there is no command: neither the image nor the spec has one".to_owned(),
            ));
        }
        Ok(words)
    }
}

impl fmt::Debug for MemoryImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryImage")
            .field("entrypoint", &self.entrypoint)
            .field("cmd", &self.cmd)
            .finish_non_exhaustive()
    }
}

/// The signals there are, with their numbers on most architectures.
const SIGNALS: [(&str, i32); 6] = [("HUP", 1), ("INT", 2), ("KILL", 9), ("USR1", 10), ("USR2", 12), ("TERM", 15)];

/// `sigterm` as `("TERM", 15)`.
pub(super) fn signal(text: &str) -> Result<(&'static str, i32)> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let known = SIGNALS.into_iter().find(|(known, _)| *known == name);
    known
        .ok_or_else(|| AgentError::InvalidSpec(format!("{text:?} is not a signal: KILL, TERM, INT, HUP, USR1 or USR2")))
}

/// The stop signal `text`: a name, or its number.
pub(super) fn stop_signal(text: &str) -> Result<(&'static str, i32)> {
    let by_number = SIGNALS.into_iter().find(|(_, number)| number.to_string() == text);
    by_number.map_or_else(|| signal(text), Ok)
}
