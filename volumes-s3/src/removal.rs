//! Removal of local copies and of histories.

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use runtime_core::PruneResult;
use rustix::fs::FlockOperation;

use crate::claim::{self, Standing};
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::foreign::{ASIDE, refuse_foreign};
use crate::lock::open_lock;
use crate::object_store::Listed;
use crate::paths::{RESTORED_SCAN, make_directories};
use crate::prune::{REQUESTS, delete};
use crate::record::{Record, random_id};
use crate::state::{TEMPORARY, remove_file, sync_parent};
use crate::store::VolumeStore;
use crate::volume::{Remote, Volume};

/// How often the log of a history is emptied that others keep writing to.
const LOG_ROUNDS: u32 = 8;
/// What a restore has beside its tree.
const LEFTOVER_FILES: [&str; 2] = [RESTORED_SCAN, "scan.entries"];

impl VolumeStore {
    /// Removes the local copy; with `remote` the history in S3 too. With `force` also one whose state cannot be read: a claim
    /// that only the state tells of stays.
    ///
    /// # Errors
    /// [`Error::InUse`]; without `force` [`Error::Unsynced`] when data would be lost, [`Error::Unpublished`] when a step back, [`Error::Foreign`] when a tree that is
    /// not known to be the volume's would be, [`Error::Owing`] when a debt to another bucket would be, and [`Error::InUseElsewhere`] when the history is another host's; [`Error::NotFound`].
    pub async fn remove(&self, name: &str, remote: bool, force: bool) -> Result<()> {
        self.detached(name, move |store, name| async move {
            let mut volume = if force { store.lock_damaged(&name).await? } else { store.lock(&name).await? };
            refuse_in_use(&volume, "removal")?;
            if !volume.known && !remote {
                return Err(Error::NotFound { name });
            }
            let elsewhere = match volume.belongs_elsewhere().await {
                Err(_) if force => true,
                told => told?,
            };
            if !force {
                refuse_foreign(&volume).await?;
            }
            if !force && (elsewhere || !remote) {
                refuse_loss(&mut volume, elsewhere).await?;
            }
            if remote {
                store.remove_history(&mut volume, force).await?;
            } else if volume.state.epoch.is_some()
                && !elsewhere
                && let Err(error) = claim::release(&mut volume).await
                && !force
            {
                return Err(error);
            }
            store.remove_local(&volume).await.map(drop)
        })
        .await
    }

    /// Removes local copies that nobody uses and S3 holds as they are, if it has every pack of the newest generation, but for
    /// those of volumes to be `kept`.
    ///
    /// # Errors
    /// Those of the disk. A volume whose state cannot be told is kept, and so is one beside which another tree lies.
    pub async fn prune_local(&self, kept: &BTreeSet<String>) -> Result<PruneResult> {
        let mut result = PruneResult::default();
        for name in self.names().await?.into_iter().filter(|name| !kept.contains(name)) {
            let pruned = self.detached(&name, |store, name| async move {
                let mut volume = store.lock(&name).await?;
                let idle =
                    volume.known && volume.state.users.is_empty() && volume.state.tree.is_some() && !volume.state.held;
                if volume.remote.is_none() || !idle {
                    return Ok(None);
                }
                refuse_foreign(&volume).await?;
                if !volume.is_here()? {
                    return Ok(None);
                }
                volume.head().await?;
                // In another bucket than the one it belongs to, it was never published.
                if volume.state.tree.is_none()
                    || volume.state.owes()
                    || volume.state.went_back()
                    || volume.has_changes().await?
                {
                    return Ok(None);
                }
                store.refuse_lost_packs(&volume).await?;
                store.remove_local(&volume).await.map(Some)
            });
            match pruned.await {
                Ok(Some(bytes)) => {
                    result.deleted.push(name);
                    result.space_reclaimed += bytes;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(volume = name, %error, "not pruned"),
            }
        }
        Ok(result)
    }

    pub(crate) async fn remove_history(&self, volume: &mut Volume, force: bool) -> Result<()> {
        let Some(remote) = volume.remote.clone() else {
            return Err(Error::NoBucket { name: volume.name.clone(), operation: "removal of a history" });
        };
        let head = volume.head().await?;
        if head.is_none() && !volume.known {
            return Err(Error::NotFound { name: volume.name.clone() });
        }
        if let (Standing::Elsewhere { host, record }, false) = (claim::standing(volume), force) {
            return Err(Error::InUseElsewhere { name: volume.name.clone(), host, record });
        }
        delete_history(&remote, head.as_ref()).await?;
        volume.state.forget_history();
        Ok(())
    }

    pub(crate) async fn remove_local(&self, volume: &Volume) -> Result<u64> {
        let (root, directory, hold) = (self.inner.config.root.clone(), volume.paths.directory.clone(), volume.hold());
        let (data, bells) = (volume.paths.data(), [volume.paths.debt(), volume.paths.grown()]);
        blocking("remove", move || {
            let size = if data.exists() { tree_size(&data) } else { 0 };
            move_to_trash(&root, &directory)?;
            bells.iter().try_for_each(|bell| remove_file(bell))?;
            sync_parent(&directory)?;
            empty_trash(&root);
            drop(hold);
            Ok(size)
        })
        .await
    }
}

/// Deletes the history that ends with `head`, and what lies under its name without one. As soon as its log is gone, another
/// may be begun under the name: nothing of that goes.
async fn delete_history(remote: &Remote, head: Option<&Record>) -> Result<()> {
    let history = head.map(|head| head.volume.as_str());
    let listed = remote.store.list_all(&remote.prefix).await?;
    for round in 0..LOG_ROUNDS {
        // After the list: as long as there is a log of this history, or none, nothing listed is another's.
        let numbers = remote.log.numbers().await?;
        let Some(last) = numbers.last() else { return delete_listed(remote, listed, history).await };
        if remote.log.read(*last).await?.is_some_and(|record| Some(record.volume.as_str()) != history) {
            return match round {
                0 => Err(Error::Interrupted { operation: "remove a history that was begun anew meanwhile" }),
                _ => delete_listed(remote, listed, history).await,
            };
        }
        // The log goes first, the newest record first: whatever is left of it at any time can be restored. Records that
        // come meanwhile go in the next round; who puts one later finds the one before gone, and takes its own away.
        for number in numbers.into_iter().rev() {
            remote.store.delete(&remote.log.key(number)).await?;
        }
    }
    Err(Error::Interrupted { operation: "remove a history that others keep writing to" })
}

/// Deletes what was `listed` of a history whose log is gone, but for copies of records of another: their numbers may have
/// come again. No other name does.
async fn delete_listed(remote: &Remote, listed: Vec<Listed>, history: Option<&str>) -> Result<()> {
    let (copies, log) = (remote.kept_prefix(), remote.log.records_prefix());
    let keys = listed.into_iter().map(|object| object.key).filter(|key| !key.starts_with(&log));
    let (copies, others): (Vec<String>, Vec<String>) = keys.partition(|key| key.starts_with(&copies));
    stream::iter(copies)
        .map(|key| async move {
            let number = key.rsplit('/').next().and_then(|number| number.parse().ok());
            let copy = match number {
                Some(number) => match remote.kept(number).await {
                    Ok(copy) => Some(copy),
                    Err(Error::Corrupt { .. }) => None,
                    Err(error) => return Err(error),
                },
                None => None,
            };
            let stays = copy.is_some_and(|copy| history.is_some_and(|history| copy.volume != history));
            if stays { Ok(()) } else { remote.store.delete(&key).await }
        })
        .buffer_unordered(REQUESTS)
        .try_collect::<()>()
        .await?;
    delete(remote, others.into_iter()).await
}

pub(crate) fn refuse_in_use(volume: &Volume, operation: &'static str) -> Result<()> {
    if volume.state.users.is_empty() {
        return Ok(());
    }
    let users = volume.state.users.keys().cloned().collect();
    Err(Error::InUse { name: volume.name.clone(), operation, users })
}

/// Refuses what would lose a tree that is nowhere else, or the word that S3 is owed something. What the volume itself
/// tells of its bucket counts: this process may know none, or another one (`elsewhere`).
pub(crate) async fn refuse_loss(volume: &mut Volume, elsewhere: bool) -> Result<()> {
    let here = volume.is_here()?;
    if here && volume.remote.is_some() && !elsewhere {
        volume.head().await?;
    }
    if here && (elsewhere || volume.remote.is_some()) && volume.has_changes().await? {
        let bytes = volume.difference().await?.bytes;
        return Err(Error::Unsynced { name: volume.name.clone(), bytes });
    }
    if here && (elsewhere || volume.remote.is_some()) && volume.state.went_back() {
        let generation = volume.state.tree.as_ref().map_or(0, |tree| tree.record);
        return Err(Error::Unpublished { name: volume.name.clone(), generation });
    }
    if elsewhere && (volume.state.owes() || volume.state.epoch.is_some()) {
        return Err(Error::Owing { name: volume.name.clone() });
    }
    Ok(())
}

/// Bytes of the files of a tree that goes. One that cannot be walked goes as well: what is told of it is not worth staying for.
fn tree_size(data: &Path) -> u64 {
    crate::scan::changes(data, None).map_or_else(
        |error| {
            tracing::debug!(path = %data.display(), %error, "removed without knowing its size");
            0
        },
        |found| found.size_bytes,
    )
}

pub(crate) fn move_to_trash(root: &Path, path: &Path) -> Result<()> {
    let trash = root.join(".trash");
    make_directories(&trash)?;
    match std::fs::rename(path, trash.join(random_id())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Deletes what is in the trash; what cannot be is left for the next time.
pub(crate) fn empty_trash(root: &Path) {
    remove_entries(&root.join(".trash"), "");
}

/// Deletes trees whose restore was cut off, and their records. Only with the lock.
pub(crate) fn remove_leftovers(directory: &Path) {
    remove_entries(directory, "restore-");
    for file in LEFTOVER_FILES {
        let _ = std::fs::remove_file(directory.join(file));
    }
}

/// Deletes files whose writing was cut off, and a directory that holds nothing else. Only with the lock.
pub(crate) fn remove_unfinished(directory: &Path) {
    for file in ["state", "commit"] {
        let _ = std::fs::remove_file(directory.join(file).with_extension(TEMPORARY));
    }
    let _ = std::fs::remove_dir(directory);
}

/// Whether `directory` holds, beside a state, what is worth something without it: a tree, whosever, or a commit.
pub(crate) fn holds_anything(directory: &Path) -> Result<bool> {
    let failed = |error| Error::io("read", directory, error);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name == "data" || name == "commit.json" || name.to_string_lossy().starts_with(ASIDE) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tidies up after whoever was killed in the middle of something. What is in use is left alone: its user tidies up.
pub(crate) fn reconcile(root: &Path, names: &[String]) {
    for name in names {
        let directory = root.join(name);
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).peekable();
        let empty = names.peek().is_none();
        let is_leftover = |name: &str| name.starts_with("restore-") || LEFTOVER_FILES.contains(&name);
        if empty || names.any(|name| name.ends_with(TEMPORARY) || is_leftover(&name)) {
            let Ok(lock) = open_lock(root, name, FlockOperation::NonBlockingLockExclusive) else { continue };
            remove_leftovers(&directory);
            remove_unfinished(&directory);
            drop(lock);
        }
    }
}

fn remove_entries(directory: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix)
            && let Err(error) = crate::remove_tree(&entry.path())
        {
            match error.kind() {
                std::io::ErrorKind::CrossesDevices => {
                    tracing::warn!(path = %entry.path().display(), %error, "not deleted: unmount it");
                }
                _ => tracing::debug!(path = %entry.path().display(), %error, "not deleted yet"),
            }
        }
    }
}
