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
use crate::error::{Error, Result};
use crate::layout::ContainerPaths;
use crate::lock::ContainerLock;
use crate::record::{self, ContainerRecord};
use crate::runtime::Inner;

pub(crate) use attempt::MIN_LOG_BYTES;
pub use copy::CopyInOptions;
pub use create::CreateOptions;
pub use exec::{ExecRequest, RunningExec, TIMEOUT_EXIT_CODE};
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
        match self.container(&container.record.id) {
            Ok(container) => Ok((lock, container)),
            Err(error) => {
                lock.remove();
                Err(error)
            }
        }
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
