//! What a container is doing: its exit record if there is one, else its supervisor's word, else it is lost.

use std::io;
use std::path::Path;
use std::time::Duration;

use runtime_core::{ContainerId, ContainerState};

use super::Container;
use super::remove::remove_dir;
use super::start::ring_keeper;
use super::stop::KILL_PATIENCE;
use crate::driven;
use crate::error::{Error, Result};
use crate::layout::ContainerPaths;
use crate::lock::ContainerLock;
use crate::process::ProcessName;
use crate::record::{self, ExitRecord};
use crate::runtime::Inner;
use crate::supervisor::client::Connection;
use crate::supervisor::wire::{Exit, LAST_ATTEMPT, Phase, Reply, Request, Status};

/// Time for a supervisor to write down the end of its container before that counts as stopping.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// Time for a supervisor that has closed a connection to be gone.
const ENDING_PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a container now.
#[derive(Debug)]
pub(crate) enum Observed {
    /// It is being created by whoever holds its lock.
    Pending,
    /// It was created, its supervisor is gone without a record, and whoever holds its lock is about to say so.
    Unsupervised,
    /// It has a supervisor.
    Supervised(Status),
    /// Its current attempt is over.
    Ended(Box<ExitRecord>),
}

impl Observed {
    /// The contract's word for it.
    pub fn state(&self) -> ContainerState {
        match self {
            Self::Pending => ContainerState::Pending,
            Self::Unsupervised => ContainerState::Stopping,
            Self::Supervised(status) => match status.phase {
                Phase::Creating => ContainerState::Pending,
                Phase::Created | Phase::Restarting => ContainerState::Initializing,
                Phase::Running => ContainerState::Running,
                Phase::Stopping | Phase::Exited => ContainerState::Stopping,
            },
            Self::Ended(record) => match &record.failure {
                Some(reason) => ContainerState::Failed { reason: reason.clone() },
                None => ContainerState::Exited { code: record.outcome.exit_code },
            },
        }
    }

    /// The init's process id, while the program runs.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Supervised(status) if matches!(status.phase, Phase::Running | Phase::Stopping) => {
                u32::try_from(status.pid).ok().filter(|pid| *pid != 0)
            }
            _ => None,
        }
    }
}

impl Inner {
    /// What `id` is doing.
    pub(crate) async fn container_state(&self, id: &ContainerId) -> Result<ContainerState> {
        let container = self.container(id)?;
        Ok(self.observe(&container).await?.state())
    }

    /// What `container` is doing. One whose supervisor is gone without a record is killed, and gets one that says so; one
    /// that should be gone with its end, and has no supervisor to see to that, is removed.
    pub(crate) async fn observe(&self, container: &Container) -> Result<Observed> {
        let observed = self.look_at(container).await?;
        if let Observed::Ended(record) = &observed
            && self.is_left_over(container, record)
            && let Some(inner) = self.weak.upgrade()
        {
            let container = container.clone();
            tokio::spawn(async move { inner.remove_left_over(&container).await });
        }
        Ok(observed)
    }

    async fn look_at(&self, container: &Container) -> Result<Observed> {
        if let Some(record) = self.exit_record(container)? {
            return Ok(Observed::Ended(Box::new(record)));
        }
        if let Some(observed) = self.ask_supervisor(container).await? {
            return Ok(observed);
        }
        // It may have ended between the two looks.
        if let Some(record) = self.exit_record(container)? {
            return Ok(Observed::Ended(Box::new(record)));
        }
        self.find_lost(container).await
    }

    /// How the current attempt of `container` ended, if it is over and no other follows.
    pub(crate) fn exit_record(&self, container: &Container) -> Result<Option<ExitRecord>> {
        Ok(self.last_exit(container)?.filter(|record| !record.restarting))
    }

    /// The same, also while another attempt is to follow.
    pub(crate) fn last_exit(&self, container: &Container) -> Result<Option<ExitRecord>> {
        Ok(self.any_exit(container)?.filter(|record| record.attempt == container.record.attempt))
    }

    /// How the attempt before ended, until the next one is executed: its number is on record before it has a cgroup.
    pub(crate) fn exit_before(&self, container: &Container) -> Result<Option<ExitRecord>> {
        Ok(self.any_exit(container)?.filter(|record| record.restarting))
    }

    fn any_exit(&self, container: &Container) -> Result<Option<ExitRecord>> {
        let path = container.paths.exit_record();
        // A power cut may have damaged what was written shortly before it.
        let rebooted = container.record.boot_id != self.boot_id;
        if rebooted { record::read_intact(&path) } else { record::read(&path) }
    }

    /// The supervisor's word, if there is one that answers.
    pub(crate) async fn ask_supervisor(&self, container: &Container) -> Result<Option<Observed>> {
        let Some(mut connection) = self.supervisor(container).await? else { return Ok(None) };
        match connection.ask(&Request::Status).await.map_err(Error::supervisor(&container.record.id))? {
            // It is writing the record, or tells it if the disk does not take it.
            Some(Reply::Status(status)) if status.phase == Phase::Exited => {
                let wait = Request::Wait { attempt: LAST_ATTEMPT };
                match tokio::time::timeout(RECORD_PATIENCE, connection.ask(&wait)).await {
                    Ok(told) => match told.map_err(Error::supervisor(&container.record.id))? {
                        Some(Reply::Exited(exit)) => {
                            Ok(self.record_of(container, &exit)?.map(|record| Observed::Ended(Box::new(record))))
                        }
                        _ => Ok(None),
                    },
                    // The write hangs.
                    Err(_) => Ok(Some(Observed::Supervised(status))),
                }
            }
            Some(Reply::Status(status)) => Ok(Some(Observed::Supervised(status))),
            // It is going, and leaves its record; how long that takes is nobody's business.
            None if self.exit_record(container)?.is_some() || !container.paths.record().exists() => Ok(None),
            // It is ending, or has no room for another connection: that it is gone is told by its process alone.
            None if connection
                .peer_has_ended(ENDING_PATIENCE)
                .await
                .map_err(Error::supervisor(&container.record.id))? =>
            {
                Ok(None)
            }
            other => Err(Error::Supervisor {
                id: container.record.id.to_string(),
                what: format!("lives, and does not say what it does: {other:?}"),
                source: None,
            }),
        }
    }

    /// The exit record of an attempt that its supervisor says has ended: from the disk, else as it came along.
    pub(super) fn record_of(&self, container: &Container, exit: &Exit) -> Result<Option<ExitRecord>> {
        let told = || serde_json::from_slice(&exit.record).ok();
        let of_this_attempt = |record: &ExitRecord| record.attempt == container.record.attempt;
        Ok(told().filter(of_this_attempt).or(self.last_exit(container)?))
    }

    /// A connection to the supervisor, or `None` if there is none.
    pub(crate) async fn supervisor(&self, container: &Container) -> Result<Option<Connection>> {
        match Connection::open(&container.paths.socket).await {
            Ok(connection) => Ok(Some(connection)),
            // Reset: it ended between our connecting and its accepting.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::NotFound
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::Supervisor {
                id: container.record.id.to_string(),
                what: "cannot be reached".to_owned(),
                source: Some(error),
            }),
        }
    }

    /// No supervisor and no exit record: somebody is creating or starting it right now, or it is lost.
    async fn find_lost(&self, container: &Container) -> Result<Observed> {
        // It may take the lock.
        let Some(inner) = self.weak.upgrade() else { return self.find_lost_itself(container).await };
        let container = container.clone();
        driven::while_waited_for(async move { inner.find_lost_itself(&container).await }).await
    }

    async fn find_lost_itself(&self, container: &Container) -> Result<Observed> {
        let Some(lock) = ContainerLock::try_acquire(&container.paths.lock)? else {
            let ran = was_created(&container.paths) || self.last_exit(container)?.is_some_and(|ended| ended.restarting);
            return Ok(if ran { Observed::Unsupervised } else { Observed::Pending });
        };
        // Whoever held the lock a moment ago may have changed all of it.
        let (lock, container) = self.read_locked(&container.record.id, lock).await?;
        self.observe_locked(&container, &lock).await
    }

    /// What a container is doing that nobody else creates, starts or removes.
    pub(super) async fn observe_locked(&self, container: &Container, lock: &ContainerLock) -> Result<Observed> {
        if let Some(record) = self.exit_record(container)? {
            return Ok(Observed::Ended(Box::new(record)));
        }
        if let Some(observed) = self.ask_supervisor(container).await? {
            return Ok(observed);
        }
        let record = self.declare_lost(container, lock).await?;
        Ok(Observed::Ended(Box::new(record)))
    }

    /// Kills what is left of an attempt whose supervisor is gone, and puts its end on record. A full disk may not take
    /// that: then each later look finds and says the same.
    pub(crate) async fn declare_lost(&self, container: &Container, lock: &ContainerLock) -> Result<ExitRecord> {
        // Its supervisor may have written that, and ended, since it was looked for.
        if let Some(record) = self.exit_record(container)? {
            return Ok(record);
        }
        let rebooted = container.record.boot_id != self.boot_id;
        let why = match rebooted {
            true => "lost: host rebooted",
            // Whoever started it was killed before there was anything to supervise.
            false if !was_created(&container.paths) && self.last_exit(container)?.is_none() => {
                "lost: its start was cut off"
            }
            false => "lost: its supervisor is gone",
        };
        tracing::warn!(container = %container.record.id, "{why}");
        self.put_lost_on_record(container, lock, why.to_owned()).await
    }

    /// The same of one that is lost for another reason.
    pub(super) async fn put_lost_on_record(
        &self,
        container: &Container,
        _lock: &ContainerLock,
        why: String,
    ) -> Result<ExitRecord> {
        if container.record.boot_id == self.boot_id {
            self.end_supervisor(&container.paths).await?;
            self.clear_cgroup(container).await?;
        }
        let record = match self.last_exit(container)? {
            // It waited to be restarted: how the attempt before that ended is known.
            Some(ended) if ended.restarting => ExitRecord { restarting: false, failure: Some(why), ..ended },
            _ => ExitRecord::lost(container.record.attempt, why),
        };
        match record::write(&container.paths.exit_record(), &record) {
            // Its socket went some time before: whoever syncs what is on record looks again.
            Ok(()) if ring_keeper(&container.paths).is_ok() => {
                let _ = std::fs::remove_file(&container.paths.socket);
            }
            Ok(()) => {}
            Err(error) => {
                tracing::error!(container = %container.record.id, error = error.chain(), "its end is not on record");
            }
        }
        if let Err(error) = self.leave_network(container).await {
            tracing::warn!(container = %container.record.id, error = error.chain(), "its ports are not given back");
        }
        self.tell(record.event(&container.record.id.to_string()));
        Ok(record)
    }

    /// Ends the supervisor of an attempt that is over, whether it is there or about to be.
    pub(super) async fn end_supervisor(&self, paths: &ContainerPaths) -> Result<()> {
        remove_dir(&paths.run)?;
        Connection::end_at(&paths.socket).await.map_err(Error::io("ending the supervisor at", &paths.socket))
    }

    /// Kills all in the container's cgroup and removes it.
    pub(crate) async fn clear_cgroup(&self, container: &Container) -> Result<()> {
        self.clear_cgroup_at(&container.record.cgroup_path, &container.paths).await
    }

    /// The same for one that is known by its paths alone.
    pub(super) async fn clear_cgroup_at(&self, cgroup_path: &str, paths: &ContainerPaths) -> Result<()> {
        if !self.is_own_cgroup(cgroup_path)? {
            return Ok(());
        }
        let cgroup = self.hierarchy.container_dirs(cgroup_path);
        let init = std::fs::read_to_string(paths.created()).unwrap_or_default();
        tokio::task::spawn_blocking(move || {
            if !cgroup.exists() {
                return Ok(());
            }
            cgroup.kill_all(KILL_PATIENCE)?;
            // A process that is ending is in no cgroup any more, and an init takes as long as all of its namespace.
            if let Ok(init) = init.parse::<ProcessName>() {
                init.wait_for_end(KILL_PATIENCE);
            }
            cgroup.remove()
        })
        .await
        .map_err(Error::ThreadLost)?
    }
}

/// Whether the current attempt was created: its mark, which each attempt writes, is younger than the end of the last one.
fn was_created(paths: &ContainerPaths) -> bool {
    let written = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    written(&paths.created()) > written(&paths.exit_record())
}
