//! Removal of references, and of what nothing refers to any more. The rule stands at the top of `store.rs`.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::dropped::{self, Spare};
use crate::error::{Error, Result};
use crate::image::Parts;
use crate::index::{Entry, Index, names_content, names_id};
use crate::locks::StoreHold;
use crate::place::Place;
use crate::reserve;
use crate::store::{Inner, Paths, TmpDir};

/// How long a removal waits for creates, which are short, before it leaves content to whoever holds the store.
const PATIENCE: Duration = Duration::from_millis(200);
/// Noted as owed by a sweep that could remove nothing, since an image cannot be read.
const IN_VAIN: &str = "in vain";
/// How long such a one is not tried again: it looks at all images and all containers.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What a container needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    /// Its name.
    pub user: String,
    /// The reference it was created from.
    pub reference: String,
    /// Digest of the manifest of its image.
    pub digest: String,
    /// Lower directories it is mounted from; they stay whatever happens to the image.
    pub layers: Vec<PathBuf>,
}

/// Tells what containers need. Asked while nothing can come to it: a list made before would miss a container that was
/// created meanwhile.
pub type Users = dyn Fn() -> io::Result<Vec<InUse>> + Send + Sync;

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// References, digests of blobs, names of layers.
    pub deleted: Vec<String>,
    /// Bytes on disk that were freed.
    pub space_reclaimed: u64,
}

/// What the name that is to be removed means.
struct Meant {
    /// The entry that it leads to.
    entry: Entry,
    goes: Vec<Entry>,
    /// Other names of the image.
    stays: Vec<Entry>,
    by_id: bool,
}

impl Meant {
    fn by(name: &str, index: &Index) -> Result<Self> {
        let entry = index.find(name)?.cloned().ok_or_else(|| Error::NotPresent(name.to_owned()))?;
        let (all, by_id) = (names_content(name, &entry), names_id(name, &entry));
        let of_image = index.entries().iter().filter(|e| e.digest == entry.digest || (by_id && e.id == entry.id));
        let (goes, stays) = of_image.cloned().partition(|e| all || e.reference() == entry.reference());
        Ok(Self { entry, goes, stays, by_id })
    }

    /// Whether it may go without force.
    fn may_go(&self, name: &str, in_use: &[InUse]) -> Result<()> {
        let all = || self.goes.iter().chain(&self.stays);
        let repositories: BTreeSet<String> = all().filter_map(Entry::repository).collect();
        // As docker: who types an id may know one of its names alone.
        if self.by_id && repositories.len() > 1 {
            let names = all().map(|e| e.reference().to_owned()).collect();
            return Err(Error::SeveralNames { id: name.to_owned(), names });
        }
        // Also where other names stay: a container would be left with an image it does not know by its own name.
        let is_last = self.stays.is_empty();
        let uses = |user: &&InUse| {
            all().any(|e| e.digest == user.digest) && (is_last || user.reference == self.entry.reference())
        };
        let users: Vec<String> = in_use.iter().filter(uses).map(|user| user.user.clone()).collect();
        if users.is_empty() { Ok(()) } else { Err(Error::InUse { digest: self.entry.digest.clone(), users }) }
    }

    fn take_out(&self, index: &mut Index) {
        let goes =
            |e: &Entry| self.goes.iter().any(|gone| (&gone.digest, gone.reference()) == (&e.digest, e.reference()));
        index.retain(|e| !goes(e));
    }

    /// Undoes [`take_out`](Self::take_out), but for references that came again meanwhile.
    fn put_back(self, index: &mut Index) {
        for entry in self.goes {
            let is_it = |e: &Entry| match entry.reference() {
                "" => e.digest == entry.digest,
                reference => e.reference() == reference,
            };
            if !index.entries().iter().any(is_it) {
                index.put(entry);
            }
        }
    }
}

/// Removes by reference, digest or id, unless its caller does not wait any more when it could; blocking.
pub(crate) fn remove(
    store: &Arc<Inner>,
    name: &str,
    force: bool,
    users: &Users,
    waits: &dyn Fn() -> bool,
) -> Result<Removed> {
    // While it is held nobody comes to use an image.
    let hold = StoreHold::exclusive_within(&store.paths.store_lock, PATIENCE)?;
    let may_go = |meant: &Meant, in_use: &[InUse]| if force { Ok(()) } else { meant.may_go(name, in_use) };
    let in_use = users().map_err(Error::UsersUnknown)?;
    let meant = Index::shrink(&store.paths, |index| {
        // Who gave it up may have given the name to another image since.
        if !waits() {
            return Err(Error::Interrupted("a removal of an image"));
        }
        let meant = Meant::by(name, index)?;
        may_go(&meant, &in_use)?;
        meant.take_out(index);
        Ok(meant)
    })?;
    let deleted = meant.goes.iter().map(|e| e.reference().to_owned()).collect();
    let mut removed = Removed { deleted, space_reclaimed: 0 };
    if let Some(hold) = hold {
        sweep_held(store, hold, in_use, users, &mut removed)?;
        return Ok(removed);
    }
    // A create that found it before it was taken out may have come to its end by now.
    let checked = users().map_err(Error::UsersUnknown).and_then(|in_use| may_go(&meant, &in_use));
    if let Err(error) = checked {
        Index::shrink(&store.paths, |index| {
            meant.put_back(index);
            Ok(())
        })?;
        return Err(error);
    }
    tracing::info!(image = name, "the store is in use: content goes when it is not");
    owe(&store.paths)?;
    // Whoever looked for that just before it was there holds the store no longer.
    sweep_free(store, users, &mut removed)?;
    Ok(removed)
}

/// Removes the content that a removal had to leave because the store was in use, if it is not any more; blocking.
pub(crate) fn sweep_owed(store: &Arc<Inner>, users: &Users) -> Result<()> {
    sweep_free(store, users, &mut Removed::default())
}

/// Whether [`sweep_owed`] has something to do; blocking, for a look at one file.
pub(crate) fn is_owed(paths: &Paths) -> bool {
    let Ok(noted) = fs::read(&paths.sweep_owed) else { return false };
    let age = fs::metadata(&paths.sweep_owed).and_then(|noted| noted.modified()).map(|noted| noted.elapsed());
    // A clock that was set back tells nothing.
    noted != IN_VAIN.as_bytes() || !matches!(age, Ok(Ok(age)) if age < TRY_AGAIN)
}

/// Notes that there may be content that nothing refers to; blocking.
pub(crate) fn owe(paths: &Paths) -> Result<()> {
    fs::write(&paths.sweep_owed, "").map_err(|e| Error::io("writing", &paths.sweep_owed, e))
}

/// Sweeps if nobody holds the store.
fn sweep_free(store: &Inner, users: &Users, removed: &mut Removed) -> Result<()> {
    match StoreHold::try_exclusive(&store.paths.store_lock)? {
        Some(hold) => sweep_held(store, hold, users().map_err(Error::UsersUnknown)?, users, removed),
        None => Ok(()),
    }
}

/// Sweeps, lets go of the store, and does it again for those who were told meanwhile that it is in use.
fn sweep_held(
    store: &Inner,
    mut hold: StoreHold,
    mut in_use: Vec<InUse>,
    users: &Users,
    removed: &mut Removed,
) -> Result<()> {
    let owed = &store.paths.sweep_owed;
    loop {
        // What is owed from here on may come after the index is read.
        match fs::remove_file(owed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", owed, error)),
            _ => {}
        }
        let swept = sweep(store, &in_use, removed).inspect_err(|_| {
            let _ = owe(&store.paths);
        })?;
        let Swept::All(trash) = swept else {
            // It stays owed until the image that cannot be read is pulled again.
            return fs::write(owed, IN_VAIN).map_err(|e| Error::io("writing", owed, e));
        };
        drop(hold);
        if let Some(trash) = trash {
            removed.space_reclaimed += listed(trash.path())?.iter().map(|(_, tree)| disk_usage(tree)).sum::<u64>();
            trash.remove_now();
        }
        reserve::take(&store.paths);
        if !owed.exists() {
            return Ok(());
        }
        match StoreHold::try_exclusive(&store.paths.store_lock)? {
            Some(again) => hold = again,
            None => return Ok(()),
        }
        in_use = users().map_err(Error::UsersUnknown)?;
    }
}

/// Removes all that is not in use; blocking.
pub(crate) fn prune(store: &Arc<Inner>, users: &Users, waits: &dyn Fn() -> bool) -> Result<Removed> {
    let hold = match StoreHold::try_exclusive(&store.paths.store_lock)? {
        Some(hold) => hold,
        None => {
            tracing::warn!("waiting for pulls and creates that are under way");
            StoreHold::exclusive(&store.paths.store_lock)?
        }
    };
    // What was pulled since is nothing that was meant.
    if !waits() {
        return Err(Error::Interrupted("a prune"));
    }
    let in_use = users().map_err(Error::UsersUnknown)?;
    let mut removed = Removed::default();
    Index::shrink(&store.paths, |index| {
        index.retain(|entry| {
            let stays = in_use.iter().any(|user| user.digest == entry.digest);
            if !stays {
                removed.deleted.push(entry.reference().to_owned());
            }
            stays
        });
        Ok(())
    })?;
    sweep_held(store, hold, in_use, users, &mut removed)?;
    Ok(removed)
}

/// What a sweep has come to.
enum Swept {
    /// What is to be deleted once the store is free again, if anything is.
    All(Option<Arc<TmpDir>>),
    /// An image cannot be read: nothing was removed.
    Nothing,
}

/// Removes blobs and layers that no entry and no container needs. The caller holds the store exclusively, and deletes what
/// is returned when it does no longer: a large tree takes its time, and creates wait for the store.
fn sweep(store: &Inner, in_use: &[InUse], removed: &mut Removed) -> Result<Swept> {
    let paths = &store.paths;
    let mut blobs: BTreeSet<String> = BTreeSet::new();
    let mut places: BTreeSet<String> = BTreeSet::new();
    let mut spare = Spare::default();
    for entry in Index::read(paths)?.entries() {
        blobs.extend([entry.digest.clone(), entry.id.clone()]);
        blobs.extend(entry.chosen_from().map(str::to_owned));
        match Parts::read(paths, &entry.digest)? {
            Some(parts) => {
                blobs.extend(parts.manifest.layers.iter().map(|layer| layer.digest.clone()));
                if store.config.drop_blobs {
                    spare.add(store, &parts)?;
                }
                places.extend(parts.ids.iter().flat_map(|id| [id.diff.name(), id.chain.name()]));
            }
            None => {
                // Not knowing what an image needs, nothing that it might need may go.
                tracing::warn!(
                    image = entry.reference(),
                    "an image cannot be read: nothing is removed until it is pulled again"
                );
                return Ok(Swept::Nothing);
            }
        }
    }
    // A container's image stays whole when its name has become another's: it is unpacked anew after a power cut.
    let in_use_by_name: BTreeSet<&String> = in_use.iter().map(|user| &user.digest).collect();
    for digest in in_use_by_name {
        if !blobs.contains(digest)
            && let Some(parts) = Parts::read(paths, digest)?
        {
            blobs.extend([digest.clone(), parts.manifest.config.digest.clone()]);
            blobs.extend(parts.manifest.layers.iter().map(|layer| layer.digest.clone()));
            places.extend(parts.ids.iter().flat_map(|id| [id.diff.name(), id.chain.name()]));
        }
    }
    let pinned: HashSet<&Path> = in_use.iter().flat_map(|user| &user.layers).map(PathBuf::as_path).collect();
    for (name, path) in listed(&paths.blobs)? {
        let digest = format!("sha256:{name}");
        if !blobs.contains(&digest) {
            let size = fs::metadata(&path).map_or(0, |metadata| metadata.blocks() * 512);
            fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
            removed.space_reclaimed += size;
            removed.deleted.push(digest);
        }
    }
    for digest in spare.digests() {
        removed.space_reclaimed += dropped::drop_one(paths, digest)?;
    }
    for (name, path) in listed(&paths.dropped)? {
        if !blobs.contains(&format!("sha256:{name}")) {
            fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
        }
    }
    let mut trash = None;
    for place in places_on_disk(paths)? {
        let path = place.path(paths);
        let root = paths.roots.join(place.name());
        if !places.contains(&place.name()) && !pinned.contains(path.as_path()) && !pinned.contains(root.as_path()) {
            // On a full disk there may be none.
            trash = trash.or_else(|| TmpDir::create(paths).ok());
            let gone = place.discard(paths, trash.as_deref())?;
            if trash.is_none() {
                removed.space_reclaimed += disk_usage(&gone);
                TmpDir::remove(&gone);
            }
            removed.deleted.push(place.name());
        }
    }
    // What was said of layers that never came, or was half-written.
    for (name, path) in listed(&paths.about)? {
        let place = name.strip_suffix(".json").and_then(Place::parse);
        if !place.is_some_and(|place| place.path(paths).is_dir()) {
            fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
        }
    }
    Index::remove_left_over(paths)?;
    // Nobody holds or waits for these while the store is held exclusively.
    for (name, path) in listed(&paths.locks)? {
        if name.starts_with("diff-") || name.starts_with("chain-") {
            fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
        }
    }
    Ok(Swept::All(trash))
}

fn places_on_disk(paths: &Paths) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for kind in ["diff", "chain"] {
        for (name, _) in listed(&paths.layers.join(kind))? {
            places.extend(Place::parse(&format!("{kind}-{name}")));
        }
    }
    Ok(places)
}

fn listed(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let error = |e| Error::io("listing", directory, e);
    fs::read_dir(directory)
        .map_err(error)?
        .map(|entry| entry.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).map_err(error))
        .collect()
}

/// Bytes that a tree takes on disk; what cannot be read counts nothing.
fn disk_usage(root: &Path) -> u64 {
    let mut linked: HashSet<u64> = HashSet::new();
    let mut todo = vec![root.to_path_buf()];
    let mut bytes = 0;
    while let Some(path) = todo.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            let children = fs::read_dir(&path).into_iter().flatten().filter_map(std::result::Result::ok);
            todo.extend(children.map(|entry| entry.path()));
        }
        if metadata.is_dir() || metadata.nlink() == 1 || linked.insert(metadata.ino()) {
            bytes += metadata.blocks() * 512;
        }
    }
    bytes
}

#[cfg(test)]
#[path = "gc_tests.rs"]
mod tests;
