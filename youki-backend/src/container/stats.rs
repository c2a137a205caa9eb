//! What a container uses, and its processes.

use runtime_core::{ContainerId, ContainerState, ContainerStats, DetailedStats, StatsSnapshot, TopEntry};

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
            if let Some(stats) = self.basic(&container, &observed).await? {
                return Ok(stats);
            }
        }
    }

    /// All numbers; for an ended container its last.
    pub(crate) async fn stats_detailed(&self, id: &ContainerId) -> Result<DetailedStats> {
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        self.detailed(&container, &observed).await
    }

    /// Both at once.
    pub(crate) async fn stats_snapshot(&self, id: &ContainerId) -> Result<StatsSnapshot> {
        loop {
            let container = self.container(id)?;
            let observed = self.observe(&container).await?;
            if let Some(snapshot) = self.snapshot(&container, &observed).await? {
                return Ok(snapshot);
            }
        }
    }

    /// Those of all that run, by id.
    pub(crate) async fn stats_all(&self) -> Result<Vec<StatsSnapshot>> {
        let (read, _) = self.listed(|id| async move { self.stats_if_running(&id).await }).await?;
        Ok(read.into_iter().flatten().collect())
    }

    async fn stats_if_running(&self, id: &ContainerId) -> Result<Option<StatsSnapshot>> {
        let container = self.container(id)?;
        let observed = self.observe(&container).await?;
        if !matches!(observed.state(), ContainerState::Running | ContainerState::Stopping) {
            return Ok(None);
        }
        self.snapshot(&container, &observed).await
    }

    /// Both of what was `observed`. `None`: it ran and has ended since.
    async fn snapshot(&self, container: &Container, observed: &Observed) -> Result<Option<StatsSnapshot>> {
        let Some(basic) = self.basic(container, observed).await? else { return Ok(None) };
        let detailed = self.detailed(container, observed).await?;
        let has_gone = !self.hierarchy.container_dirs(&container.record.cgroup_path).exists();
        if has_gone && self.ended_or_between(container, observed)?.is_none() {
            return Ok(None);
        }
        Ok(Some(StatsSnapshot { id: container.record.id.clone(), basic, detailed }))
    }

    /// The few numbers of what was `observed`. `None`: it ran and has ended since, and the next look tells how.
    async fn basic(&self, container: &Container, observed: &Observed) -> Result<Option<ContainerStats>> {
        if let Some(record) = self.ended_or_between(container, observed)? {
            let last = record.stats.as_ref().and_then(stats::summary);
            let timestamp = record.outcome.finished_at;
            return last
                .map(|last| Some(ContainerStats { timestamp: timestamp.unwrap_or(last.timestamp), ..last }))
                .ok_or_else(|| not_running(container, "ended without last stats"));
        }
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        match blocking(move || stats::basic(&cgroup)).await {
            Err(Error::Io { source, .. }) if gone(&source) => {
                let runs = matches!(observed, Observed::Supervised(status)
                    if !matches!(status.phase, Phase::Creating | Phase::Restarting));
                if runs { Ok(None) } else { Err(not_running(container, observed.state().word())) }
            }
            told => told.map(Some),
        }
    }

    /// All numbers of what was `observed`.
    async fn detailed(&self, container: &Container, observed: &Observed) -> Result<DetailedStats> {
        let (upper, logs) = (container.paths.upper(), container.paths.logs());
        let cgroup = self.hierarchy.container_dirs(&container.record.cgroup_path);
        let own_network = container.record.network.is_own();
        let pid = observed.pid().filter(|_| own_network);
        let ended = self.ended_or_between(container, observed)?;
        blocking(move || {
            let mut all = match ended {
                Some(record) => record.stats.unwrap_or_default(),
                None => stats::read(&cgroup, pid),
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
            Observed::Supervised(status) if status.phase == Phase::Restarting => self.exit_before(container),
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
