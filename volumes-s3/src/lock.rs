//! The lock of a volume, between the tasks of a process and between processes.
//!
//! Whoever has it needs the runtime's threads for its work. So nobody waits in one of these: tasks of one process queue up
//! before they ask for the file, and who then waits for another process does so in a thread of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::paths::make_directories;

/// A held lock. The kernel frees it when the process dies.
#[derive(Debug)]
pub(crate) struct VolumeLock {
    // Order matters: the file's lock is freed before the next task of this process is let in.
    _file: File,
    _turn: OwnedMutexGuard<()>,
}

impl VolumeLock {
    /// Waits for the lock of volume `name`. Cancel-safe: a lock that is no longer waited for is given back.
    pub(crate) async fn acquire(root: &Path, name: &str) -> Result<Self> {
        let turn = queue(root.join(name)).lock_owned().await;
        if let Some(file) = try_lock(root, name).await? {
            return Ok(Self { _file: file, _turn: turn });
        }
        let (root, name) = (root.to_owned(), name.to_owned());
        let (answer, locked) = oneshot::channel();
        let waiting = std::thread::Builder::new().name("volume-lock".to_owned()).spawn({
            let (root, name) = (root.clone(), name);
            move || {
                let locked = open_lock(&root, &name, FlockOperation::LockExclusive);
                // Nobody waits any more if the future was dropped.
                let _ = answer.send(locked.map(|file| Self { _file: file, _turn: turn }));
            }
        });
        waiting.map_err(|error| Error::io("start a thread that waits for a lock in", &root, error))?;
        locked.await.map_err(|_| Error::Interrupted { operation: "wait for a lock" })?
    }

    /// Whether nobody has the lock just now.
    pub(crate) async fn is_free(root: &Path, name: &str) -> Result<bool> {
        match queue(root.join(name)).try_lock_owned() {
            Ok(_turn) => Ok(try_lock(root, name).await?.is_some()),
            Err(_) => Ok(false),
        }
    }
}

/// The lock, unless another process has it.
async fn try_lock(root: &Path, name: &str) -> Result<Option<File>> {
    let (root, name) = (root.to_owned(), name.to_owned());
    let locked = blocking("take a lock", move || open_lock(&root, &name, FlockOperation::NonBlockingLockExclusive));
    match locked.await {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        locked => locked.map(Some),
    }
}

/// Where tasks of this process wait for the lock of the volume in `directory`, however many have its volumes open.
fn queue(directory: PathBuf) -> Arc<tokio::sync::Mutex<()>> {
    static QUEUES: Mutex<BTreeMap<PathBuf, Weak<tokio::sync::Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(queue) = queues.get(&directory).and_then(Weak::upgrade) {
        return queue;
    }
    queues.retain(|_, queue| queue.strong_count() > 0);
    let queue = Arc::default();
    queues.insert(directory, Arc::downgrade(&queue));
    queue
}

/// Takes the lock of a volume, as `operation` says.
pub(crate) fn open_lock(root: &Path, name: &str, operation: FlockOperation) -> Result<File> {
    let locks = root.join(".locks");
    make_directories(&locks)?;
    let path = locks.join(name);
    let failed = |error| Error::io("lock", &path, error);
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}
