//! Stopping: the signal, the wait, the kill, the record, the volumes.

use std::time::Duration;

use runtime_core::{ContainerId, Event, EventKind};

use super::exit::Settling;
use super::{Container, Observed};
use crate::bundle::signal;
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::runtime::Inner;
use crate::supervisor::wire::{Phase, Reply, Request};

/// Time a container may take to react to its stop signal when nobody names one. Docker and podman use the same.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for processes to end after SIGKILL before that is an error.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Inner {
    /// Stops `id` by `signal`, and tries to make its volumes durable. Of `signal` and `timeout`: the container's or the
    /// default if `None`. Cancel-safe: the supervisor goes on, and calling it again joins it.
    pub(crate) async fn stop(
        &self,
        id: &ContainerId,
        signal: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<Vec<(String, volumes_s3::Error)>> {
        let container = self.container(id)?;
        let timeout = timeout.or(container.record.spec.stop_timeout).unwrap_or(DEFAULT_STOP_TIMEOUT);
        let signal = match signal {
            None => container.record.stop_signal,
            Some(text) => {
                signal::parse(text).ok_or_else(|| Error::invalid("signal", format!("{text:?} is no signal")))?
            }
        };
        self.end(&container, signal, timeout).await?;
        self.tell(Event::now(EventKind::Stop).of(id));
        let left = self.leave_network_if_ended(&container).await;
        let settled = self.settle_ended(&container, Settling::Joined).await;
        left.map(|()| settled)
    }

    /// Sends `signal`, waits `timeout`, kills, and returns when the end is on record. Ok at once if it is.
    pub(crate) async fn end(&self, container: &Container, signal: i32, timeout: Duration) -> Result<()> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        // Whoever creates or starts it is waited for, and kept from starting what is being stopped.
        let mut lock = None;
        loop {
            match self.observe(container).await? {
                Observed::Ended(_) => return Ok(()),
                Observed::Pending | Observed::Unsupervised => {
                    // Ours may be the one that it waits for.
                    if lock.take().is_none() {
                        drop(ContainerLock::acquire(container.paths.lock.clone()).await?);
                    }
                    continue;
                }
                Observed::Supervised(_) => {}
            }
            let Some(mut connection) = self.supervisor(container).await? else { continue };
            // It may be another one than a moment ago, of the next attempt.
            let started =
                match connection.ask(&Request::Status).await.map_err(Error::supervisor(&container.record.id))? {
                    // One that was told to start may execute its program for as long as a dead mount takes.
                    Some(Reply::Status(status)) => {
                        !matches!(status.phase, Phase::Creating | Phase::Created) || status.started_at_nanos != 0
                    }
                    _ => continue,
                };
            if !started && lock.is_none() {
                lock = Some(self.lock(container).await?.0);
                continue;
            }
            match connection
                .ask(&Request::Stop { signal, timeout_ms })
                .await
                .map_err(Error::supervisor(&container.record.id))?
            {
                Some(Reply::Exited(_)) => return Ok(()),
                Some(Reply::Error(what)) if what.starts_with("processes ") => {
                    let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
                    return Err(Error::StopTimedOut {
                        id: container.record.id.to_string(),
                        pids: cgroup.pids().unwrap_or_default(),
                        waited: KILL_PATIENCE,
                    });
                }
                Some(Reply::Error(what)) => {
                    return Err(Error::Supervisor { id: container.record.id.to_string(), what, source: None });
                }
                // It ended in between: the record tells.
                _ => {}
            }
        }
    }
}
