//! The store: what lies where, and the handle to it.
//!
//! ```text
//! <root>/images/                      an OCI image layout: oci-layout, index.json, blobs/sha256/<hex>
//!     index.json                      one entry for each reference; annotations:
//!                                       org.opencontainers.image.ref.name   the full reference
//!                                       dev.berth.image.index               digest of the index it was chosen from
//! <root>/layers/
//!     diff/<hex of diff ID>/          an unpacked layer that is the same over any layers below
//!     chain/<hex of chain ID>/        any other: what it takes from below is in it
//!     root/<kind>-<hex>/              an empty directory with the attributes of that layer's root, for images whose
//!                                       topmost layer does not list its root
//!     about/<kind>-<hex>.json         what a layer says of itself; written before the layer appears
//!     dropped/<hex>                   the blob of a layer was dropped, since it is unpacked (`drop_blobs`)
//!     unsynced/<boot id>/<kind>-<hex>.<random>
//!                                     the layer was unpacked in that boot, and no syncfs has covered it yet; `index` in
//!                                       the place of a layer: something was entered
//!     locks/<name>                    flock files: index, chain-<hex>, diff-<hex>, recovery
//!     sweep-owed                      a removal left content behind, because somebody held the store
//!     reserve                         room that is given up where a removal could not be written down without
//!     store.lock                      shared: pulls and creates; exclusive: removal of content
//!     store.gate                      a flock file that who shares store.lock passes: shut for moments by who waits for it
//!     tmp-<random>/                   in the making; locked by its owner, removed at open if the owner is dead
//! ```
//!
//! Blobs and layers appear by rename and are never changed. In the way of a pull the index alone is synced, before it is
//! renamed: blobs are verified whenever they are read, and a layer that is still named under another boot's `unsynced/` is
//! unpacked again.
//!
//! **Collection.** Roots are the entries of index.json. An entry keeps its manifest, its index, its config and its layer
//! blobs; a layer directory is kept by every entry whose diff or chain IDs name it, and by the layers of containers that
//! the caller names. With `drop_blobs` no entry keeps the blob of a layer that stands (`dropped.rs`). Everything else,
//! and what processes that were killed had half-written (`<name>.tmp-<random>`), goes under the exclusive store lock; a
//! layer by rename to a `tmp-` directory first, which needs no room on the disk.

use std::cell::Cell;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt as _;
use runtime_core::HistoryStep;
use rustix::fs::{FlockOperation, IFlags};

use crate::client::HttpClients;
use crate::config::StoreConfig;
use crate::durability;
use crate::error::{Error, Result};
use crate::gc::{self, Removed, Users};
use crate::history;
use crate::image::{self, Image, StoredImage};
use crate::index::Index;
use crate::layer::dir;
use crate::load;
use crate::locks::{ObjectLocks, StoreHold};
use crate::pull::{self, PullOptions};
use crate::push::{self, PushOptions};
use crate::reference::Reference;
use crate::reserve;
use crate::save;
use crate::verify::{self, Verified};

/// Layers that are fetched or unpacked at once by all pulls of a process: each takes two threads and some MiB.
const LAYERS_AT_ONCE: usize = 8;

/// A local image store. Cheap to clone; all clones and all processes on one root work together.
#[derive(Debug, Clone)]
pub struct ImageStore(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) paths: Paths,
    pub(crate) clients: HttpClients,
    pub(crate) locks: ObjectLocks,
    pub(crate) slots: tokio::sync::Semaphore,
    pub(crate) boot_id: String,
}

impl ImageStore {
    /// Opens the store beneath `config.root`, making what is missing, and cleans up after processes that died and after
    /// a power cut. Blocking; short unless there is much to clean up.
    pub fn open(config: StoreConfig) -> Result<Self> {
        let paths = Paths::new(&config.root);
        paths.create()?;
        let boot_id = durability::boot_id()?;
        let inner = Inner {
            paths,
            boot_id,
            clients: HttpClients::default(),
            locks: ObjectLocks::default(),
            slots: tokio::sync::Semaphore::new(LAYERS_AT_ONCE),
            config,
        };
        TmpDir::remove_stale(&inner.paths)?;
        durability::recover(&inner)?;
        Index::create_if_missing(&inner.paths)?;
        reserve::take(&inner.paths);
        Ok(Self(Arc::new(inner)))
    }

    /// Makes the image `reference` present, and returns it.
    ///
    /// The registry is asked as the policy says: `Never` makes no network call, `IfNotPresent` none if the image is
    /// here. Only what is missing is fetched; a layer that another pull is fetching, in this process or another, is
    /// waited for. Everything is verified before it is used.
    ///
    /// Dropping the future stops the pull; layers that arrived whole stay, to be used by the next one.
    pub async fn pull(&self, reference: &str, options: PullOptions) -> Result<Image> {
        // Boxed, here and below: what is behind it need not be compiled again into whatever awaits it.
        pull::pull(&self.0, reference, options).boxed().await
    }

    /// The local image that `image` names: a reference (Docker's short forms too), a digest of a manifest, or at least
    /// four leading hex digits of a manifest's or a config's digest. Never asks a registry. Layers that a power cut
    /// made doubtful are unpacked again from their blobs; an image whose blobs are gone is not there.
    ///
    /// Hold the store ([`hold`](Self::hold)) while the result is to stay.
    pub async fn find(&self, image: &str) -> Result<Option<Image>> {
        pull::find(&self.0, image).boxed().await
    }

    /// Where the layers of a container are that was created from the image `digest` with the lower directories `layers`:
    /// there, as a rule. Those that a reboot made doubtful are unpacked again from their blobs. Never asks a registry.
    ///
    /// # Errors
    /// [`Error::NotPresent`] with the digest if the blobs are gone, too.
    pub async fn layers_of(&self, digest: &str, layers: &[PathBuf]) -> Result<Vec<PathBuf>> {
        if layers.iter().all(|layer| layer.is_dir()) {
            return Ok(layers.to_vec());
        }
        // It may have no name any more.
        let image = pull::complete(&self.0, digest.to_owned(), digest.to_owned()).boxed().await?;
        image.map(|image| image.layers).ok_or_else(|| Error::NotPresent(digest.to_owned()))
    }

    /// All references, sorted.
    pub async fn list(&self) -> Result<Vec<StoredImage>> {
        self.blocking(|store| image::list(&store.paths)).await
    }

    /// Removes a reference, or all references of a digest; then what nothing refers to any more, but for the layers that
    /// `users` names. An image that would lose its last reference, or the one it was used by, while a container uses it
    /// is refused with [`Error::InUse`] unless `force`. `users` is called on a thread that may block.
    ///
    /// While a pull or a create holds the store, only the reference goes; the content goes with the next removal, prune or
    /// [`sweep_owed`](Self::sweep_owed). A create that has found the image by then and comes to its end after the removal did
    /// has an image without a name. Dropping the future while the store is waited for leaves everything as it was. Must not
    /// be called while this task holds the store itself.
    pub async fn remove(&self, image: &str, force: bool, users: Arc<Users>) -> Result<Removed> {
        let image = image.to_owned();
        self.while_waited_for(move |store, waits| gc::remove(store, &image, force, &*users, waits)).await
    }

    /// Removes content that a removal had to leave because the store was held, or that a load has put there and not entered,
    /// unless the store is held still. For whoever held it, afterwards; a look at one file if there is none. While an image
    /// cannot be read there is nothing that may go, and it is tried once a minute.
    pub async fn sweep_owed(&self, users: Arc<Users>) -> Result<()> {
        if !gc::is_owed(&self.0.paths) {
            return Ok(());
        }
        self.blocking(move |store| gc::sweep_owed(store, &*users)).await
    }

    /// Loads all images of an OCI image layout (a directory or an archive) or of an archive that `docker save` or
    /// `podman save` wrote, compressed or not. Each has the names that it has there; one without any is found by its
    /// digest. Nothing is taken over that does not match its digest.
    ///
    /// What one that fails, is dropped or is killed has put into the store goes with the next
    /// [`sweep_owed`](Self::sweep_owed), which the caller should follow up with in any case.
    pub async fn load(&self, path: &Path) -> Result<Vec<Image>> {
        load::load(&self.0, path).await
    }

    /// Writes local images to `out` as one archive, which is an OCI image layout and what `docker load` reads at once.
    /// Each has the names that it is given by; one named by a digest has none. Layers whose blobs were dropped are fetched
    /// again first, or it is [`Error::Dropped`]. On an error what was written is of no use.
    pub async fn save(&self, images: &[String], out: impl io::Write + Send + 'static) -> Result<()> {
        save::save(&self.0, images.to_vec(), out).await
    }

    /// Brings a local image to its registry, under the reference that it has here: the blobs that are not there yet, then
    /// the manifest. Returns the digest. A layer that is not there and whose blob was dropped is fetched again, or it is
    /// [`Error::Dropped`]. Dropping the future stops it; what arrived is not sent again.
    pub async fn push(&self, reference: &str, options: PushOptions) -> Result<String> {
        push::push(&self.0, reference, options).await
    }

    /// The steps in which a local image was built, the newest first.
    pub async fn history(&self, image: &str) -> Result<Vec<HistoryStep>> {
        let image = image.to_owned();
        self.blocking(move |store| history::history(store, &image)).await
    }

    /// Hashes all that is stored of an image again, unpacks each layer beside the one that containers are given, and
    /// compares the two, every attribute and every byte. A layer whose blob was dropped has nothing to be compared with. Takes as much space meanwhile as the largest layer does.
    pub async fn verify(&self, image: &str) -> Result<Verified> {
        let image = image.to_owned();
        self.blocking(move |store| verify::verify(store, &image)).await
    }

    /// Gives a local image another reference. `target` must have a tag and no digest.
    pub async fn tag(&self, source: &str, target: &str) -> Result<()> {
        let (source, target) = (source.to_owned(), target.to_owned());
        self.while_waited_for(move |store, waits| {
            let name = Reference::parse(&target)?;
            // Parsing fills in `latest`, which is for pulling: a further name must say all of itself.
            let last = target.rsplit('/').next().unwrap_or_default();
            if name.digest().is_some() || !last.contains(':') {
                let reason = "a tag is needed, and no digest".to_owned();
                return Err(Error::InvalidReference { reference: target, reason });
            }
            Index::update(&store.paths, |index| {
                // Who gave it up may have removed the name since.
                if !waits() {
                    return Err(Error::Interrupted("a tag"));
                }
                let mut entry = index.find(&source)?.cloned().ok_or(Error::NotPresent(source))?;
                entry.set_reference(&name.to_string());
                index.put(entry);
                Ok(())
            })
            .map_err(|error| error.of_room_for(&format_args!("the tag {name}"), &store.config.root))?;
            durability::sync_in_background(store);
            Ok(())
        })
        .await
    }

    /// Removes all images that `users` does not name, and everything that nothing refers to. Waits for pulls and
    /// creates in flight; must not be called while this task holds the store itself.
    pub async fn prune(&self, users: Arc<Users>) -> Result<Removed> {
        self.while_waited_for(move |store, waits| gc::prune(store, &*users, waits)).await
    }

    /// Keeps everything in the store from being removed until the result is dropped: from looking an image up until the
    /// container's record names it. Waits while something is being removed.
    pub async fn hold(&self) -> Result<StoreHold> {
        self.blocking(|store| StoreHold::shared(&store.paths.store_lock)).await
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        blocking(&self.0, work).await
    }

    /// The same with what tells whether the caller still waits: one that has gone may have asked for the contrary since.
    async fn while_waited_for<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>, &dyn Fn() -> bool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let caller = Arc::new(());
        let waits = Arc::downgrade(&caller);
        let done = self.blocking(move |store| work(store, &|| waits.strong_count() > 0)).await;
        drop(caller);
        done
    }
}

/// Runs blocking work where it may block. Dropping the future lets the work go on to its end.
pub(crate) async fn blocking<T: Send + 'static>(
    store: &Arc<Inner>,
    work: impl FnOnce(&Arc<Inner>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let store = Arc::clone(store);
    let work = move || {
        let _may_block = MayBlock::begin();
        work(&store)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted("work on the store"))?
}

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// As long as it lives its thread may block, though it is one of tokio's.
struct MayBlock;

impl MayBlock {
    fn begin() -> Self {
        MAY_BLOCK.set(true);
        Self
    }
}

impl Drop for MayBlock {
    fn drop(&mut self) {
        MAY_BLOCK.set(false);
    }
}

/// The places of the layout above.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub(crate) images: PathBuf,
    pub(crate) blobs: PathBuf,
    pub(crate) index: PathBuf,
    pub(crate) layers: PathBuf,
    pub(crate) roots: PathBuf,
    pub(crate) about: PathBuf,
    pub(crate) unsynced: PathBuf,
    pub(crate) dropped: PathBuf,
    pub(crate) locks: PathBuf,
    pub(crate) store_lock: PathBuf,
    pub(crate) sweep_owed: PathBuf,
    pub(crate) reserve: PathBuf,
}

impl Paths {
    fn new(root: &Path) -> Self {
        let (images, layers) = (root.join("images"), root.join("layers"));
        Self {
            blobs: images.join("blobs/sha256"),
            index: images.join("index.json"),
            images,
            roots: layers.join("root"),
            about: layers.join("about"),
            unsynced: layers.join("unsynced"),
            dropped: layers.join("dropped"),
            locks: layers.join("locks"),
            store_lock: layers.join("store.lock"),
            sweep_owed: layers.join("sweep-owed"),
            reserve: layers.join("reserve"),
            layers,
        }
    }

    fn create(&self) -> Result<()> {
        let (diff, chain) = (self.layers.join("diff"), self.layers.join("chain"));
        for path in [&self.blobs, &diff, &chain, &self.roots, &self.about, &self.unsynced, &self.dropped, &self.locks] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|e| Error::io("making the directory", path, e))?;
        }
        spread_children(&self.layers);
        Ok(())
    }

    /// The blob with this hex.
    pub(crate) fn blob(&self, hex: &str) -> PathBuf {
        self.blobs.join(hex)
    }
}

/// Asks ext4 to put what is made in `directory` each in a part of the disk of its own, as it does with home directories.
///
/// ext4 does not give out an inode again for up to six minutes after its removal, and looks at all of those before it
/// takes one. Next to a removed image an unpack so takes many times as long (measured: 35 s instead of 4.4 s).
fn spread_children(directory: &Path) {
    let spread = || {
        let handle = dir::open_root(directory)?;
        let flags = rustix::fs::ioctl_getflags(&handle)?;
        if flags.contains(IFlags::TOPDIR) {
            return Ok(());
        }
        rustix::fs::ioctl_setflags(&handle, flags | IFlags::TOPDIR)
    };
    if let Err(error) = spread() {
        // Other file systems have no such flag, and no such habit.
        tracing::debug!(path = %directory.display(), %error, "layers are not spread over the disk");
    }
}

/// A directory in the making, `layers/tmp-<random>/`. Removed on drop, and at the next open if the process dies.
#[derive(Debug)]
pub(crate) struct TmpDir {
    path: PathBuf,
    lock: Option<fs::File>,
}

impl TmpDir {
    /// Makes one; blocking.
    pub(crate) fn create(paths: &Paths) -> Result<Arc<Self>> {
        loop {
            let random = read_small(Path::new("/proc/sys/kernel/random/uuid"))?;
            let path = paths.layers.join(format!("tmp-{}", random.trim()));
            let made = fs::DirBuilder::new().mode(0o700).create(&path);
            made.map_err(|e| Error::io("making the directory", &path, e))?;
            // Between mkdir and flock another process may take it for a dead one's, and remove it.
            let Ok(lock) = fs::File::open(&path) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && path.exists() {
                return Ok(Arc::new(Self { path, lock: Some(lock) }));
            }
        }
    }

    /// Where a directory can be moved to be deleted, by whoever moved it or at the next open.
    pub(crate) fn without_owner(paths: &Paths, name: &str) -> PathBuf {
        paths.layers.join(format!("tmp-{name}"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it now, rather than on drop; blocking.
    pub(crate) fn remove_now(&self) {
        Self::remove(&self.path);
    }

    /// Removes one that has no owner; blocking.
    pub(crate) fn remove(path: &Path) {
        if let Err(error) = remove_tree(path) {
            tracing::warn!(path = %path.display(), %error, "a temporary directory cannot be removed");
        }
    }

    /// Removes those whose owners are dead; blocking.
    fn remove_stale(paths: &Paths) -> Result<()> {
        let entries = fs::read_dir(&paths.layers).map_err(|e| Error::io("listing", &paths.layers, e))?;
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_name().as_encoded_bytes().starts_with(b"tmp-")
                && let Ok(lock) = fs::File::open(entry.path())
                && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && let Err(error) = remove_tree(&entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "a left-over directory cannot be removed");
            }
        }
        Ok(())
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        if !self.path.exists() {
            return;
        }
        let (path, lock) = (std::mem::take(&mut self.path), self.lock.take());
        let remove = move || {
            Self::remove(&path);
            drop(lock);
        };
        // A pull that is dropped drops this on a thread of tokio's, which a large tree would block. A command may end before
        // a thread of its own has removed it.
        if tokio::runtime::Handle::try_current().is_ok() && !MAY_BLOCK.get() {
            if let Err(error) = std::thread::Builder::new().name("berth-remove".into()).spawn(remove) {
                tracing::warn!(%error, "no thread to remove a temporary directory: it goes at the next open");
            }
        } else {
            remove();
        }
    }
}

/// Removes a directory with all in it; one that is not there is removed already.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What is in the name of a file that is being written, behind what it will be called.
pub(crate) const BESIDE: &str = ".tmp-";

/// Reads a small file of the kernel's.
pub(crate) fn read_small(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))
}

/// Writes a file that appears whole: beside it first, then renamed. After a power cut it may be empty.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_beside(path, bytes, |_| Ok(()))
}

/// The same for a file that after a power cut, too, is what it was or what it is now: it is on the disk before it appears.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    write_beside(path, bytes, fs::File::sync_all)
}

fn write_beside(path: &Path, bytes: &[u8], settle: impl FnOnce(&fs::File) -> io::Result<()>) -> Result<()> {
    let random = read_small(Path::new("/proc/sys/kernel/random/uuid"))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!("{BESIDE}{}", random.trim()));
    let beside = path.with_file_name(name);
    let write = || {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        settle(&file)?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| {
        // Whatever there is of it is of no use; the error that counts is the first.
        let _ = fs::remove_file(&beside);
        Error::io("writing", path, e)
    })
}
