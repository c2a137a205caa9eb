//! What follows the end of an attempt: its supervisor goes, its volumes are synced and given back.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Container, Observed};
use crate::error::{Error, Result};
use crate::record::MountKind;
use crate::runtime::Inner;

/// Time for a supervisor to unmount and end after it wrote the exit record. The unmount syncs the writable layer.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(60);

impl Inner {
    /// Syncs the named volumes of an ended container and gives them back, within the configured time: what does not
    /// become durable is journaled by the volume store, retried by the keeper, and told here by name.
    pub(crate) async fn settle_volumes(&self, container: &Container) -> Vec<(String, volumes_s3::Error)> {
        let user = container.record.id.to_string();
        let mut failed = Vec::new();
        for mount in &container.record.mounts {
            let (MountKind::Named, Some(name)) = (mount.kind, mount.name.clone()) else { continue };
            let (volumes, user, readonly, task_name) =
                (self.volumes.clone(), user.clone(), mount.readonly, name.clone());
            // On its own: a time that runs out must not cut a sync off.
            let task = tokio::spawn(async move {
                let synced = if readonly { Ok(()) } else { volumes.sync(&task_name).await.map(drop) };
                volumes.release(&task_name, &user).await.and(synced)
            });
            match tokio::time::timeout(self.config.volumes.sync_on_stop, task).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => {
                    tracing::warn!(volume = name, %error, "not durable");
                    failed.push((name, error));
                }
                Ok(Err(error)) => tracing::error!(volume = name, %error, "the sync's task ended early"),
                Err(_) => {
                    tracing::warn!(volume = name, "not durable: the sync takes longer than sync_on_stop and goes on")
                }
            }
        }
        failed
    }

    /// Waits until the supervisor that wrote an exit record has ended, and the overlay is unmounted with it.
    pub(crate) async fn wait_for_supervisor(&self, container: &Container, pid: i32) -> Result<()> {
        let dir = container.paths.dir.clone();
        let id = container.record.id.to_string();
        tokio::task::spawn_blocking(move || {
            let Some(process) = Pid::from_raw(pid) else { return Ok(()) };
            let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else { return Ok(()) };
            // The number may be somebody else's by now.
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let ours = dir.to_str().is_some_and(|dir| String::from_utf8_lossy(&command).contains(dir));
            if !ours {
                return Ok(());
            }
            let timeout = Timespec { tv_sec: SUPERVISOR_PATIENCE.as_secs() as i64, tv_nsec: 0 };
            let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout));
            match ended {
                Ok(1..) => Ok(()),
                _ => Err(Error::Supervisor { id, what: format!("(pid {pid}) does not end"), source: None }),
            }
        })
        .await
        .map_err(Error::ThreadLost)?
    }

    /// Lets the keeper follow a container that uses named volumes, so that they are synced when it ends by itself.
    pub(crate) fn keep_watch(&self, container: &Container) {
        if self.config.keeper
            && container.record.mounts.iter().any(|mount| mount.kind == MountKind::Named)
            && let Some(inner) = self.weak.upgrade()
        {
            let container = container.clone();
            tokio::spawn(async move { inner.settle_at_end(&container).await });
        }
    }

    /// Waits for the end of the attempt, then syncs its volumes unless a later attempt uses them by then.
    pub(crate) async fn settle_at_end(self: &Arc<Self>, container: &Container) {
        if let Err(error) = self.wait_for_end(container).await {
            tracing::debug!(container = %container.record.id, error = error.chain(), "no longer followed");
            return;
        }
        match self.container(&container.record.id) {
            Ok(now) if now.record.attempt == container.record.attempt => {
                if matches!(self.observe(&now).await, Ok(Observed::Ended(_))) {
                    self.settle_volumes(&now).await;
                }
            }
            _ => {}
        }
    }
}
