//! What containers have on record reaches the disk within a second of their start and end, so that a power cut costs no
//! outcome that was told. One batch for all of them, and off everybody's way.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use runtime_core::ContainerId;
use tokio::time::{Instant, sleep, sleep_until};

use super::PAUSE_AFTER_ERROR;
use crate::container::Container;
use crate::dir_watch::{Changed, DirWatch};
use crate::error::{Error, Result};
use crate::layout::ContainerPaths;
use crate::lock::ContainerLock;
use crate::runtime::Inner;

/// From the first change to the sync: what changes meanwhile goes with it.
const PAUSE: Duration = Duration::from_millis(500);
/// Containers whose files are open at a time.
const AT_ONCE: usize = 32;

/// Syncs for as long as it is polled.
pub(super) async fn sync(weak: Weak<Inner>) {
    while let Err(error) = sync_changed(&weak).await {
        tracing::error!(error = error.chain(), "records are not synced for a minute");
        sleep(PAUSE_AFTER_ERROR).await;
    }
}

/// Told by the supervisors' sockets, which come with the first attempt, are touched at each end and begin of one that follows,
/// and go with the last.
async fn sync_changed(weak: &Weak<Inner>) -> Result<()> {
    let Some(inner) = weak.upgrade() else { return Ok(()) };
    let watch = DirWatch::with_touches(&inner.layout.sockets())?;
    drop(inner);
    // First what changed while nobody synced.
    let (mut all, mut names, mut again) = (true, HashSet::new(), None);
    loop {
        let left = all || !names.is_empty();
        tokio::select! {
            changed = watch.names() => match changed? {
                Changed::Names(more) => names.extend(more),
                Changed::Any => all = true,
                Changed::Gone => return Ok(()),
            },
            () = std::future::ready(()), if left => {}
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => (all, again) = (true, None),
        }
        sleep(PAUSE).await;
        let Some(inner) = weak.upgrade() else { return Ok(()) };
        let (every, changed) = (std::mem::take(&mut all), std::mem::take(&mut names));
        let synced = tokio::task::spawn_blocking(move || {
            let ids =
                inner.container_ids()?.into_iter().filter(|id| every || changed.contains(&socket_name(&inner, id)));
            let containers: Vec<_> = ids.filter_map(|id| inner.container(&id).ok()).collect();
            let mut failed = false;
            for some in containers.chunks(AT_ONCE) {
                if let Err(error) = sync_some(some) {
                    tracing::warn!(
                        error = error.chain(),
                        "a power cut now would cost outcomes; tried again in a minute"
                    );
                    failed = true;
                }
            }
            // What says that one is created comes later than its socket.
            let unfinished =
                containers.iter().filter(|one| !one.paths.created().exists() && is_being_created(&one.paths));
            let unfinished: Vec<_> = unfinished.map(|container| socket_name(&inner, &container.record.id)).collect();
            Ok((unfinished, failed))
        });
        let (unfinished, failed) = synced.await.map_err(Error::ThreadLost).and_then(|synced| synced)?;
        names.extend(unfinished);
        again = again.or(failed.then(|| Instant::now() + PAUSE_AFTER_ERROR));
    }
}

/// Whoever creates a container has its lock. Where nobody has, no mark will come, and nobody needs the lock's file.
fn is_being_created(paths: &ContainerPaths) -> bool {
    match ContainerLock::try_acquire(&paths.lock) {
        Ok(Some(lock)) => {
            lock.remove();
            false
        }
        Ok(None) => true,
        Err(_) => false,
    }
}

fn socket_name(inner: &Inner, id: &ContainerId) -> String {
    let socket = inner.layout.container(id).socket;
    socket.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writing begins for all before any is waited for: they share what the filesystem commits then. One that cannot be synced
/// does not keep it from the rest.
fn sync_some(containers: &[Container]) -> Result<()> {
    let mut outcome = Ok(());
    let mut files = Vec::new();
    for container in containers {
        let paths = &container.paths;
        for path in [&paths.dir, &paths.record(), &paths.exit_record(), &paths.attempts()] {
            match open(path) {
                Ok(file) => files.extend(file.map(|file| (path.clone(), file))),
                Err(error) => outcome = Err(Error::io("opening", path)(error)),
            }
        }
    }
    for (_, file) in &files {
        // SAFETY: takes integers. Of a directory, or where a filesystem knows no such thing, the sync does it all.
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }
    for (path, file) in &files {
        if let Err(error) = file.sync_all() {
            outcome = Err(Error::io("syncing", path)(error));
        }
    }
    outcome
}

/// `None` where it is not there: it is not needed, or has been removed.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}
