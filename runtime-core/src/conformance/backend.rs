//! [`Backend`]: what the suite has to know of the runtime it judges, and [`Workload`]: what it runs there.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{LogStream, Result, Runtime};

/// A runtime under test. Only a name, a runtime and a local image are required.
///
/// The image must be present (or be pulled by `create_container`), and have a POSIX `sh` with the usual small programs
/// (busybox will do), unless [`Backend::command`] is overridden. The rest says what else the suite can try, and has a
/// default: what a backend gives nothing to try with is reported as unsupported.
#[async_trait]
pub trait Backend: Send + Sync {
    /// What the report calls it.
    fn name(&self) -> String;

    /// The runtime as it is now: after [`Backend::reopen`], the reopened one.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// Reference of the image that the commands run in.
    fn image(&self) -> String;

    /// The command that does `workload` in that image; `None` if there is none, and checks that need it are reported as
    /// unsupported. The default is for an image with a shell.
    fn command(&self, workload: &Workload) -> Option<Vec<String>> {
        Some(workload.shell_command())
    }

    /// What this backend cannot do at all. The methods concerned must answer
    /// [`AgentError::Unsupported`](crate::AgentError::Unsupported), which is checked: a number made up is a failure.
    fn lacks(&self) -> &[Ability] {
        &[]
    }

    /// A user in the image's own user database, if it has one beside root.
    fn user(&self) -> Option<User> {
        None
    }

    /// Images to try Docker's rules for ENTRYPOINT and CMD with.
    fn echo_images(&self) -> Vec<EchoImage> {
        Vec::new()
    }

    /// An image with settings of its own, to try what becomes of them.
    fn configured_image(&self) -> Option<ConfiguredImage> {
        None
    }

    /// A secret that the runtime's provider knows, by name and value, if it was given one.
    fn secret(&self) -> Option<(String, String)> {
        None
    }

    /// Whether named volumes are synced to a bucket that can be reached while the suite runs.
    fn syncs_volumes(&self) -> bool {
        false
    }

    /// A directory that the runtime sees under the same path as the suite: binds are tried in it.
    fn shared_directory(&self) -> Option<PathBuf> {
        Some(std::env::temp_dir())
    }

    /// Removes what this host holds of a named volume that the suite made, for which the trait has no call. By default
    /// it stays; its name begins with [`Options::prefix`](super::Options::prefix).
    ///
    /// # Errors
    /// Whatever kept it, which fails the check.
    async fn remove_volume(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Whether the suite may call `prune_images`, which removes every unused image of the root, and `prune_volumes`, which
    /// removes the local copies of volumes that no container has. Images that this trait names are kept, by containers that
    /// use them.
    fn may_prune(&self) -> bool {
        false
    }

    /// Does what a restart of the agent does: opens the same root anew. Whether the former instance is gone or lives on
    /// beside it is the backend's choice. `None` if it keeps nothing across a restart.
    ///
    /// # Errors
    /// Those of opening the root, which fail the check.
    async fn reopen(&self) -> Result<Option<Arc<dyn Runtime>>> {
        Ok(None)
    }
}

/// Something that a whole class of backends cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ability {
    /// Process ids: `get_container_pid`.
    Pid,
    /// Resource usage: `get_container_stats`.
    Stats,
    /// Addresses, networks and published ports: a container has no network whatever is asked for.
    Network,
    /// `exec_stream` with events as they are produced; the trait's default is buffered.
    LiveExec,
}

/// A user that the image knows by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of its primary group.
    pub gid: u32,
}

/// An image like [`Backend::image`] that has settings of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredImage {
    /// Its reference.
    pub reference: String,
    /// One variable of its ENV.
    pub env: (String, String),
    /// Its WORKDIR, which exists.
    pub workdir: String,
    /// Id of its USER, who is not root.
    pub uid: u32,
    /// Its STOPSIGNAL: TERM, INT, HUP, USR1 or USR2.
    pub stop_signal: &'static str,
    /// Its VOLUME, which that user can write.
    pub volume: String,
    /// The one TCP port that it exposes, if any.
    pub exposed_port: Option<u16>,
    /// Whether it has a HEALTHCHECK, which succeeds.
    pub has_healthcheck: bool,
}

/// An image whose program prints its arguments on one line, joined by spaces, and exits, like `echo`.
///
/// At least one with both lists filled, one with only `cmd` and one with neither are worth having.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EchoImage {
    /// Its reference.
    pub reference: String,
    /// Its ENTRYPOINT; the first word, if any, is the echo program.
    pub entrypoint: Vec<String>,
    /// Its CMD; without an ENTRYPOINT its first word, if any, is the echo program.
    pub cmd: Vec<String>,
    /// The echo program's path in the image.
    pub program: String,
}

/// What a check runs, as a container's process or as an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workload {
    /// Writes each chunk as it is, in this order, and exits with `code`.
    Write {
        /// What is written where.
        chunks: Vec<(LogStream, Vec<u8>)>,
        /// The exit code.
        code: u8,
    },
    /// Writes the line `ready` and runs until told to end: exits with `code` at once on `signal`.
    ExitOn {
        /// TERM, INT, HUP, USR1 or USR2.
        signal: &'static str,
        /// The exit code.
        code: u8,
    },
    /// Writes the line `ready`, and runs on whatever `signal` comes; only KILL ends it.
    Ignore {
        /// TERM, INT, HUP, USR1 or USR2.
        signal: &'static str,
    },
    /// Writes the line `ready`, then a line `got TERM` (INT, HUP, USR1, USR2) for each signal.
    ReportSignals,
    /// A program that does not exist.
    NotFound,
    /// Something that exists and cannot be executed.
    NotExecutable,
    /// Whatever this shell script does.
    Script(String),
}

impl Workload {
    /// Exits with `code` and writes nothing.
    #[must_use]
    pub fn exit(code: u8) -> Self {
        Self::Write { chunks: Vec::new(), code }
    }

    /// Writes `text` to its standard output and exits with 0.
    #[must_use]
    pub fn print(text: &str) -> Self {
        Self::Write { chunks: vec![(LogStream::Stdout, text.as_bytes().to_vec())], code: 0 }
    }

    /// Runs until it is told to stop by TERM.
    #[must_use]
    pub fn idle() -> Self {
        Self::ExitOn { signal: "TERM", code: 0 }
    }

    /// The command that does it in an image with a shell.
    #[must_use]
    pub fn shell_command(&self) -> Vec<String> {
        match self {
            Self::NotFound => vec!["no-such-program-anywhere".to_owned()],
            Self::NotExecutable => vec!["/".to_owned()],
            _ => vec!["sh".to_owned(), "-c".to_owned(), self.to_string()],
        }
    }
}

/// `wait` returns when a trapped signal arrives, so that its action runs at once and not after the `sleep`.
const RUN_ON: &str = "echo ready; sleep 86400 & while :; do wait $!; done";

/// The workload as a script for a POSIX shell.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { chunks, code } => {
                for (stream, bytes) in chunks {
                    f.write_str("printf '")?;
                    bytes.iter().try_for_each(|byte| write!(f, "\\{byte:03o}"))?;
                    f.write_str(if *stream == LogStream::Stdout { "'; " } else { "' >&2; " })?;
                }
                write!(f, "exit {code}")
            }
            Self::ExitOn { signal, code } => write!(f, "trap 'exit {code}' {signal}; {RUN_ON}"),
            Self::Ignore { signal } => write!(f, "trap '' {signal}; {RUN_ON}"),
            Self::ReportSignals => {
                for signal in ["TERM", "INT", "HUP", "USR1", "USR2"] {
                    write!(f, "trap 'echo got {signal}' {signal}; ")?;
                }
                f.write_str(RUN_ON)
            }
            Self::NotFound | Self::NotExecutable => f.write_str("exit 127"),
            Self::Script(script) => f.write_str(script),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_reach_the_script_unharmed() {
        let workload = Workload::Write { chunks: vec![(LogStream::Stderr, b"a'\\%\xff\n".to_vec())], code: 3 };
        assert_eq!(workload.to_string(), r"printf '\141\047\134\045\377\012' >&2; exit 3");
    }
}
