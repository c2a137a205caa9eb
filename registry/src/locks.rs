//! Locks between processes: flock on files that are closed on exec, so that the kernel frees them when a holder dies.
//!
//! Order: the store's gate → the store (shared) → a layer's chain → a layer's diff ID → the index. The chain lock of a
//! layer is held until the layer stands, which needs the layers below it, whose chain IDs are others; a diff ID's lock is
//! held by work that waits for the network and the disk only. So no cycle can arise.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Error, Result};

/// After so long it is said what is waited for.
const NOTICE: Duration = Duration::from_secs(3);

/// How long newcomers are kept from the store for who waits to have it alone: most creates that are under way end meanwhile.
const CLOSED: Duration = Duration::from_secs(1);
/// How long they are let in again where that was in vain: a pull may take hours.
const OPEN: Duration = Duration::from_secs(5);
/// Between two tries for a lock; flock has no wait with a time limit.
const RETRY: Duration = Duration::from_millis(20);

/// Keeps everything in the store from being pruned. Freed on drop, and when the process dies.
#[derive(Debug)]
pub struct StoreHold {
    _file: File,
}

impl StoreHold {
    /// Waits for the lock; blocking.
    pub(crate) fn shared(path: &Path) -> Result<Self> {
        let _gate = lock_file(&gate(path), FlockOperation::LockShared)?;
        lock_file(path, FlockOperation::LockShared).map(|file| Self { _file: file })
    }

    /// Waits for the lock that excludes all others; blocking. flock lets newcomers pass who waits for it, so that where they
    /// overlap it never has its turn: for a second in six they are kept waiting.
    pub(crate) fn exclusive(path: &Path) -> Result<Self> {
        let _wait = tell_of_wait(path);
        loop {
            let closed = lock_file(&gate(path), FlockOperation::LockExclusive)?;
            if let Some(hold) = Self::exclusive_within(path, CLOSED)? {
                return Ok(hold);
            }
            drop(closed);
            if let Some(hold) = Self::exclusive_within(path, OPEN)? {
                return Ok(hold);
            }
        }
    }

    /// The lock that excludes all others, if it is free within `patience`; blocking.
    pub(crate) fn exclusive_within(path: &Path, patience: Duration) -> Result<Option<Self>> {
        let begun = Instant::now();
        loop {
            match Self::try_exclusive(path)? {
                None if begun.elapsed() < patience => std::thread::sleep(RETRY),
                tried => return Ok(tried),
            }
        }
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
        // Who is next must not wait in a thread of its own beside one whose caller has gone.
        let lock = move || {
            let file = lock_file(&path, FlockOperation::LockExclusive)?;
            Ok(ObjectLock { _file: file, _in_process: in_process })
        };
        tokio::task::spawn_blocking(lock).await.map_err(|_| Error::Interrupted("waiting for a lock"))?
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

/// Opens (or makes) a lock file and waits for the lock; blocking. That it is waited for is said.
pub(crate) fn lock_file(path: &Path, operation: FlockOperation) -> Result<File> {
    let file = open(path)?;
    let at_once = match operation {
        FlockOperation::LockShared => FlockOperation::NonBlockingLockShared,
        _ => FlockOperation::NonBlockingLockExclusive,
    };
    let mut waits = None;
    loop {
        match rustix::fs::flock(&file, if waits.is_some() { operation } else { at_once }) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => waits = Some(tell_of_wait(path)),
            Err(error) => return Err(Error::io("locking", path, error)),
        }
    }
}

/// Tells after a while that `path` is waited for, unless what this returns is dropped before.
fn tell_of_wait(path: &Path) -> Sender<()> {
    let (over, is_over) = mpsc::channel();
    let path = path.to_owned();
    let tell = move || {
        if is_over.recv_timeout(NOTICE) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("waiting for {}: others work with it (lslocks tells which process)", path.display());
        }
    };
    // Without a thread nothing is said.
    let _ = std::thread::Builder::new().name("berth-notice".to_owned()).spawn(tell);
    over
}

/// Whoever shares the lock at `path` passes here before, with a lock that it has for as long as it waits.
fn gate(path: &Path) -> PathBuf {
    path.with_extension("gate")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_leaves_no_threads_behind() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.max_blocking_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let worked = runtime.block_on(async {
            // As another process has it.
            let held = lock_file(&dir.path().join("layer"), FlockOperation::LockExclusive).unwrap();
            let locks = ObjectLocks::default();
            for _ in 0..8 {
                let waiting = locks.lock(dir.path(), "layer");
                assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
            }
            let work = tokio::time::timeout(Duration::from_secs(30), tokio::task::spawn_blocking(|| ())).await;
            drop(held);
            work
        });
        runtime.shutdown_background();
        worked.unwrap().unwrap();
    }
}
