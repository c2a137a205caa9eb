//! Pausing: all of a container's processes stand still until it goes on.

use std::time::Duration;

use runtime_core::{ContainerId, Event, EventKind};

use super::{Container, Observed};
use crate::cgroup;
use crate::error::{Error, Result};
use crate::runtime::Inner;
use crate::supervisor::wire::Phase;

/// Time for processes to stop: one in an uninterruptible sleep may not.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);

impl Inner {
    /// Freezes `id`. Ok at once on a paused one.
    pub(crate) async fn pause(&self, id: &ContainerId) -> Result<()> {
        self.set_paused(id, true).await
    }

    /// Lets `id` go on. Ok at once on one that is not paused.
    pub(crate) async fn unpause(&self, id: &ContainerId) -> Result<()> {
        self.set_paused(id, false).await
    }

    async fn set_paused(&self, id: &ContainerId, paused: bool) -> Result<()> {
        loop {
            let container = self.container(id)?;
            let observed = self.observe(&container).await?;
            if !matches!(&observed, Observed::Supervised(status) if status.phase == Phase::Running) {
                return Err(Error::NotRunning { id: id.to_string(), state: observed.state().word() });
            }
            let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
            let set = move || if paused { cgroup.freeze(FREEZE_PATIENCE) } else { cgroup.thaw() };
            match tokio::task::spawn_blocking(set).await.map_err(Error::ThreadLost)? {
                // It ended since it was looked at: the next look tells how.
                Err(Error::Io { source, .. }) if cgroup::gone(&source) => {}
                other => break other?,
            }
        }
        self.tell(Event::now(if paused { EventKind::Pause } else { EventKind::Unpause }).of(id));
        Ok(())
    }

    /// Whether a running container is paused.
    pub(crate) fn is_paused(&self, container: &Container) -> bool {
        self.hierarchy.container_dirs(&container.record.cgroup_path).is_frozen()
    }
}
