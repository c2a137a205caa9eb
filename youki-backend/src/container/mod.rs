//! Containers on disk and what is done with them: one verb per file.

mod attach;
mod attempt;
mod copy;
mod create;
mod environment;
mod exec;
mod exit;
mod inspect;
mod joined;
mod kill;
mod log_mode;
mod logs;
mod mounted;
mod network;
mod pause;
mod remove;
mod rootfs;
mod start;
mod state;
mod stats;
mod stats_stream;
mod stop;
mod terminal;
mod unreadable;
mod update;
mod wait;
mod watched;

use std::fs;
use std::io;

use runtime_core::ContainerId;

use crate::attempts::Attempts;
use crate::driven::Caller;
use crate::error::{Error, Result};
use crate::layout::ContainerPaths;
use crate::lock::ContainerLock;
use crate::record::{self, ContainerRecord};
use crate::recovery::OPEN_PATIENCE;
use crate::runtime::Inner;

pub(crate) use attempt::MIN_LOG_BYTES;
pub use create::CreateOptions;
pub use exec::{ExecRequest, RunningExec};
pub(crate) use exit::{HeldEnded, leave_until};
pub use inspect::{Inspect, InspectMount, InspectNetwork};
pub(crate) use mounted::mounted_by;
pub(crate) use remove::remove_dir;
pub(crate) use state::Observed;
pub use stop::DEFAULT_STOP_TIMEOUT;
pub use terminal::{Terminal, TerminalSize};
pub use update::Changes;
pub use watched::Watched;

/// Containers looked at side by side.
pub(crate) const CONCURRENT_LOOKS: usize = 32;

/// A container as its record says.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub paths: ContainerPaths,
    pub record: ContainerRecord,
}

impl Inner {
    /// The container `id`.
    pub(crate) fn container(&self, id: &ContainerId) -> Result<Container> {
        let missing = || Error::NoSuchContainer { id: id.to_string() };
        // A name that is none cannot be a container's.
        id.validate().map_err(|_| missing())?;
        let paths = self.layout.container(id);
        let mut record: ContainerRecord = record::read(&paths.record())?.ok_or_else(missing)?;
        record.attempt = record.attempt.max(Attempts::read(&paths.attempts())?.attempt);
        Ok(Container { paths, record })
    }

    /// The cgroup of a container of that name.
    fn cgroup_path_of(&self, id: &ContainerId) -> String {
        format!("/{}/{id}", self.config.cgroup_parent)
    }

    /// Waits for the lock of `container`, and reads it again: whoever held it may have started, changed or removed it. One
    /// that was removed leaves no lock behind.
    pub(crate) async fn lock(&self, container: &Container) -> Result<(ContainerLock, Container)> {
        let lock = ContainerLock::acquire(container.paths.lock.clone()).await?;
        self.read_locked(&container.record.id, lock).await
    }

    /// The lock of `id` for `caller`, unless he has gone when it is his turn: then nothing is begun.
    pub(super) async fn lock_for(&self, caller: &Caller, id: &ContainerId) -> Result<(ContainerLock, Container)> {
        let lock = ContainerLock::acquire(self.container(id)?.paths.lock).await?;
        if caller.is_gone() {
            if !self.layout.container(id).record().exists() {
                lock.remove();
            }
            return Err(Error::CalledOff { id: id.to_string() });
        }
        self.read_locked(id, lock).await
    }

    /// The container whose lock is held. One whose creator was killed before there was an init is undone: of its image and
    /// its volumes it may have none.
    pub(super) async fn read_locked(
        &self,
        id: &ContainerId,
        lock: ContainerLock,
    ) -> Result<(ContainerLock, Container)> {
        let error = match self.container(id) {
            Ok(container) if !self.is_abandoned(&container).await? => return Ok((lock, container)),
            Ok(container) => {
                let undone = self.undo_cut_off(&container).await;
                undone.err().unwrap_or_else(|| Error::NoSuchContainer { id: id.to_string() })
            }
            Err(error) => error,
        };
        lock.remove();
        Err(error)
    }

    /// Undoes a create that was cut off. The lock is held. Who finds it waits for S3 no longer than an open does: what is
    /// owed is journaled first.
    pub(crate) async fn undo_cut_off(&self, container: &Container) -> Result<()> {
        let id = container.record.id.to_string();
        tracing::warn!(container = %id, "its creation was cut off; what there is of it is removed");
        // Of an address it may have died before that was on record.
        let freed = self.on_networks(move |networks| networks.free_all_of(&id)).await;
        if let Err(error) = freed {
            tracing::warn!(container = %container.record.id, error = error.chain(), "its addresses are left to the next open");
        }
        self.discard(container, OPEN_PATIENCE).await
    }

    async fn is_abandoned(&self, container: &Container) -> Result<bool> {
        let was_never_built = container.record.attempt == 1 && !container.paths.created().exists();
        Ok(was_never_built && self.supervisor(container).await?.is_none())
    }

    /// The ids of all containers that have a record, sorted.
    pub(crate) fn container_ids(&self) -> Result<Vec<ContainerId>> {
        let dir = self.layout.containers();
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("listing", &dir))? {
            let name = match entry {
                Ok(entry) => entry.file_name(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("listing", &dir)(error)),
            };
            if let Some(id) = name.to_str().and_then(|name| name.parse::<ContainerId>().ok())
                && name.to_str() == Some(&id.to_string())
                && self.layout.container(&id).record().exists()
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}
