//! Removed containers, until their files are deleted: behind the back of whoever removed them.
//!
//! A container is moved here in one step, which is its end. Whoever deletes it holds a lock on its directory; one that
//! nobody holds was left by a process that died, and is deleted by the next that opens the root.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Semaphore, watch};

use crate::error::{Error, Result};
use crate::process::ProcessName;

/// Time for a supervisor to unmount and end after its container ended, or was removed; then its files are deleted beneath
/// it. The unmount syncs the writable layer.
pub(crate) const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(60);

/// Deletions at once. More would keep tokio's threads from all else that blocks.
const CONCURRENT_DELETIONS: usize = 16;

/// The directory, and what this process is deleting in it.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: PathBuf,
    under_way: watch::Sender<usize>,
    turns: Arc<Semaphore>,
}

/// A directory that was moved here and is to be deleted.
#[derive(Debug)]
pub(crate) struct Discarded {
    path: PathBuf,
    /// Locked, so that nobody else deletes it.
    lock: File,
}

impl Trash {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, under_way: watch::Sender::new(0), turns: Arc::new(Semaphore::new(CONCURRENT_DELETIONS)) }
    }

    /// [`take`], into this one.
    pub fn take(&self, dir: &Path) -> io::Result<Option<Discarded>> {
        take(&self.dir, dir)
    }

    /// Deletes it behind the caller's back, once `user`, in whose mounts it is, has ended. Must be called within a tokio
    /// runtime.
    pub fn delete(&self, discarded: Discarded, user: Option<ProcessName>) {
        let (under_way, turns) = (UnderWay::begin(&self.under_way), Arc::clone(&self.turns));
        tokio::spawn(async move {
            if let Some(user) = user
                && !user.ended_within(SUPERVISOR_PATIENCE).await
            {
                let path = discarded.path.display();
                tracing::warn!(%path, "a supervisor does not end: deleted while it is used");
            }
            // It is never closed; if it were, all might go at once.
            let turn = turns.acquire_owned().await.ok();
            let deleted = tokio::task::spawn_blocking(move || {
                let (_under_way, _turn, Discarded { path, lock: _lock }) = (under_way, turn, discarded);
                if let Err(error) = volumes_s3::remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot be deleted");
                }
            });
            // A runtime that shuts down leaves it to the next who opens the root.
            let _ = deleted.await;
        });
    }

    /// Begins to delete what processes left that are no more. Must be called within a tokio runtime.
    pub fn delete_orphans(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).map_err(Error::io("listing", &self.dir))? {
            let path = entry.map_err(Error::io("listing", &self.dir))?.path();
            // One that is gone by now was deleted by its owner.
            let Ok(lock) = File::open(&path) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                self.delete(Discarded { path, lock }, None);
            }
        }
        Ok(())
    }

    /// Waits until all that this process deletes is deleted.
    pub async fn deleted(&self) {
        // The sender is ours, and lives.
        let _ = self.under_way.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Discarded {
    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes it. Blocks.
    pub fn delete(self) -> io::Result<()> {
        volumes_s3::remove_tree(&self.path)
    }
}

/// Takes `dir` away into `trash` in one step; `None` if it is not there. Blocks for a moment.
pub(crate) fn take(trash: &Path, dir: &Path) -> io::Result<Option<Discarded>> {
    let path = trash.join(format!("{}-{}", std::process::id(), rand::random::<u64>()));
    let lock = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    fs::rename(dir, &path)?;
    Ok(Some(Discarded { path, lock }))
}

/// Whether what could not be taken away so is to be deleted where it is: there is no room for the name, or the trash is on another
/// disk.
pub(crate) fn is_no_place(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | CrossesDevices)
}

/// Counts a deletion until it is dropped, also by a runtime that shuts down.
#[derive(Debug)]
struct UnderWay(watch::Sender<usize>);

impl UnderWay {
    fn begin(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn what_is_taken_is_gone_at_once_and_deleted_once_its_user_has_ended() {
        let root = tempfile::tempdir().unwrap();
        let (container, dir) = (root.path().join("web-rep-0"), root.path().join("trash"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir_all(container.join("upper/etc")).unwrap();
        let trash = Trash::new(dir.clone());
        let mut user = Command::new("sleep").arg("60").spawn().unwrap();

        let taken = trash.take(&container).unwrap().unwrap();
        assert!(!container.exists());
        assert!(trash.take(&container).unwrap().is_none());
        trash.delete(taken, ProcessName::of(user.id() as i32).unwrap());
        // Another process that opens the root now leaves it alone.
        let other = Trash::new(dir.clone());
        other.delete_orphans().unwrap();
        other.deleted().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "deleted while it was used");
        user.kill().unwrap();
        trash.deleted().await;
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        user.wait().unwrap();
    }

    #[test]
    fn supervisors_that_do_not_end_keep_no_thread_from_others() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("trash");
        fs::create_dir(&dir).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(2).enable_all().build().unwrap();
        let mut user = Command::new("sleep").arg("60").spawn().unwrap();
        runtime.block_on(async {
            let trash = Trash::new(dir.clone());
            for number in 0..4 {
                let container = root.path().join(number.to_string());
                fs::create_dir(&container).unwrap();
                trash.delete(trash.take(&container).unwrap().unwrap(), ProcessName::of(user.id() as i32).unwrap());
            }
            let other = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(Duration::from_secs(20), other).await.unwrap().unwrap();
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 4);
            user.kill().unwrap();
            trash.deleted().await;
        });
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        user.wait().unwrap();
    }

    #[tokio::test]
    async fn what_a_dead_process_left_is_deleted_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("1-2/upper/etc")).unwrap();
        let trash = Trash::new(dir.path().to_owned());
        trash.delete_orphans().unwrap();
        trash.deleted().await;
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
