//! One volume of this host, locked: its files, its state, and its log in the bucket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtime_core::RecordKind;
use rustix::io::Errno;

use crate::attributes;
use crate::config::{S3Config, VolumesConfig};
use crate::damaged::state_or_users;
use crate::error::{Error, Result};
use crate::fetch::{Packs, blocking};
use crate::foreign::ASIDE;
use crate::lock::VolumeLock;
use crate::log::{Append, Log};
use crate::object_store::ObjectStore;
use crate::pack::Packer;
use crate::paths::{Paths, make_directories, ring};
use crate::place::Place;
use crate::record::{Record, random_id};
use crate::removal::{empty_trash, move_to_trash, remove_unfinished};
use crate::scan::{Difference, difference, scan};
use crate::scan_record::RecordReader;
use crate::state::{Commit, State, TreeMark, read_own, remove_file, sync_parent, write_json};
use crate::walk::open_root;

/// After this long somebody is told that a lock is waited for.
const LOCK_NOTICE: Duration = Duration::from_secs(3);

/// A bucket as one volume sees it.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub store: Arc<dyn ObjectStore>,
    /// Of the volume, with its `/`.
    pub prefix: String,
    pub log: Log,
    pub packs: Packs,
}

impl Remote {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: String) -> Self {
        let log = Log::new(store.clone(), prefix.clone());
        let packs = Packs::new(store.clone(), prefix.clone());
        Self { store, prefix, log, packs }
    }
}

/// A volume that this process has the lock of.
#[derive(Debug)]
pub(crate) struct Volume {
    pub name: String,
    pub host: String,
    /// For how long its claim is good without being renewed.
    pub lasts_ms: Option<u64>,
    pub paths: Paths,
    pub state: State,
    /// There was a state on disk.
    pub known: bool,
    pub remote: Option<Remote>,
    /// The bucket, and which place it is.
    place: Option<(S3Config, Arc<Place>)>,
    lock: Arc<VolumeLock>,
}

impl Volume {
    /// Waits for the lock of the volume and reads its state.
    pub(crate) async fn lock(
        config: &VolumesConfig,
        name: &str,
        bucket: Option<(Arc<dyn ObjectStore>, Arc<Place>)>,
    ) -> Result<Self> {
        Self::lock_reading(config, name, bucket, State::load).await
    }

    /// The same for who removes it by force: a state that cannot be read is one that tells nothing, and its users are asked
    /// for elsewhere.
    pub(crate) async fn lock_damaged(
        config: &VolumesConfig,
        name: &str,
        bucket: Option<(Arc<dyn ObjectStore>, Arc<Place>)>,
    ) -> Result<Self> {
        let (mounted_by, of) = (config.mounted_by.clone(), name.to_owned());
        let load = move |path: &Path| state_or_users(path, &of, mounted_by.as_ref());
        Self::lock_reading(config, name, bucket, load).await
    }

    async fn lock_reading(
        config: &VolumesConfig,
        name: &str,
        bucket: Option<(Arc<dyn ObjectStore>, Arc<Place>)>,
        load: impl FnOnce(&Path) -> Result<Option<State>> + Send + 'static,
    ) -> Result<Self> {
        let mut locking = std::pin::pin!(VolumeLock::acquire(&config.root, name));
        let lock = match tokio::time::timeout(LOCK_NOTICE, &mut locking).await {
            Ok(lock) => lock?,
            Err(_) => {
                tracing::warn!("waiting for volume {name}: somebody else works with it");
                locking.await?
            }
        };
        let paths = Paths::new(&config.root, name);
        let of_volume = paths.clone();
        let state = blocking("read the state", move || {
            remove_unfinished(&of_volume.directory);
            load(&of_volume.state())
        })
        .await?;
        let known = state.is_some();
        let state = state.unwrap_or_default();
        let (mut remote, mut place) = (None, None);
        if let (Some(s3), Some((store, at))) = (&config.s3, bucket) {
            remote = Some(Remote::new(store, format!("{}{name}/", s3.key_prefix())));
            place = Some((s3.clone(), at));
        }
        let (name, host, lasts_ms) = (name.to_owned(), config.host.clone(), config.lasts_ms());
        Ok(Self { name, host, lasts_ms, paths, state, known, remote, place, lock: Arc::new(lock) })
    }

    /// Keeps the lock for as long as it lives: for threads that may outlive a future.
    pub(crate) fn hold(&self) -> Arc<VolumeLock> {
        self.lock.clone()
    }

    /// Writes the state. Who keeps is told of what is owed before: it looks for itself, once it has the lock.
    pub(crate) async fn save(&mut self) -> Result<()> {
        let (directory, path, mut state) = (self.paths.directory.clone(), self.paths.state(), self.state.clone());
        // Who keeps may have the bucket, where this process has none.
        let (debt, owes) = (self.paths.debt(), self.state.owes());
        blocking("write the state", move || {
            make_directories(&directory)?;
            if owes {
                ring(&debt);
            }
            state.save(&path)?;
            if owes { Ok(()) } else { remove_file(&debt) }
        })
        .await?;
        self.known = true;
        Ok(())
    }

    /// Whether the volume's own tree is here. One that bears no mark is somebody else's.
    pub(crate) fn is_here(&self) -> Result<bool> {
        match open_root(&self.paths.data()) {
            Ok(root) => Ok(attributes::is_marked(&root, &self.name)),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the tree here is new, and still to be filled: a part of what an image holds, and nobody's data.
    pub(crate) fn is_unfilled(&self) -> Result<bool> {
        if !self.is_here()? {
            return Ok(false);
        }
        let data = self.paths.data();
        attributes::is_unfilled(open_root(&data)?).map_err(|error| Error::io("read the attributes of", &data, error))
    }

    /// Takes the tree away. Whoever still writes to it writes to what is being deleted.
    pub(crate) async fn discard_tree(&self) -> Result<()> {
        let (data, hold) = (self.paths.data(), self.hold());
        blocking("discard a tree", move || {
            let root = data.parent().and_then(Path::parent).unwrap_or(&data);
            move_to_trash(root, &data)?;
            empty_trash(root);
            drop(hold);
            sync_parent(&data)
        })
        .await
    }

    /// Makes an empty tree; with `to_be_filled` one that is no data before it is full.
    pub(crate) async fn make_empty(&mut self, to_be_filled: bool) -> Result<()> {
        let (paths, name) = (self.paths.clone(), self.name.clone());
        blocking("create a volume", move || {
            let data = paths.data();
            let fresh = paths.directory.join(format!("restore-{}", random_id()));
            make_directories(&fresh)?;
            let failed = |error: Errno| Error::io("create", &fresh, error);
            let root = open_root(&fresh)?;
            rustix::fs::fchmod(&root, rustix::fs::Mode::from_raw_mode(0o755)).map_err(failed)?;
            attributes::mark(&root, &name).map_err(failed)?;
            if to_be_filled {
                attributes::mark_unfilled(&root).map_err(failed)?;
            }
            set_aside_foreign(&data)?;
            std::fs::rename(&fresh, &data).map_err(|error| Error::io("create", &data, error))?;
            sync_parent(&data)
        })
        .await?;
        remove_file(&self.paths.scan())
    }

    /// The newest record, once an earlier commit is settled. A history that is not the one this host knew is new to it.
    pub(crate) async fn head(&mut self) -> Result<Option<Record>> {
        self.settle_place().await?;
        self.settle_commit().await?;
        let Some(remote) = &self.remote else { return Ok(None) };
        let head = remote.log.head(self.state.head.clone()).await?;
        let known = self.state.head.as_ref().map(|head| &head.volume);
        if known.is_some() && known != head.as_ref().map(|head| &head.volume) {
            tracing::warn!(volume = self.name, "the history this host knew is gone from S3");
            self.state.forget_history();
        }
        self.state.head.clone_from(&head);
        // Whoever journaled a claim of that epoch was killed before it was made.
        if self.state.epoch > head.as_ref().map(|head| head.epoch) {
            self.state.epoch = None;
        }
        // Or it was made, and is known only now.
        self.state.pending.claim &= !self.owns();
        Ok(head)
    }

    /// Whether the volume belongs to a bucket which is not the one that this process has.
    pub(crate) async fn belongs_elsewhere(&self) -> Result<bool> {
        match (&self.remote, &self.place, &self.state.place) {
            (Some(remote), Some((config, place)), Some(known)) => Ok(place.id(&remote.store, config).await? != known),
            (None, _, _) => Ok(self.state.has_bucket()),
            _ => Ok(false),
        }
    }

    /// What is known of a history is worth something only in the place where it is.
    async fn settle_place(&mut self) -> Result<()> {
        let (Some(remote), Some((config, place))) = (&self.remote, &self.place) else { return Ok(()) };
        let place = place.id(&remote.store, config).await?;
        if self.state.place.as_deref() != Some(place) {
            if self.state.place.is_some() {
                self.state.forget_history();
            }
            self.state.place = Some(place.to_owned());
        }
        Ok(())
    }

    /// The record to append next; the caller changes what its kind changes.
    pub(crate) fn next_record(&self, kind: RecordKind) -> Record {
        Record::after(self.state.head.as_ref(), kind, &self.host)
    }

    /// Whether the newest record seen says that this host, with this state, is the owner.
    pub(crate) fn owns(&self) -> bool {
        let head = self.state.head.as_ref();
        head.is_some_and(|head| head.owner.as_ref() == Some(&self.host) && Some(head.epoch) == self.state.epoch)
    }

    /// Journals `commit`, whose packs are all there, and appends its record.
    pub(crate) async fn commit(&mut self, commit: Commit) -> Result<Append> {
        let (path, journaled) = (self.paths.commit(), commit.clone());
        blocking("journal a commit", move || write_json(&path, &journaled)).await?;
        self.finish_commit(commit).await
    }

    /// Settles the commit that an earlier process or attempt left.
    async fn settle_commit(&mut self) -> Result<()> {
        let path = self.paths.commit();
        let Some(commit) = blocking("read a commit", move || read_own::<Commit>(&path)).await? else { return Ok(()) };
        let Some(remote) = &self.remote else { return Ok(()) };
        let checked = remote.packs.check(commit.pack_ids()?).await;
        let other_place = self.state.head.as_ref().is_none_or(|head| head.volume != commit.record.volume);
        match checked {
            // Without its packs, or for another history, it is no generation.
            Err(Error::Corrupt { .. }) => return self.drop_commit().await,
            Ok(()) if other_place => return self.drop_commit().await,
            Ok(()) => {}
            // Nothing is known of them, be it for want of credentials: its record may be in the log.
            Err(error) => return Err(error),
        }
        self.finish_commit(commit).await.map(drop)
    }

    async fn drop_commit(&self) -> Result<()> {
        let path = self.paths.commit();
        blocking("drop a commit", move || remove_file(&path).and_then(|()| sync_parent(&path))).await
    }

    /// Appends the record of a journaled commit. After an error it stays journaled: its outcome is not known.
    async fn finish_commit(&mut self, commit: Commit) -> Result<Append> {
        let Some(remote) = &self.remote else { return Err(Error::Interrupted { operation: "commit" }) };
        let append = remote.log.append(&commit.record).await?;
        let (paths, record) = (self.paths.clone(), &commit.record);
        if let (Append::Won, Some(tree)) = (&append, &record.tree) {
            let branch = record.kind == RecordKind::Branch;
            self.state.tree = Some(TreeMark {
                record: record.record,
                root: tree.root.digest.to_string(),
                branch,
                size_bytes: tree.size_bytes,
                ahead_bytes: None,
            });
            if !branch {
                self.state.parent = Some(record.record);
            }
            self.state.durable_at = Some(record.created_at);
            self.state.head = Some(record.clone());
            let root = tree.root.digest;
            blocking("keep the scan record", move || {
                ring(&paths.grown());

                // A scan that was under way when a process died is not the one of this commit.
                let of_commit =
                    RecordReader::open(&paths.new_scan())?.is_some_and(|record| record.subject.root == root);
                if of_commit {
                    std::fs::rename(paths.new_scan(), paths.scan())
                        .map_err(|error| Error::io("rename", paths.new_scan(), error))?;
                }
                remove_file(&paths.uploads())
            })
            .await?;
            self.save().await?;
        }
        self.drop_commit().await?;
        Ok(append)
    }

    /// The scan record, if it is of the tree that the state tells of.
    pub(crate) fn scan_record(&self) -> Result<Option<RecordReader>> {
        scan_record(&self.name, &self.paths, &self.state)
    }

    /// Whether the tree is another than the generation it was last published or restored as. Files that may have
    /// changed are read; nothing is sent.
    pub(crate) async fn has_changes(&self) -> Result<bool> {
        let data = self.paths.data();
        let Some(tree) = &self.state.tree else {
            return blocking("look at the tree", move || {
                let mut entries = std::fs::read_dir(&data).map_err(|error| Error::io("read", &data, error))?;
                Ok(entries.next().is_some())
            })
            .await;
        };
        let (old, record, lineage) = (self.scan_record()?, self.paths.new_scan(), self.state.lineage());
        let (epoch, root, hold) = (self.state.epoch.unwrap_or(0), tree.root.clone(), self.hold());
        blocking("scan", move || {
            let packer = Packer::new(epoch, |_| Ok(()))?;
            let scanned = scan(&data, old, packer, &record, lineage)?;
            remove_file(&record)?;
            drop(hold);
            Ok(scanned.root.digest.to_string() != root)
        })
        .await
    }

    /// How much has changed since the tree was last published, by metadata.
    pub(crate) async fn difference(&self) -> Result<Difference> {
        let (data, old, hold) = (self.paths.data(), self.scan_record()?, self.hold());
        blocking("scan", move || {
            let found = difference(&data, old);
            drop(hold);
            found
        })
        .await
    }
}

/// The scan record among `paths`, if it is of the tree that `state` tells of.
pub(crate) fn scan_record(name: &str, paths: &Paths, state: &State) -> Result<Option<RecordReader>> {
    let lineage = state.lineage();
    let root = state.tree.as_ref().map(|tree| tree.root.as_str());
    let record = match RecordReader::open(&paths.scan()) {
        Err(Error::Corrupt { what, detail }) => {
            tracing::warn!(volume = name, %what, %detail, "scan record not usable, every file is read");
            None
        }
        record => record?,
    };
    Ok(record
        .filter(|record| record.subject.lineage == lineage && Some(record.subject.root.to_string().as_str()) == root))
}

/// Moves a tree that is not the volume's out of the way: it is nobody's to delete.
pub(crate) fn set_aside_foreign(data: &Path) -> Result<()> {
    let aside = data.with_file_name(format!("{ASIDE}{}", random_id()));
    match std::fs::rename(data, &aside) {
        Ok(()) => {
            tracing::warn!(path = %aside.display(), "a tree without the volume's mark was moved aside");
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("move aside", data, error)),
    }
}
