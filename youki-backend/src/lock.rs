//! One lock per container, held by whoever creates, starts or removes it; freed by the kernel when the holder dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A held lock. Its descriptor is close-on-exec, so that no supervisor inherits it.
#[derive(Debug)]
pub(crate) struct ContainerLock {
    _file: File,
    path: PathBuf,
}

impl ContainerLock {
    /// Waits for the lock at `path`. Cancel-safe: a lock that is no longer waited for is given back.
    pub async fn acquire(path: PathBuf) -> Result<Self> {
        if let Some(lock) = Self::try_acquire(&path)? {
            return Ok(lock);
        }
        tokio::task::spawn_blocking(move || {
            loop {
                let file = open(&path)?;
                file.lock().map_err(Error::io("locking", &path))?;
                if let Some(lock) = Self::confirm(file, &path) {
                    return Ok(lock);
                }
            }
        })
        .await
        .map_err(Error::ThreadLost)?
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
        (ours.ino() == current.ino() && ours.dev() == current.dev())
            .then(|| Self { _file: file, path: path.to_owned() })
    }

    /// Removes the file with the container, while the lock is held.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
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
}
