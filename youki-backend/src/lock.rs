//! One lock per container, held by whoever creates, starts or removes it; freed by the kernel when the holder dies.
//!
//! Whoever has it needs the runtime's threads for its work. So nobody waits in one of these: tasks of one process queue up
//! before they ask for the file, and who then waits for somebody else does so in a thread of its own.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::driven;
use crate::error::{Error, Result};

/// After so long it is said what is waited for.
const NOTICE: Duration = Duration::from_secs(3);

/// A held lock. Its descriptor is close-on-exec, so that no supervisor inherits it.
#[derive(Debug)]
pub(crate) struct ContainerLock {
    // Order matters: the file's lock is freed before the next task of this process is let in.
    _file: File,
    /// Of one that was waited for.
    _turn: Option<OwnedMutexGuard<()>>,
    path: PathBuf,
}

impl ContainerLock {
    /// Waits for the lock at `path`. Cancel-safe: a lock that is no longer waited for is given back. For tasks of our own:
    /// a future that nobody polls keeps it from everybody ([`driven`]).
    pub async fn acquire(path: PathBuf) -> Result<Self> {
        let turn = turn(&path).await;
        if let Some(lock) = Self::try_acquire(&path)? {
            return Ok(Self { _turn: Some(turn), ..lock });
        }
        let (answer, locked) = oneshot::channel();
        let file = path.clone();
        let waiting = std::thread::Builder::new().name("berth-lock".to_owned()).spawn(move || {
            let locked = Self::wait(&file).map(|lock| Self { _turn: Some(turn), ..lock });
            // Nobody waits any more if the future was dropped.
            let _ = answer.send(locked);
        });
        let failed = |error| Error::io("locking", &path)(error);
        waiting.map_err(failed)?;
        let mut locked = std::pin::pin!(locked);
        let locked = match tokio::time::timeout(NOTICE, &mut locked).await {
            Ok(locked) => locked,
            Err(_) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                tracing::warn!("waiting for container {name}: {} works with it", holder(&path));
                locked.await
            }
        };
        locked.unwrap_or_else(|_| Err(failed(io::Error::other("its thread broke off"))))
    }

    /// Returns once whoever has the lock at `path` is done with it. Cancel-safe.
    pub async fn passed(path: PathBuf) -> Result<()> {
        driven::while_waited_for(async move { Self::acquire(path).await.map(drop) }).await
    }

    /// Waits for whoever has the lock at `path`; blocking.
    fn wait(path: &Path) -> Result<Self> {
        loop {
            let file = open(path)?;
            lock_file(&file).map_err(Error::io("locking", path))?;
            if let Some(lock) = Self::confirm(file, path) {
                return Ok(lock);
            }
        }
    }

    /// The lock, or `None` if somebody else has it.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        loop {
            let file = open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(Error::io("locking", path)(error)),
            }
            if let Some(lock) = Self::confirm(file, path) {
                return Ok(Some(lock));
            }
        }
    }

    /// A file that was removed while it was waited for locks nothing any more.
    fn confirm(file: File, path: &Path) -> Option<Self> {
        let (ours, current) = (file.metadata().ok()?, fs::metadata(path).ok()?);
        (ours.ino() == current.ino() && ours.dev() == current.dev()).then(|| Self {
            _file: file,
            _turn: None,
            path: path.to_owned(),
        })
    }

    /// Removes the file with the container, while the lock is held.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Waits until the tasks of this process that came before are done with what is at `path`. Cancel-safe.
pub(crate) async fn turn(path: &Path) -> OwnedMutexGuard<()> {
    queue(path).lock_owned().await
}

/// The same for a thread of its own; blocking.
pub(crate) fn blocking_turn(path: &Path) -> OwnedMutexGuard<()> {
    queue(path).blocking_lock_owned()
}

/// Where tasks of this process wait for the lock at `path`.
fn queue(path: &Path) -> Arc<tokio::sync::Mutex<()>> {
    static QUEUES: Mutex<BTreeMap<PathBuf, Weak<tokio::sync::Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(queue) = queues.get(path).and_then(Weak::upgrade) {
        return queue;
    }
    queues.retain(|_, queue| queue.strong_count() > 0);
    let queue = Arc::default();
    queues.insert(path.to_owned(), Arc::downgrade(&queue));
    queue
}

/// Waits for the lock of `file`, also where signals come meanwhile; blocking.
pub(crate) fn lock_file(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            locked => return locked,
        }
    }
}

/// Who has the lock of the file at `path`, as `process 12 (berth)`.
pub(crate) fn holder(path: &Path) -> String {
    let of_file = |locks: String| {
        let inode = fs::metadata(path).ok()?.ino().to_string();
        // `1: FLOCK  ADVISORY  WRITE 12 fe:00:345 0 EOF`: by proc_locks(5). Who waits has an arrow before its kind.
        locks.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_it = fields.get(1) == Some(&"FLOCK") && fields.get(5)?.rsplit(':').next() == Some(&inode);
            is_it.then(|| fields.get(4)?.parse::<i32>().ok())?
        })
    };
    let described = fs::read_to_string("/proc/locks").ok().and_then(of_file).and_then(|pid| {
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat()).ok()?;
        let stopped = if matches!(stat.state, 'T' | 't') { ", which is stopped," } else { "" };
        Some(format!("process {pid} ({}){stopped}", stat.comm))
    });
    described.unwrap_or_else(|| "somebody else".to_owned())
}

fn open(path: &Path) -> Result<File> {
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path);
    match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(dir).map_err(Error::io("creating", dir))?;
            open()
        }
        other => other,
    }
    .map_err(Error::io("opening", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_at_a_time_also_when_the_file_is_removed_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let first = ContainerLock::try_acquire(&path).unwrap().unwrap();
        assert!(ContainerLock::try_acquire(&path).unwrap().is_none());
        let waiting = tokio::spawn(ContainerLock::acquire(path.clone()));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        first.remove();
        let second = waiting.await.unwrap().unwrap();
        assert!(path.exists());
        assert!(ContainerLock::try_acquire(&path).unwrap().is_none());
        drop(second);
        assert!(ContainerLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn who_waits_leaves_the_runtimes_threads_to_who_works() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |number: usize| dir.path().join((number % 4).to_string());
        let worked = runtime.block_on(async {
            // As another process has them.
            let held: Vec<_> =
                (0..4).map(|number| ContainerLock::try_acquire(&path(number)).unwrap().unwrap()).collect();
            let mut waiting: Vec<_> = (0..16).map(|number| Box::pin(ContainerLock::acquire(path(number)))).collect();
            for waiter in &mut waiting {
                assert!(futures_util::poll!(waiter).is_pending());
            }
            let work = tokio::task::spawn_blocking(|| ());
            let worked = tokio::time::timeout(std::time::Duration::from_secs(30), work).await;
            drop(held);
            if worked.is_ok() {
                for waiter in waiting {
                    drop(waiter.await.unwrap());
                }
            }
            worked
        });
        // Its threads may hang.
        runtime.shutdown_background();
        worked.unwrap().unwrap();
    }
}
