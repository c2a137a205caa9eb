//! Whether a supervisor that builds a container still gets on with it: its helper has a deadline of its own, but nobody
//! else looks after the supervisor itself.

use std::fs;
use std::time::{Duration, Instant};

use super::STAGE_ARGUMENT;
use super::client::Connection;
use super::wire::Reply;
use crate::error::{Error, Result};
use crate::process::ProcessName;

/// How often a silent one is looked at. Filling a volume takes as long as it takes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Looks that must find it stopped: somebody may hold a process for a moment.
const LOOKS: u32 = 2;
/// Time for the stage to become the resident, which waits for nobody: as its helper has for a build.
const STAGE_PATIENCE: Duration = Duration::from_secs(60);
/// Time for what gets SIGKILL to die.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A supervisor that this process has started, while it builds.
#[derive(Debug)]
pub(crate) struct Builder {
    pid: u32,
    begun: Instant,
    /// Looks in a row that found it stopped.
    stopped: u32,
}

impl Builder {
    pub fn new(pid: u32) -> Self {
        Self { pid, begun: Instant::now(), stopped: 0 }
    }

    /// The next of its replies on `connection`. One that hangs is killed, and an error of the container `id`.
    pub async fn receive(&mut self, connection: &mut Connection, id: &str) -> Result<Option<Reply>> {
        loop {
            match tokio::time::timeout(LOOK_EVERY, connection.receive()).await {
                Ok(reply) => return reply.map_err(Error::supervisor(&id)),
                Err(_) => {
                    if let Some(what) = self.hangs() {
                        self.kill().await?;
                        return Err(Error::Supervisor { id: id.to_owned(), what, source: None });
                    }
                }
            }
        }
    }

    fn hangs(&mut self) -> Option<String> {
        let stopped = std::iter::once(self.pid).chain(children(self.pid)).find(|pid| is_stopped(*pid));
        self.stopped = if stopped.is_some() { self.stopped + 1 } else { 0 };
        match stopped {
            Some(pid) if self.stopped >= LOOKS => {
                Some(format!("was killed: process {pid} of it was stopped by a signal while the container was built"))
            }
            None if self.begun.elapsed() > STAGE_PATIENCE && is_stage(self.pid) => {
                Some(format!("was killed: it was not ready to build after {} s", STAGE_PATIENCE.as_secs()))
            }
            _ => None,
        }
    }

    /// Its helper and the init die with it.
    async fn kill(&self) -> Result<()> {
        let failed = || Error::io("killing", format!("process {}", self.pid));
        let Some(supervisor) = ProcessName::of(self.pid.cast_signed()).map_err(failed())? else { return Ok(()) };
        supervisor.kill().map_err(failed())?;
        tokio::task::spawn_blocking(move || supervisor.wait_for_end(KILL_PATIENCE)).await.map_err(Error::ThreadLost)?;
        Ok(())
    }
}

fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
}

fn is_stage(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == STAGE_ARGUMENT.as_bytes())
}
