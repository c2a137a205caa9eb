//! Pausing: all of a container's processes stand still until it goes on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use runtime_core::{ContainerId, Event, EventKind};

use super::{Container, Observed};
use crate::cgroup;
use crate::driven::{self, Caller};
use crate::error::{Error, Result};
use crate::lock;
use crate::runtime::Inner;
use crate::supervisor::wire::Phase;

/// Time for processes to stop: one in an uninterruptible sleep may not.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);

impl Inner {
    /// Freezes `id`. Ok at once on a paused one.
    pub(crate) async fn pause(self: &Arc<Self>, id: &ContainerId) -> Result<()> {
        self.set_paused(id, true).await
    }

    /// Lets `id` go on. Ok at once on one that is not paused.
    pub(crate) async fn unpause(self: &Arc<Self>, id: &ContainerId) -> Result<()> {
        self.set_paused(id, false).await
    }

    /// Once it has its turn it goes on to its end when the future is dropped.
    async fn set_paused(self: &Arc<Self>, id: &ContainerId, paused: bool) -> Result<()> {
        let (inner, id) = (self.clone(), id.clone());
        let set = |caller: Caller| async move {
            // What one that has come before does is over by then, also if its caller has gone.
            let _turn = lock::turn(&inner.container(&id)?.paths.dir).await;
            match caller.is_gone() {
                true => Err(Error::CalledOff { id: id.to_string() }),
                false => inner.set_paused_to_the_end(&id, paused).await,
            }
        };
        driven::to_the_end(set).await
    }

    async fn set_paused_to_the_end(&self, id: &ContainerId, paused: bool) -> Result<()> {
        let changed = loop {
            let container = self.container(id)?;
            let observed = self.observe(&container).await?;
            let (is_running, is_stopping) = (is_in(&observed, Phase::Running), is_in(&observed, Phase::Stopping));
            let not_running = || Error::NotRunning { id: id.to_string(), state: observed.state().word() };
            // One that was frozen as it began to stop cannot react before it is let go.
            if !is_running && (paused || !is_stopping) {
                return Err(not_running());
            }
            match self.freeze_or_thaw(&container, paused).await {
                Ok(false) if is_stopping => return Err(not_running()),
                Ok(true) if paused => {
                    // A stop lets it go, which may have been before it was frozen. From now on it comes after.
                    let observed = self.observe(&container).await;
                    if observed.as_ref().is_ok_and(|observed| is_in(observed, Phase::Running)) {
                        break true;
                    }
                    self.freeze_or_thaw(&container, false).await?;
                    observed?;
                }
                // It ended, or was let go, since it was looked at: the next look tells how.
                Err(Error::Io { source, .. })
                    if cgroup::gone(&source) || source.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if changed {
            self.tell(Event::now(if paused { EventKind::Pause } else { EventKind::Unpause }).of(id));
        }
        Ok(())
    }

    /// Whether that changes anything.
    async fn freeze_or_thaw(&self, container: &Container, paused: bool) -> Result<bool> {
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        let set = move || match paused {
            true if cgroup.is_frozen() => Ok(false),
            true => cgroup.freeze(FREEZE_PATIENCE).map(|()| true),
            false if !cgroup.is_to_freeze() => Ok(false),
            false => cgroup.thaw().map(|()| true),
        };
        tokio::task::spawn_blocking(set).await.map_err(Error::ThreadLost)?
    }

    /// Whether a running container is paused.
    pub(crate) fn is_paused(&self, container: &Container) -> bool {
        self.hierarchy.container_dirs(&container.record.cgroup_path).is_frozen()
    }
}

fn is_in(observed: &Observed, phase: Phase) -> bool {
    matches!(observed, Observed::Supervised(status) if status.phase == phase)
}
