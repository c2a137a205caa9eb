//! Removing: everything is freed, after errors too, and they are told at the end.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime_core::{ContainerId, Event, EventKind};

use super::{Container, Observed};
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::process::ProcessName;
use crate::record::{ExitRecord, MountKind, NetworkRecord};
use crate::runtime::Inner;
use crate::supervisor::wire::{Reply, Request};

impl Inner {
    /// Kills `id` if it runs, and frees all of it. Goes on to its end when the future is dropped.
    pub(crate) async fn remove(self: &Arc<Self>, id: &ContainerId) -> Result<()> {
        let (inner, id) = (self.clone(), id.clone());
        tokio::spawn(async move { inner.remove_to_the_end(&id).await }).await.map_err(Error::ThreadLost)?
    }

    async fn remove_to_the_end(&self, id: &ContainerId) -> Result<()> {
        let container = self.container(id)?;
        let ended = self.end(&container, libc::SIGKILL, Duration::ZERO).await;
        let lock = ContainerLock::acquire(container.paths.lock.clone()).await?;
        let container = match self.container(id) {
            Ok(container) => container,
            Err(error) => {
                lock.remove();
                return Err(error);
            }
        };
        let mut unrecorded = None;
        // Somebody may have started it again while the lock was waited for.
        if let Some(mut connection) = self.supervisor(&container).await?
            && !matches!(self.exit_record(&container), Ok(Some(_)))
        {
            match connection.ask(&Request::Stop { signal: libc::SIGKILL, timeout_ms: 0 }).await? {
                Some(Reply::Error(what)) => {
                    return Err(Error::Supervisor { id: id.to_string(), what, source: None });
                }
                Some(Reply::Exited(exit)) => unrecorded = self.record_of(&container, &exit).ok().flatten(),
                _ => {}
            }
        }
        match ended {
            Ok(()) => {}
            // They hold what would be freed.
            Err(error @ Error::StopTimedOut { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(container = %id, error = error.chain(), "it is ended by its cgroup");
                self.clear_cgroup(&container).await?;
            }
        }
        match self.exit_record(&container) {
            Ok(Some(record)) => self.wait_for_supervisor(&container, &record).await?,
            Ok(None) => {
                if let Some(record) = unrecorded {
                    self.end_supervisor(&container, &record).await?;
                }
            }
            Err(error) => tracing::warn!(container = %id, error = error.chain(), "its end is not known"),
        }
        self.settle_volumes(&container).await;
        let freed = self.discard(&container).await;
        self.tell(Event::now(EventKind::Remove).of(id));
        lock.remove();
        freed
    }

    /// Ends a supervisor that lives only to write its record, which nobody will read.
    async fn end_supervisor(&self, container: &Container, ended: &ExitRecord) -> Result<()> {
        if let Some(supervisor) = ended.supervisor.as_deref().and_then(|name| name.parse::<ProcessName>().ok()) {
            supervisor.kill();
        }
        self.wait_for_supervisor(container, ended).await
    }

    /// Frees everything a container has, of whatever there is of it. The lock is held.
    pub(crate) async fn discard(&self, container: &Container) -> Result<()> {
        let mut errors = Vec::new();
        let mut note = |result: Result<()>| errors.extend(result.err());
        note(self.clear_cgroup(container).await);
        if let NetworkRecord::Bridge(lease) = &container.record.network {
            note(self.bridge.detach(lease).await);
            note(self.bridge.free(&container.record.id.to_string()));
        }
        let (paths, trash) = (container.paths.clone(), self.layout.trash());
        let freed = tokio::task::spawn_blocking(move || {
            let mut errors = Vec::new();
            errors.extend(remove_dir(&paths.run).err());
            let _ = fs::remove_file(&paths.socket);
            // Gone in one step, whatever dies while the files are deleted.
            let grave = trash.join(format!("{}-{}", std::process::id(), rand::random::<u64>()));
            match fs::rename(&paths.dir, &grave) {
                Ok(()) => errors.extend(remove_dir(&grave).err()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // The directory that it goes to may need room for the name. Without its record it is gone as well.
                Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    let _ = fs::remove_file(paths.record());
                    errors.extend(remove_dir(&paths.dir).err());
                }
                Err(error) => errors.push(Error::io("removing", &paths.dir)(error)),
            }
            errors
        })
        .await
        .map_err(Error::ThreadLost);
        match freed {
            Ok(more) => errors.extend(more),
            Err(error) => errors.push(error),
        }
        // After the files, which may have filled the disk that this is written to.
        let user = container.record.id.to_string();
        for mount in &container.record.mounts {
            if let (MountKind::Named, Some(name)) = (mount.kind, &mount.name) {
                errors.extend(self.volumes.release(name, &user).await.map_err(Error::from).err());
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// Whether `container` is over, for those who must not remove a running one.
    pub(crate) async fn is_ended(&self, container: &Container) -> Result<bool> {
        let observed = self.observe(container).await?;
        Ok(match observed {
            Observed::Ended(_) => true,
            // Created and not started: nothing of the user's runs.
            Observed::Supervised(status) => status.phase == crate::supervisor::wire::Phase::Created,
            Observed::Pending => false,
        })
    }
}

/// Removes a tree; one that is not there is removed.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", dir)(error)),
        _ => Ok(()),
    }
}
