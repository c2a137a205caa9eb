//! Removing: everything is freed, after errors too, and they are told at the end.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime_core::{ContainerId, Event, EventKind};

use super::exit::Settling;
use super::{Container, Observed};
use crate::driven::{self, Caller};
use crate::error::{Error, Result};
use crate::layout::ContainerPaths;
use crate::process::ProcessName;
use crate::record::{ExitRecord, NetworkRecord};
use crate::runtime::Inner;
use crate::supervisor::wire::{Phase, Reply, Request};
use crate::trash::{self, Discarded, Trash};

/// How long a directory is emptied anew that somebody writes to: a keeper writes once for a check.
const WRITERS_PATIENCE: Duration = Duration::from_secs(2);

impl Inner {
    /// Frees all of `id`, which is killed if it runs; without `force` it is refused then. Goes on to its end when the future
    /// is dropped. Tells which of its named volumes are not durable yet.
    pub(crate) async fn remove(
        self: &Arc<Self>,
        id: &ContainerId,
        force: bool,
    ) -> Result<Vec<(String, volumes_s3::Error)>> {
        match self.container(id) {
            Err(error) if !force => Err(error),
            Err(Error::Corrupt { .. }) => {
                let (inner, id) = (self.clone(), id.clone());
                driven::to_the_end(|caller| async move { inner.remove_unreadable(&id, &caller).await }).await
            }
            other => self.remove_this(other?, force).await,
        }
    }

    /// The same for `container`, and never for a later one of its name.
    pub(super) async fn remove_this(
        self: &Arc<Self>,
        container: Container,
        force: bool,
    ) -> Result<Vec<(String, volumes_s3::Error)>> {
        let inner = self.clone();
        driven::to_the_end(|caller| async move { inner.remove_to_the_end(container, force, &caller).await }).await
    }

    pub(super) async fn remove_to_the_end(
        &self,
        container: Container,
        force: bool,
        caller: &Caller,
    ) -> Result<Vec<(String, volumes_s3::Error)>> {
        let id = &container.record.id;
        // What is owed since an earlier end was told then.
        let settling = match self.exit_record(&container) {
            Ok(Some(_)) => Settling::Left,
            _ => Settling::Joined,
        };
        let ended = if force {
            self.end(&container, libc::SIGKILL, Duration::ZERO, Some(caller)).await
        } else {
            refuse_running(id, &self.observe(&container).await?)?;
            Ok(())
        };
        let (lock, container) = match self.lock(&container).await {
            // With its end it was removed.
            Err(Error::NoSuchContainer { .. }) if container.record.spec.remove_on_exit => {
                return Ok(self.settle_ended(&container, Settling::Joined).await);
            }
            Ok((_, now)) if !now.record.is_same_container(&container.record) => {
                return Err(Error::NoSuchContainer { id: id.to_string() });
            }
            other => other?,
        };
        if caller.is_gone() {
            return Err(Error::CalledOff { id: id.to_string() });
        }
        if !force {
            // Somebody may have started it while the lock was waited for.
            refuse_running(id, &self.observe_locked(&container, &lock).await?)?;
        }
        caller.begin();
        if matches!(&ended, Err(error) if error.is_without_answer())
            && let Some(connection) = self.supervisor(&container).await?
        {
            tracing::warn!(container = %id, "its supervisor does not answer, and is killed");
            connection.kill_peer().await.map_err(Error::supervisor(id))?;
        }
        let mut unrecorded = None;
        // Somebody may have started it again while the lock was waited for. And one that has written its record answers
        // once it has let go of socket and cgroup: the next container may take them.
        if let Some(mut connection) = self.supervisor(&container).await? {
            let kill = Request::Stop { signal: libc::SIGKILL, timeout_ms: 0 };
            match connection.ask(&kill).await.map_err(Error::supervisor(id))? {
                Some(Reply::Error(what)) => return Err(self.not_ended(&container, what)),
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
        let supervisor = match self.exit_record(&container) {
            Ok(Some(record)) => record.supervisor(),
            // It lives only to write its record, which nobody will read.
            Ok(None) => unrecorded.and_then(|record| record.supervisor()).inspect(|supervisor| {
                if let Err(error) = supervisor.kill() {
                    tracing::warn!(container = %id, %error, "its supervisor lives on");
                }
            }),
            Err(error) => {
                tracing::warn!(container = %id, error = error.chain(), "its end is not known");
                None
            }
        };
        let owed = self.settle_volumes(&container, settling).await;
        let freed = self.free(&container, supervisor, None).await;
        if !container.paths.record().exists() {
            self.tell(Event::now(EventKind::Remove).of(id));
        }
        lock.remove();
        freed.map(|()| owed)
    }

    /// Frees everything that a container has whose create is undone, of whatever there is of it. The lock is held. S3 is
    /// waited for no longer than `patience`.
    pub(crate) async fn discard(&self, container: &Container, patience: Duration) -> Result<()> {
        // It knows the container by paths, which the next one of this name will have.
        let ended = self.end_supervisor(&container.paths).await;
        let freed = self.free(container, None, Some(patience)).await;
        ended.and(freed)
    }

    /// The same after the end of one whose supervisor may still be unmounting its root: that keeps only its files, which
    /// are deleted behind the caller's back.
    async fn free(
        &self,
        container: &Container,
        supervisor: Option<ProcessName>,
        undone: Option<Duration>,
    ) -> Result<()> {
        let mut errors = self.free_host(container, supervisor).await;
        errors.extend(self.release_volumes(container, undone).await);
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// All but its named volumes.
    async fn free_host(&self, container: &Container, supervisor: Option<ProcessName>) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut note = |result: Result<()>| errors.extend(result.err());
        note(self.clear_cgroup(container).await);
        let left = self.leave_network(container).await;
        if let NetworkRecord::Bridge(lease) = &container.record.network {
            note(self.networks.detach(lease).await);
            // Whoever has the address next must not be reached by what leads to it still.
            if left.is_ok() {
                let (lease, id) = (lease.clone(), container.record.id.to_string());
                note(self.on_networks(move |networks| networks.free(&lease, &id)).await);
            }
        }
        note(left);
        let (paths, trash) = (container.paths.clone(), self.trash.clone());
        let taken = tokio::task::spawn_blocking(move || take_files(&paths, &trash));
        match taken.await.map_err(Error::ThreadLost) {
            Ok((run, dir)) => {
                note(run);
                match dir {
                    Ok(Some(discarded)) => self.trash.delete(discarded, supervisor),
                    other => note(other.map(drop)),
                }
            }
            Err(error) => note(Err(error)),
        }
        errors
    }

    /// Whether `container`, which ended so, should have been removed with its end, and nobody is about to.
    pub(crate) fn is_left_over(&self, container: &Container, ended: &ExitRecord) -> bool {
        container.record.spec.remove_on_exit
            && ended.supervisor().is_none_or(|supervisor| supervisor.wait_for_end(Duration::ZERO))
    }

    /// Removes a container that is left over. What is owed for its named volumes is journaled, and the keeper's to settle.
    pub(crate) async fn remove_left_over(&self, container: &Container) {
        let id = &container.record.id;
        let lock = match self.lock(container).await {
            Ok((lock, now)) if now.record.is_same_container(&container.record) => lock,
            _ => return,
        };
        for error in self.free_host(container, None).await {
            tracing::warn!(container = %id, error = error.chain(), "removing it with its end");
        }
        self.tell(Event::now(EventKind::Remove).of(id));
        lock.remove();
    }

    /// Gives the volumes of a container back that is no more.
    async fn release_volumes(&self, container: &Container, undone: Option<Duration>) -> Vec<Error> {
        let patience = undone.unwrap_or(self.config.volumes.sync_on_stop);
        let undone = undone.is_some();
        let of_disk = |(_, error): &(String, _)| {
            matches!(error, volumes_s3::Error::Io { .. } | volumes_s3::Error::DiskFull { .. })
        };
        // What only S3 refused is journaled.
        if !self.end_volumes(container, undone, patience).await.iter().any(of_disk) {
            return Vec::new();
        }
        // The container's files may have filled the disk that this is written to.
        self.trash.deleted().await;
        let again = self.end_volumes(container, undone, patience).await.into_iter().filter(of_disk);
        again.map(|(name, source)| Error::of_volume(&name, source)).collect()
    }
}

/// Refuses what is removed only by force.
fn refuse_running(id: &ContainerId, observed: &Observed) -> Result<()> {
    match observed {
        Observed::Ended(_) => Ok(()),
        // Created and not started: nothing of the user's runs.
        Observed::Supervised(status) if status.phase == Phase::Created => Ok(()),
        _ => Err(Error::StillRunning { id: id.to_string(), state: observed.state().word() }),
    }
}

/// Takes away what a container has on disk, in the run directory and beneath the root; blocking.
pub(super) fn take_files(paths: &ContainerPaths, trash: &Trash) -> (Result<()>, Result<Option<Discarded>>) {
    let _ = fs::remove_file(&paths.socket);
    let run = remove_dir(&paths.run);
    let dir = match trash.take(&paths.dir) {
        // Without its record it is gone as well.
        Err(error) if trash::is_no_place(&error) => {
            let _ = fs::remove_file(paths.record());
            remove_dir(&paths.dir).map(|()| None)
        }
        other => other.map_err(Error::io("removing", &paths.dir)),
    };
    (run, dir)
}

/// Removes a tree of any depth; one that is not there is removed. The keeper may be about to write there what a health check
/// came to: after that write it is emptied once more.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + WRITERS_PATIENCE;
    loop {
        match volumes_s3::remove_tree(dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {}
            other => return other.map_err(Error::io("removing", dir)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;

    #[test]
    fn a_directory_that_is_written_to_meanwhile_is_removed() {
        let base = tempfile::tempdir().unwrap();
        for round in 0..100 {
            let dir = base.path().join(round.to_string());
            fs::create_dir(&dir).unwrap();
            let file = dir.join("health.json");
            record::write(&file, &0).unwrap();
            let writing = std::thread::spawn(move || while record::write(&file, &0).is_ok() {});
            remove_dir(&dir).unwrap();
            assert!(!dir.exists(), "{round}");
            writing.join().unwrap();
        }
    }
}
