//! Locks between processes: flock on files that are closed on exec, so that the kernel frees them when a holder dies.
//!
//! Order: the store (shared) → a layer's chain → a layer's diff ID → the index. The chain lock of a layer is held until
//! the layer stands, which needs the layers below it, whose chain IDs are others; a diff ID's lock is held by work that
//! waits for the network and the disk only. So no cycle can arise.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Keeps everything in the store from being pruned. Freed on drop, and when the process dies.
#[derive(Debug)]
pub struct StoreHold {
    _file: File,
}

impl StoreHold {
    /// Waits for the lock; blocking.
    pub(crate) fn shared(path: &Path) -> Result<Self> {
        lock_file(path, FlockOperation::LockShared).map(|file| Self { _file: file })
    }

    /// Waits for the lock that excludes all others; blocking.
    pub(crate) fn exclusive(path: &Path) -> Result<Self> {
        lock_file(path, FlockOperation::LockExclusive).map(|file| Self { _file: file })
    }

    /// The lock that excludes all others, if it is free now.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        let file = open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::io("locking", path, error)),
        }
    }
}

/// A lock on one object, within the process and across processes.
#[derive(Debug)]
pub(crate) struct ObjectLock {
    // Order matters: the file's lock is freed before the next waiter of this process is let in.
    _file: File,
    _in_process: tokio::sync::OwnedMutexGuard<()>,
}

/// Locks by name. Waiters of one process queue up here, so that only one thread of it waits in the kernel for a name.
#[derive(Debug, Default)]
pub(crate) struct ObjectLocks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl ObjectLocks {
    /// Waits for the lock `name`, whose file is in `directory`. Dropping the future gives up.
    pub(crate) async fn lock(&self, directory: &Path, name: &str) -> Result<ObjectLock> {
        let in_process = self.entry(name).lock_owned().await;
        let path: PathBuf = directory.join(name);
        let file = tokio::task::spawn_blocking(move || lock_file(&path, FlockOperation::LockExclusive))
            .await
            .map_err(|_| Error::Interrupted("waiting for a lock"))??;
        Ok(ObjectLock { _file: file, _in_process: in_process })
    }

    fn entry(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// Opens (or makes) a lock file and waits for the lock; blocking.
pub(crate) fn lock_file(path: &Path, operation: FlockOperation) -> Result<File> {
    let file = open(path)?;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("locking", path, error)),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("opening the lock", path, e))
}
