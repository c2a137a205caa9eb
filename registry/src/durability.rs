//! What survives a power cut: layers unpacked in a former boot that no sync has covered are not trusted.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::error::{Error, Result};
use crate::locks::lock_file;
use crate::place::Place;
use crate::store::{Inner, TmpDir, read_small};

/// After so long the kernel has written what a pull wrote, as a rule.
const OLD: Duration = Duration::from_secs(60);
/// How the marks of what is no layer begin.
const INDEX: &str = "index";
/// How long an open waits for a sync.
const PATIENCE: Duration = Duration::from_millis(500);

/// This boot's identity.
pub(crate) fn boot_id() -> Result<String> {
    let text = read_small(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_owned())
}

/// Notes that a layer is about to appear which no sync has covered; blocking.
pub(crate) fn mark(store: &Inner, place: &Place) -> Result<()> {
    mark_as(store, &place.name())
}

/// Under a name of its own: the sync of another, begun before, does not cover this, and takes that one's mark away.
fn mark_as(store: &Inner, what: &str) -> Result<()> {
    let directory = store.paths.unsynced.join(&store.boot_id);
    fs::create_dir_all(&directory).map_err(|e| Error::io("making the directory", &directory, e))?;
    let random = read_small(Path::new("/proc/sys/kernel/random/uuid"))?;
    let path = directory.join(format!("{what}.{}", random.trim()));
    fs::write(&path, b"").map_err(|e| Error::io("writing", &path, e))
}

/// The layer that a mark is for.
fn place_of(mark: &fs::DirEntry) -> Option<Place> {
    let name = mark.file_name();
    let name = name.to_str()?;
    // One of an older Berth has no name of its own.
    Place::parse(name.split_once('.').map_or(name, |(place, _)| place))
}

/// The layers that no sync has covered yet; blocking.
pub(crate) fn unsynced(store: &Inner) -> Result<HashSet<Place>> {
    let directory = store.paths.unsynced.join(&store.boot_id);
    let error = |e| Error::io("listing", &directory, e);
    match fs::read_dir(&directory) {
        Ok(marks) => {
            marks.map(|mark| mark.map(|mark| place_of(&mark)).map_err(error)).filter_map(Result::transpose).collect()
        }
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(other) => Err(error(other)),
    }
}

/// Removes what a former boot left unsynced, and has what this boot left unsynced (another process, gone) synced now.
/// Blocking.
pub(crate) fn recover(store: &Inner) -> Result<()> {
    let lock = match lock_file(&store.paths.locks.join("recovery"), FlockOperation::LockExclusive) {
        // A disk that has failed is mounted read-only. What runs there must still be stopped, and its log be read.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            tracing::warn!(root = %store.paths.layers.display(), "it is read-only: nothing can be pulled or created");
            return Ok(());
        }
        lock => lock?,
    };
    let directories =
        fs::read_dir(&store.paths.unsynced).map_err(|e| Error::io("listing", &store.paths.unsynced, e))?;
    for directory in directories.filter_map(std::result::Result::ok) {
        if directory.file_name().as_encoded_bytes() == store.boot_id.as_bytes() {
            continue;
        }
        let path = directory.path();
        let doubtful = fs::read_dir(&path).map_err(|e| Error::io("listing", &path, e))?;
        for mark in doubtful.filter_map(std::result::Result::ok) {
            if let Some(place) = place_of(&mark) {
                tracing::info!(layer = %place.name(), "a layer that no sync had covered is unpacked again when needed");
                TmpDir::remove(&place.discard(&store.paths, None)?);
            }
        }
        fs::remove_dir_all(&path).map_err(|e| Error::io("removing", &path, e))?;
    }
    // Others need not wait for what follows.
    drop(lock);
    // Commands end before a sync in the background has: what is that old is on the disk by now, so a sync is short.
    let age = |mark: &PathBuf| Some(fs::metadata(mark).ok()?.modified().ok()?.elapsed().unwrap_or_default());
    let marks = marks(store);
    let is_old = marks.iter().filter_map(age).any(|age| age > OLD);
    if !marks.is_empty() {
        let synced = start_sync(store, marks);
        if is_old {
            // It goes on if it takes longer.
            let _ = synced.recv_timeout(PATIENCE);
        }
    }
    Ok(())
}

/// Syncs in the background what was written: index, manifests and configurations, and what this boot left unsynced. A
/// command may end before that has begun: then the next open finds its mark.
pub(crate) fn sync_in_background(store: &Arc<Inner>) {
    if let Err(error) = mark_as(store, INDEX) {
        tracing::debug!(%error, "nobody but this process syncs what is entered");
    }
    start_sync(store, marks(store));
}

/// Syncs now what this boot left unsynced, if there is anything; blocking. What cannot be synced stays marked.
pub(crate) fn sync(store: &Inner) {
    let marks = marks(store);
    if !marks.is_empty() {
        sync_marks(&store.paths.layers, marks);
    }
}

/// The receiver fails when it has ended.
fn start_sync(store: &Inner, marks: Vec<PathBuf>) -> Receiver<()> {
    let layers = store.paths.layers.clone();
    let (until_ended, ended) = std::sync::mpsc::channel();
    let sync = move || {
        let _until_ended = until_ended;
        sync_marks(&layers, marks);
    };
    if let Err(error) = std::thread::Builder::new().name("berth-sync".into()).spawn(sync) {
        tracing::warn!(%error, "no thread to sync layers: they are unpacked again after a reboot");
    }
    ended
}

/// What stands here unsynced; nothing if that cannot be told. A mark comes before its layer: a sync now would not cover it.
fn marks(store: &Inner) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.paths.unsynced.join(&store.boot_id)).into_iter().flatten();
    let stands = |mark: &fs::DirEntry| {
        mark.file_name().as_encoded_bytes().starts_with(INDEX.as_bytes())
            || place_of(mark).is_some_and(|place| place.path(&store.paths).is_dir())
    };
    entries.filter_map(std::result::Result::ok).filter(stands).map(|entry| entry.path()).collect()
}

/// The marks were listed before: what they name was complete when the sync begins.
fn sync_marks(layers: &Path, marks: Vec<PathBuf>) {
    let synced = fs::File::open(layers).and_then(|layers| rustix::fs::syncfs(layers).map_err(Into::into));
    match synced {
        Ok(()) => {
            for mark in marks {
                if let Err(error) = fs::remove_file(&mark) {
                    tracing::debug!(path = %mark.display(), %error, "a mark is gone already");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "layers could not be synced: they are unpacked again after a reboot"),
    }
}

#[cfg(test)]
#[path = "durability_tests.rs"]
mod tests;
