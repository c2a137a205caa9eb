//! What follows the end of an attempt: its supervisor goes, its volumes are synced and given back.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use runtime_core::ContainerId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use volumes_s3::VolumeStore;

use super::{Container, Observed};
use crate::error::{Error, Result};
use crate::lock::ContainerLock;
use crate::record::{AttemptKey, ExitRecord, MountKind};
use crate::runtime::Inner;
use crate::trash::SUPERVISOR_PATIENCE;

/// Volumes retried at once: each sync may hold some ten MiB.
const RETRIES_AT_ONCE: usize = 4;

/// Until the end of a use is to be written down again: somebody else worked with the volume for all the time there was.
const PAUSE_BETWEEN_TRIES: Duration = Duration::from_secs(5);

/// What becomes of a sync that somebody else has begun at the end of the same container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settling {
    /// It is theirs, and so is the telling.
    Left,
    /// It is waited for, and tried again should it fail: the caller's answer says whether the data is durable.
    Joined,
}

/// The lock of a container that has ended. Of one that is gone nobody needs its file.
pub(crate) struct HeldEnded {
    lock: Option<ContainerLock>,
    is_gone: bool,
}

impl HeldEnded {
    pub fn new(lock: ContainerLock, is_gone: bool) -> Self {
        Self { lock: Some(lock), is_gone }
    }
}

impl Drop for HeldEnded {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take().filter(|_| self.is_gone) {
            lock.remove();
        }
    }
}

/// Ends the use of a volume, unless somebody else works with that until `end`. The container's lock is held, so that no use
/// of a later attempt is taken for this one's.
pub(crate) async fn leave_until(
    volumes: &VolumeStore,
    name: &str,
    user: &str,
    (end, patience): (Instant, Duration),
) -> volumes_s3::Result<bool> {
    let called_off = CancellationToken::new();
    match tokio::time::timeout_at(end, volumes.leave(name, user, &called_off)).await {
        Ok(left) => left,
        Err(_) => {
            called_off.cancel();
            Err(volumes_s3::Error::SyncTimedOut { name: name.to_owned(), patience })
        }
    }
}

impl Inner {
    /// Syncs the named volumes of a container that has ended and may be gone, and gives them back, within the configured
    /// time: what does not become durable is journaled by the volume store, retried by the keeper, and told here by name.
    /// Those of one that was started again by then, or whose name another one has, are that one's.
    ///
    /// A volume that the container does not use any more is settled already, or being settled, as `settling` says.
    pub(crate) async fn settle_ended(
        &self,
        container: &Container,
        settling: Settling,
    ) -> Vec<(String, volumes_s3::Error)> {
        if container.record.named_volumes().is_empty() {
            return Vec::new();
        }
        let patience = self.config.volumes.sync_on_stop;
        let end = Instant::now() + patience;
        let (held, user) = match self.hold_ended(container, end).await {
            Ok(Some(held)) => (Arc::new(held), container.record.id.to_string()),
            Ok(None) => return Vec::new(),
            Err(error) => {
                tracing::warn!(container = %container.record.id, error = error.chain(), "its volumes are left to the keeper");
                return Vec::new();
            }
        };
        let (mut uses, mut theirs, mut owed) = (Vec::new(), Vec::new(), Vec::new());
        for name in container.record.named_volumes().into_iter().map(str::to_owned) {
            match self.volumes.users(&name).await {
                Ok(users) if users.contains(&user) => uses.push(name),
                Ok(_) => theirs.push(name),
                Err(error) => {
                    self.tell_whether_durable(&name, Some(&error));
                    owed.push((name, error));
                }
            }
        }
        let tries = uses.iter().map(|name| {
            let (volumes, name_of_task) = (self.volumes.clone(), name.clone());
            let (user, held) = (user.clone(), held.clone());
            self.settled(name, (end, patience), async move {
                let owes = leave_until(&volumes, &name_of_task, &user, (end, patience)).await;
                // The end of the use is written down, or stays to be; who starts it again is in nobody's way.
                drop(held);
                match owes? {
                    true => Ok(volumes.retry(&name_of_task).await.err()),
                    false => Ok(None),
                }
            })
        });
        let tries: Vec<_> = tries.collect();
        drop(held);
        owed.extend(futures_util::future::join_all(tries).await.into_iter().flatten());
        owed.extend(self.join_settling(container, settling, theirs).await);
        owed
    }

    /// The same for whoever has the container's lock: it is being started, or removed.
    pub(crate) async fn settle_volumes(
        &self,
        container: &Container,
        settling: Settling,
    ) -> Vec<(String, volumes_s3::Error)> {
        let mut owed = self.end_volumes(container, false, self.config.volumes.sync_on_stop).await;
        let mut theirs = container.record.named_volumes();
        theirs.retain(|name| !owed.iter().any(|(tried, _)| tried == name));
        let theirs = theirs.into_iter().map(str::to_owned).collect();
        owed.extend(self.join_settling(container, settling, theirs).await);
        owed
    }

    /// Waits for what others settle, and tries it again, where that is the caller's to tell.
    async fn join_settling(
        &self,
        container: &Container,
        settling: Settling,
        theirs: Vec<String>,
    ) -> Vec<(String, volumes_s3::Error)> {
        if settling == Settling::Left || theirs.is_empty() {
            return Vec::new();
        }
        match self.volumes.owing_of(theirs).await {
            Ok(owing) => self.retry(owing).await,
            Err(error) => {
                tracing::warn!(container = %container.record.id, %error, "its volumes are left to the keeper");
                Vec::new()
            }
        }
    }

    /// Keeps a container that has ended, or is gone, as it is; `None` if it runs, or another one has its name, or whoever has
    /// its lock keeps it beyond `end`: then it is theirs.
    async fn hold_ended(&self, container: &Container, end: Instant) -> Result<Option<HeldEnded>> {
        let acquiring = ContainerLock::acquire(container.paths.lock.clone());
        let Ok(lock) = tokio::time::timeout_at(end, acquiring).await else { return Ok(None) };
        let lock = lock?;
        let is_gone = match self.container(&container.record.id) {
            Ok(now) if now.record.is_same_container(&container.record) => {
                match self.observe_locked(&now, &lock).await? {
                    Observed::Ended(_) => false,
                    _ => return Ok(None),
                }
            }
            Err(Error::NoSuchContainer { .. }) => true,
            _ => return Ok(None),
        };
        Ok(Some(HeldEnded::new(lock, is_gone)))
    }

    /// Syncs the volumes of a container whose lock is held, and gives them back; of one whose create is `undone`, those that
    /// were made for it go.
    pub(super) async fn end_volumes(
        &self,
        container: &Container,
        undone: bool,
        patience: Duration,
    ) -> Vec<(String, volumes_s3::Error)> {
        let user = container.record.id.to_string();
        let names = container.record.named_volumes().into_iter();
        let settling = names.map(|name| self.end_volume(name, &user, undone, patience));
        futures_util::future::join_all(settling).await.into_iter().flatten().collect()
    }

    /// The same for whatever volumes name `id` among their users, where no record says which.
    pub(crate) async fn end_volumes_of(
        &self,
        id: &ContainerId,
        undone: bool,
        patience: Duration,
    ) -> Result<Vec<(String, volumes_s3::Error)>> {
        let (mut owed, user) = (Vec::new(), id.to_string());
        for name in self.volumes.names().await? {
            match self.volumes.users(&name).await {
                Ok(users) if users.contains(&user) => {
                    owed.extend(self.end_volume(&name, &user, undone, patience).await);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(volume = name, %error, "whether container {id} used it is not known"),
            }
        }
        Ok(owed)
    }

    /// One of them. `None` if nothing is owed.
    async fn end_volume(
        &self,
        name: &str,
        user: &str,
        undone: bool,
        patience: Duration,
    ) -> Option<(String, volumes_s3::Error)> {
        match self.volumes.users(name).await {
            Ok(users) if users.iter().any(|other| other == user) => {}
            Ok(_) => return None,
            // Its create failed for the same reason, and said so.
            Err(_) if undone => return None,
            // Nobody can write down that the use is over.
            Err(error) => {
                self.tell_whether_durable(name, Some(&error));
                return Some((name.to_owned(), error));
            }
        }
        let (volumes, task_name, task_user) = (self.volumes.clone(), name.to_owned(), user.to_owned());
        let ending = async move {
            match undone {
                true => volumes.undo(&task_name, &task_user).await,
                false => volumes.release(&task_name, &task_user).await,
            }
        };
        self.settled(name, (Instant::now() + patience, patience), ending).await
    }

    /// What volume `name` still owes when `ending` is over, or at `end` of the `patience`, and tells of it.
    async fn settled(
        &self,
        name: &str,
        (end, patience): (Instant, Duration),
        ending: impl Future<Output = volumes_s3::Result<Option<volumes_s3::Error>>> + Send + 'static,
    ) -> Option<(String, volumes_s3::Error)> {
        // On its own: a time that runs out must not cut a sync off.
        let mut ending = tokio::spawn(ending);
        let in_time = tokio::time::timeout_at(end, &mut ending).await;
        let is_late = in_time.is_err();
        let owed = match in_time {
            Ok(Ok(Ok(owed))) => owed,
            Ok(Ok(Err(error))) => Some(error),
            Ok(Err(_)) => Some(volumes_s3::Error::Interrupted { operation: "the sync of a volume" }),
            Err(_) => Some(volumes_s3::Error::SyncTimedOut { name: name.to_owned(), patience }),
        };
        self.tell_whether_durable(name, owed.as_ref());
        if is_late {
            self.tell_when_durable(name, ending);
        }
        owed.map(|error| (name.to_owned(), error))
    }

    /// Tries once what volumes owe to S3, within the configured time for all of them.
    pub(crate) async fn retry_volumes(&self) -> Result<Vec<(String, volumes_s3::Error)>> {
        Ok(self.retry(self.volumes.owing().await?).await)
    }

    async fn retry(&self, owing: Vec<String>) -> Vec<(String, volumes_s3::Error)> {
        let patience = self.config.volumes.sync_on_stop;
        let end = Instant::now() + patience;
        let tries = owing.into_iter().map(|name| async move {
            match tokio::time::timeout_at(end, self.pay(&name)).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some((name, error)),
                Err(_) => Some((name.clone(), volumes_s3::Error::SyncTimedOut { name, patience })),
            }
        });
        let tried: Vec<_> = stream::iter(tries).buffered(RETRIES_AT_ONCE).collect().await;
        tried.into_iter().flatten().collect()
    }

    /// Waits until the supervisor that wrote an exit record has ended, and the overlay is unmounted with it.
    pub(crate) async fn wait_for_supervisor(&self, container: &Container, ended: &ExitRecord) -> Result<()> {
        let Some(supervisor) = ended.supervisor() else { return Ok(()) };
        match supervisor.ended_within(SUPERVISOR_PATIENCE).await {
            true => Ok(()),
            false => Err(Error::Supervisor {
                id: container.record.id.to_string(),
                what: format!("(pid {supervisor}) does not end"),
                source: None,
            }),
        }
    }

    /// Lets the keeper follow a container that uses named volumes, so that they are synced when it ends by itself. Once
    /// for each attempt.
    pub(crate) fn keep_watch(&self, container: &Container) {
        if self.config.keeper
            && container.record.mounts.iter().any(|mount| mount.kind == MountKind::Named)
            && let Some(inner) = self.weak.upgrade()
        {
            let attempt = container.record.attempt_key();
            if !self.followed().insert(attempt.clone()) {
                return;
            }
            let container = container.clone();
            tokio::spawn(async move {
                inner.settle_at_end(&container).await;
                inner.followed().remove(&attempt);
            });
        }
    }

    fn followed(&self) -> MutexGuard<'_, HashSet<AttemptKey>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the container, then syncs its volumes unless it was started again by then.
    pub(crate) async fn settle_at_end(self: &Arc<Self>, container: &Container) {
        // Between attempts that its policy makes it needs them still. Its supervisor may have removed it.
        match self.wait_for_last_end(container, None).await {
            Ok(_) | Err(Error::NoSuchContainer { .. }) => {
                while self.settle_ended(container, Settling::Left).await.iter().any(|(_, error)| is_late(error))
                    && self.uses_a_volume(container).await
                {
                    tokio::time::sleep(PAUSE_BETWEEN_TRIES).await;
                }
            }
            Err(error) => {
                tracing::debug!(container = %container.record.id, error = error.chain(), "no longer followed");
            }
        }
    }

    async fn uses_a_volume(&self, container: &Container) -> bool {
        let user = container.record.id.to_string();
        for name in container.record.named_volumes() {
            if self.volumes.users(name).await.is_ok_and(|users| users.contains(&user)) {
                return true;
            }
        }
        false
    }
}

fn is_late(error: &volumes_s3::Error) -> bool {
    matches!(error, volumes_s3::Error::SyncTimedOut { .. })
}
