//! What a container uses, and its processes.

use runtime_core::{ContainerId, ContainerStats, DetailedStats, TopEntry};

use super::{Container, Observed};
use crate::cgroup::gone;
use crate::error::{Error, Result};
use crate::record::ExitRecord;
use crate::runtime::Inner;
use crate::stats;
use crate::supervisor::wire::Phase;

impl Inner {
    /// The few numbers; for an ended container its last.
    pub(crate) async fn stats(&self, id: &ContainerId) -> Result<ContainerStats> {
        loop {
            let container = self.container(id)?;
            let observed = self.observe(&container).await?;
            if let Some(record) = self.ended_or_between(&container, &observed)? {
                let last = record.stats.as_ref().and_then(stats::summary);
                let timestamp = record.outcome.finished_at;
                return last
                    .map(|last| ContainerStats { timestamp: timestamp.unwrap_or(last.timestamp), ..last })
                    .ok_or_else(|| not_running(&container, "ended without last stats"));
            }
            let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
            match blocking(move || stats::basic(&cgroup)).await {
                Err(Error::Io { source, .. }) if gone(&source) => {
                    let runs = matches!(&observed, Observed::Supervised(status)
                        if !matches!(status.phase, Phase::Creating | Phase::Restarting));
                    if !runs {
                        return Err(not_running(&container, observed.state().word()));
                    }
                    // It ended since it was looked at: the next look tells how.
                }
                told => return told,
            }
        }
    }

    /// All numbers; for an ended container its last.
    pub(crate) async fn stats_detailed(&self, id: &ContainerId) -> Result<DetailedStats> {
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        let (upper, logs) = (container.paths.upper(), container.paths.logs());
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        let own_network = container.record.network.is_own();
        let ended = self.ended_or_between(&container, &observed)?;
        blocking(move || {
            let mut all = match ended {
                Some(record) => record.stats.unwrap_or_default(),
                None => stats::read(&cgroup, observed.pid().filter(|_| own_network)),
            };
            all.disk.writable_bytes = stats::disk_usage(&upper);
            all.disk.log_bytes = stats::disk_usage(&logs);
            Ok(all)
        })
        .await
    }

    /// How the last attempt ended, if none runs now.
    fn ended_or_between(&self, container: &Container, observed: &Observed) -> Result<Option<ExitRecord>> {
        match observed {
            Observed::Ended(record) => Ok(Some((**record).clone())),
            Observed::Supervised(status) if status.phase == Phase::Restarting => self.last_exit(container),
            _ => Ok(None),
        }
    }

    /// The processes of `id`.
    pub(crate) async fn top(&self, id: &ContainerId) -> Result<Vec<TopEntry>> {
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        if observed.pid().is_none() {
            return Err(not_running(&container, observed.state().word()));
        }
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        blocking(move || Ok(stats::top(&cgroup.pids()?))).await
    }
}

fn not_running(container: &Container, state: &'static str) -> Error {
    Error::NotRunning { id: container.record.id.to_string(), state }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::ThreadLost)?
}
