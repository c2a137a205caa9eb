//! Stopping: the signal, the wait, the kill, the record, the volumes.

use std::borrow::Cow;
use std::time::Duration;

use runtime_core::{ContainerId, Event, EventKind};

use super::exit::Settling;
use super::{Container, Observed};
use crate::bundle::signal;
use crate::driven::Caller;
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
        let mut container = self.container(id)?;
        if container.record.image.is_to_be_pulled() {
            // What the image says of it, such as the signal, is known once whoever creates it is done.
            container = self.lock(&container).await?.1;
        }
        let timeout = timeout.or(container.record.spec.stop_timeout).unwrap_or(DEFAULT_STOP_TIMEOUT);
        let signal = match signal {
            None => container.record.stop_signal,
            Some(text) => {
                signal::parse(text).ok_or_else(|| Error::invalid("signal", format!("{text:?} is no signal")))?
            }
        };
        let had_ended = self.exit_record(&container)?.is_some();
        self.end(&container, signal, timeout, None).await?;
        if !had_ended {
            self.tell(Event::now(EventKind::Stop).of(id));
        }
        if let Err(error) = self.leave_network_if_ended(&container).await {
            // It has stopped all the same; the keeper, the next start and the removal try it again.
            tracing::warn!(container = %id, error = error.chain(), "its ports are not given back");
        }
        Ok(self.settle_ended(&container, Settling::Joined).await)
    }

    /// Sends `signal`, waits `timeout`, kills, and returns when the end is on record. Ok at once if it is.
    /// Begins nothing for a `caller` who has gone.
    pub(crate) async fn end(
        &self,
        container: &Container,
        signal: i32,
        timeout: Duration,
        caller: Option<&Caller>,
    ) -> Result<()> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        // Whoever creates or starts it is waited for, and kept from starting what is being stopped.
        let mut lock = None;
        // Told to end, and what it has come to since.
        let (mut asked, mut were_gone) = (false, false);
        let mut container = Cow::Borrowed(container);
        loop {
            let observed = match self.observe(&container).await {
                // With its end it was removed.
                Err(Error::NoSuchContainer { .. }) if asked => return Ok(()),
                observed => observed?,
            };
            match observed {
                // The attempt that follows is what is to end.
                Observed::Ended(_) if lock.is_none() && self.is_being_started(&container)? => {
                    let (_, now) = self.lock(&container).await?;
                    if !now.record.is_same_container(&container.record) {
                        return Ok(());
                    }
                    container = Cow::Owned(now);
                    continue;
                }
                Observed::Ended(_) => return Ok(()),
                Observed::Pending | Observed::Unsupervised => {
                    // Ours may be the one that it waits for.
                    if lock.take().is_none() {
                        ContainerLock::passed(container.paths.lock.clone()).await?;
                    }
                    continue;
                }
                Observed::Supervised(_) => {}
            }
            let Some(mut connection) = self.supervisor(&container).await? else { continue };
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
                lock = Some(self.lock(&container).await?.0);
                continue;
            }
            if caller.is_some_and(Caller::is_gone) {
                return Err(Error::CalledOff { id: container.record.id.to_string() });
            }
            caller.inspect(|caller| caller.begin());
            asked = true;
            match connection
                .ask(&Request::Stop { signal, timeout_ms })
                .await
                .map_err(Error::supervisor(&container.record.id))?
            {
                Some(Reply::Exited(_)) => return Ok(()),
                Some(Reply::Error(what)) => match self.not_ended(&container, what) {
                    // They have gone in this moment, of which its supervisor hears now.
                    Error::StopTimedOut { pids, .. } if pids.is_empty() && !std::mem::replace(&mut were_gone, true) => {
                    }
                    error => return Err(error),
                },
                // It ended in between: the record tells.
                _ => {}
            }
        }
    }

    /// What a supervisor says who could not end its container.
    pub(super) fn not_ended(&self, container: &Container, what: String) -> Error {
        let id = container.record.id.to_string();
        if !what.starts_with("processes ") {
            return Error::Supervisor { id, what, source: None };
        }
        let pids = self.hierarchy.container_dirs(&container.record.cgroup_path).pids().unwrap_or_default();
        Error::StopTimedOut { id, pids, waited: KILL_PATIENCE }
    }

    /// Whether somebody is about to start one that has ended, and waits for its volumes: then there is a file where its
    /// supervisor's socket will be, and its lock is held.
    fn is_being_started(&self, container: &Container) -> Result<bool> {
        let is_rung = std::fs::symlink_metadata(&container.paths.socket).is_ok_and(|file| file.is_file());
        Ok(is_rung && ContainerLock::try_acquire(&container.paths.lock)?.is_none())
    }
}
