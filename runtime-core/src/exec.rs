//! Further processes in a running container.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use serde::{Deserialize, Serialize};

/// What an exec produces. Multi-byte characters are never split across events; `Exit` comes once, last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecEvent {
    /// Text from its standard output.
    Stdout(String),
    /// Text from its standard error.
    Stderr(String),
    /// It ended: exit code, or 128+N after signal N.
    Exit(i32),
}

/// Events as they are produced. Dropping the stream kills the exec and all that it started.
pub type ExecEventStream = Pin<Box<dyn Stream<Item = ExecEvent> + Send>>;

/// Bytes for an exec's standard input; the end of the stream closes it.
pub type ExecInput = Pin<Box<dyn Stream<Item = Vec<u8>> + Send>>;

/// How an exec differs from the container's own process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// Added to, and overriding, the container's environment.
    pub env: BTreeMap<String, String>,
    /// `name|uid[:group|gid]`; the container's user if `None`.
    pub user: Option<String>,
    /// Absolute path in the container; the container's working directory if `None`.
    pub workdir: Option<String>,
    /// Killed, with all that it started, after this time.
    pub timeout: Option<Duration>,
    /// Give it all capabilities and no system call filter, whatever the container has.
    pub privileged: bool,
    /// Give it a terminal: what it writes comes as `Stdout`, errors too.
    pub tty: bool,
}
