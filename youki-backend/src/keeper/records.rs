//! What containers have on record reaches the disk within a second of their start and end, so that a power cut costs no
//! outcome that was told. One batch for all of them, and off everybody's way.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use tokio::time::sleep;

use super::PAUSE_AFTER_ERROR;
use crate::container::Container;
use crate::dir_watch::{Changed, DirWatch};
use crate::error::{Error, Result};
use crate::runtime::Inner;

/// From the first change to the sync: what changes meanwhile goes with it.
const PAUSE: Duration = Duration::from_millis(500);

/// Syncs for as long as it is polled.
pub(super) async fn sync(weak: Weak<Inner>) {
    while let Err(error) = sync_changed(&weak).await {
        tracing::error!(error = error.chain(), "records are not synced for a minute");
        sleep(PAUSE_AFTER_ERROR).await;
    }
}

/// Told by the supervisors' sockets, which come with an attempt and go with its end.
async fn sync_changed(weak: &Weak<Inner>) -> Result<()> {
    let Some(inner) = weak.upgrade() else { return Ok(()) };
    let watch = DirWatch::with_removals(&inner.layout.sockets())?;
    drop(inner);
    loop {
        let changed = match watch.names().await? {
            Changed::Names(names) => Some(names.into_iter().collect::<HashSet<_>>()),
            Changed::Any => None,
            Changed::Gone => return Ok(()),
        };
        sleep(PAUSE).await;
        let Some(inner) = weak.upgrade() else { return Ok(()) };
        let synced = tokio::task::spawn_blocking(move || {
            let ids = inner.container_ids()?.into_iter();
            let changed = ids.filter(|id| {
                let socket = inner.layout.container(id).socket;
                let name = socket.file_name().and_then(|name| name.to_str());
                changed.as_ref().is_none_or(|changed| name.is_some_and(|name| changed.contains(name)))
            });
            sync_all(&changed.filter_map(|id| inner.container(&id).ok()).collect::<Vec<_>>())
        });
        match synced.await.map_err(Error::ThreadLost).and_then(|synced| synced) {
            Ok(()) => {}
            Err(error) => tracing::warn!(error = error.chain(), "a power cut now would cost outcomes"),
        }
    }
}

/// Writing begins for all before any is waited for: they share what the filesystem commits then.
fn sync_all(containers: &[Container]) -> Result<()> {
    let mut files = Vec::new();
    for container in containers {
        let paths = &container.paths;
        for path in [&paths.dir, &paths.record(), &paths.exit_record(), &paths.attempts()] {
            if let Some(file) = open(path).map_err(Error::io("opening", path))? {
                files.push((path.clone(), file));
            }
        }
    }
    for (_, file) in &files {
        // SAFETY: takes integers. Of a directory, or where a filesystem knows no such thing, the sync does it all.
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }
    files.iter().try_for_each(|(path, file)| file.sync_all().map_err(Error::io("syncing", path)))
}

/// `None` where it is not there: it is not needed, or has been removed.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}
