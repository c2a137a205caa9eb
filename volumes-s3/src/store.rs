//! The volumes of a host.
//!
//! ```text
//! <root>/                       root:root 0700
//!   .locks/<name>               one lock a volume; never removed
//!   .servers/<digest>.json      whether an endpoint and bucket crown one winner
//!   .places/<digest>.json       which place an endpoint, bucket and prefix lead to
//!   .owed/<name>                rings while the volume owes S3 something
//!   .grown/<name>               rings when the volume's history grows; there until retention was applied to it
//!   .trash/                     trees being deleted; anyone may go on with that
//!   <name>/
//!     state.json                what is known and owed: users, claim, generation; replaced whole, synced
//!     data/                     the tree, marked by an attribute with the volume's name; by another while it is new and
//!                               not filled yet
//!     scan                      a cache: entries of the last generation with inodes, times and chunks
//!     scan.new, commit.json     a record about to be put, and its scan; settled before anything else is done
//!     uploads                   packs of an unfinished sync that have arrived
//!     restore-<random>/         a tree being restored; rubbish once nobody holds the lock
//!     foreign-<random>/         a tree without the mark that was in the way; deleted only by a removal with `force`
//! ```
//!
//! `scan`, `scan.new` and `uploads` can go without loss: files are then read, and sent, again. In the bucket, see
//! `FORMAT.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtime_core::{PruneResult, VolumeStatus};
use tokio::sync::OnceCell;

use crate::claim;
use crate::config::{S3Config, VolumesConfig};
use crate::damaged::status_without_state;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::foreign::{Foreign, refuse_foreign};
use crate::grace::Graces;
use crate::history::HistoryEntry;
use crate::name;
use crate::object_store::{self, ObjectStore};
use crate::pack::Digest;
use crate::place::Place;
use crate::progress::Progress;
use crate::removal::{empty_trash, reconcile, refuse_in_use, refuse_loss};
use crate::renewal::{Renewals, check_take_over_after};
use crate::retention::Keep;
use crate::server_check::{ServerCheck, race};
use crate::state::{State, User, read_json, write_json_unlocked};
use crate::volume::{Paths, Remote, Volume, count, make_directories, status};

/// How often a status is counted anew because a sync ended meanwhile.
const STATUS_LOOKS: u32 = 3;

/// How a container wants a volume.
#[derive(Debug, Clone, Default)]
pub struct AcquireOptions {
    /// It will not write: no claim is needed.
    pub readonly: bool,
    /// Take the claim from another host. Only who knows that the other host is dead may say so.
    pub take_over: bool,
    /// The caller fills a new volume and then says so ([`crate::mark_filled`]). Until then it is no data: nobody else
    /// gets it, nothing of it is published, and when the use ends before, or its process dies, it is taken back.
    pub fill: bool,
    /// A limit in bytes. Not built yet: `Error::Unsupported`.
    pub size: Option<u64>,
    /// Text that is kept and shown.
    pub tier: Option<String>,
    /// Is told how a restore goes on.
    pub progress: Progress,
}

/// A volume that can be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquired {
    /// Its tree.
    pub path: PathBuf,
    /// It was made now, and is empty: the caller may fill it.
    pub is_new: bool,
    /// This host owns it. False for read-only use, without a bucket, and while S3 is away.
    pub claimed: bool,
}

/// What to restore, and where.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The generation; the newest if not given.
    pub generation: Option<u64>,
    /// Beside the volume, into this directory, which must not exist or be empty.
    pub to: Option<PathBuf>,
    /// In place, over changes that are nowhere else.
    pub discard_local: bool,
    /// Is told how it goes on.
    pub progress: Progress,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestoreReport {
    /// The generation.
    pub generation: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Regular files.
    pub files: u64,
    /// Bytes of them.
    pub size_bytes: u64,
}

/// The volumes of a host. Clones are cheap and the same; several processes may have one each.
///
/// All methods may be cancelled: what was begun is completed in the background.
#[derive(Debug, Clone)]
pub struct VolumeStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: VolumesConfig,
    store: OnceCell<Arc<dyn ObjectStore>>,
    place: Option<Arc<Place>>,
    pub(crate) renewals: Renewals,
    pub(crate) graces: Graces,
}

impl VolumeStore {
    /// Opens the volumes under `config.root`. No request is made.
    ///
    /// # Errors
    /// [`Error::Configuration`]; [`Error::Unsupported`] for options that are not built; [`Error::Io`] when the root
    /// cannot be made.
    pub async fn open(config: VolumesConfig) -> Result<Self> {
        config.s3.as_ref().map_or(Ok(()), S3Config::check)?;
        config.keep.as_ref().map_or(Ok(()), Keep::check)?;
        config.take_over_after.map_or(Ok(()), check_take_over_after)?;
        let root = config.root.clone();
        blocking("open the volumes", move || {
            make_directories(&root)?;
            empty_trash(&root);
            reconcile(&root, &names(&root)?);
            Ok(())
        })
        .await?;
        let place = config.s3.as_ref().map(|s3| Arc::new(Place::new(&config.root, s3)));
        let (store, renewals, graces) = (OnceCell::new(), Renewals::default(), Graces::default());
        Ok(Self { inner: Arc::new(Inner { config, store, place, renewals, graces }) })
    }

    /// Makes the volume usable by `user` (a container's id): claims it if it is to be written, restores it where this
    /// host lacks it, and keeps the user on disk. Idempotent for the same user.
    ///
    /// With `take_over_after`, one that another host holds is observed for that long, unless that host gives a sign of life
    /// before, and then taken over.
    ///
    /// A volume that S3 holds or may hold is never begun empty: if it is not here and S3 is away, that is an error. If
    /// it is here and S3 is away, it is usable, unclaimed, and claimed at the first contact.
    ///
    /// # Errors
    /// [`Error::InUseElsewhere`]; [`Error::Conflict`] when the tree here and the newest generation both changed;
    /// [`Error::S3Unreachable`]; [`Error::BucketMissing`]; [`Error::RacyServer`]; [`Error::Unsupported`] for a size.
    pub async fn acquire(&self, name: &str, user: &str, options: AcquireOptions) -> Result<Acquired> {
        if options.size.is_some() {
            return Err(Error::Unsupported { what: "a size limit of a volume".into() });
        }
        let user = user.to_owned();
        let take_over = self.may_take_over(name, &options).await?;
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            let acquired = store.make_usable(&mut volume, &user, &options, take_over).await;
            if let Err(error) = acquired {
                store.give_up(&mut volume).await;
                return Err(error);
            }
            let made = options.fill && acquired.as_ref().is_ok_and(|acquired| acquired.is_new);
            volume.state.made_by = made.then(|| user.clone());
            volume.state.users.insert(user, User { readonly: options.readonly });
            volume.state.pending.release = false;
            volume.state.held &= options.readonly;
            if options.tier.is_some() {
                volume.state.tier = options.tier;
            }
            volume.save().await?;
            if volume.state.epoch.is_some() {
                store.renew_while_open(&name);
            }
            acquired
        })
        .await
    }

    /// Makes this host the owner without a user: a released volume, or with `take_over` one that another host holds, which
    /// then may no longer publish. Only who knows that the other host is dead may say so. With `take_over_after` it waits for
    /// a sign of life of that host, as [`VolumeStore::acquire`] does. It is restored where this host lacks it, and the claim
    /// is kept until somebody has used the volume, or it is removed here.
    ///
    /// # Errors
    /// Those of [`VolumeStore::acquire`]; [`Error::NoBucket`]; [`Error::NotFound`] when neither S3 nor this host has it.
    pub async fn claim(&self, name: &str, take_over: bool, progress: Progress) -> Result<VolumeStatus> {
        self.remote(name, "a claim").await?;
        let options = AcquireOptions { take_over, progress, ..AcquireOptions::default() };
        let take_over = self.may_take_over(name, &options).await?;
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            store.contact(&mut volume).await?;
            if volume.state.head.is_none() && !volume.known {
                return Err(Error::NotFound { name });
            }
            if let Err(error) = store.make_usable(&mut volume, "", &options, take_over).await {
                store.give_up(&mut volume).await;
                return Err(error);
            }
            if volume.state.epoch.is_none() {
                // S3 went away in between: it would be used without one.
                volume.state.pending.claim = volume.state.has_writer();
                volume.save().await?;
                return Err(Error::Interrupted { operation: "a claim" });
            }
            volume.state.held = !volume.state.has_writer();
            volume.state.pending.release = false;
            volume.save().await?;
            store.renew_while_open(&name);
            volume.status().await
        })
        .await
    }

    /// Ends the use by `user`: the tree is synced if it could write, and when no writer is left the claim is given back.
    /// No data is deleted; a new volume that was not filled is taken back. Nothing happens if `user` does not use it.
    ///
    /// That the use has ended, and what is owed for it, is on disk before S3 is asked. `Some` error tells what is still
    /// owed, and why: it is journaled, and done by [`VolumeStore::retry`] or [`VolumeStore::sync`].
    ///
    /// # Errors
    /// Only those of the disk.
    pub async fn release(&self, name: &str, user: &str) -> Result<Option<Error>> {
        let user = user.to_owned();
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            store.end_use(&mut volume, &user, false).await
        })
        .await
    }

    /// The same for a `user` whose create failed: it has never run, and a volume made for it goes, filled or not, unless
    /// somebody else has used it since.
    ///
    /// # Errors
    /// Only those of the disk.
    pub async fn undo(&self, name: &str, user: &str) -> Result<Option<Error>> {
        let user = user.to_owned();
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            store.end_use(&mut volume, &user, true).await
        })
        .await
    }

    /// Ends the use by `user`, who was to fill a new volume and died before. Nothing happens if the volume is full, or
    /// `user` does not use it.
    ///
    /// # Errors
    /// Only those of the disk.
    pub async fn give_up_filling(&self, name: &str, user: &str) -> Result<()> {
        let user = user.to_owned();
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            if volume.is_unfilled()? {
                store.end_use(&mut volume, &user, true).await?;
            }
            Ok(())
        })
        .await
    }

    /// Brings the volume to S3: durable there when this is Ok. Without a bucket: Ok, and no effect. Of one that nobody uses
    /// no claim is kept, unless it was taken by hand.
    ///
    /// # Errors
    /// [`Error::S3Unreachable`], with the volume journaled as pending and its bytes at risk counted; [`Error::Fenced`]
    /// when another host took it over, with what is here uploaded as a branch; [`Error::NotFound`].
    pub async fn sync(&self, name: &str) -> Result<VolumeStatus> {
        self.detached(name, |store, name| async move {
            let mut volume = store.lock(&name).await?;
            if !volume.known {
                return Err(Error::NotFound { name });
            }
            if volume.remote.is_none() {
                drop(volume);
                return store.status(&name).await;
            }
            store.sync_locked(&mut volume).await?;
            // One made to publish what was changed while nobody used it.
            volume.state.pending.release |= volume.state.claims_for_nobody();
            if let Err(error) = store.give_back(&mut volume).await {
                tracing::warn!(volume = name, %error, "not released yet");
            }
            volume.status().await
        })
        .await
    }

    /// What is known here of the volume. No request is made.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn status(&self, name: &str) -> Result<VolumeStatus> {
        name::check_name(name)?;
        let (paths, name) = (Paths::new(&self.inner.config.root, name), name.to_owned());
        let configured = self.inner.config.s3.is_some();
        blocking("read the state", move || {
            let load = || State::load(&paths.state())?.ok_or_else(|| Error::NotFound { name: name.clone() });
            let mut state = load()?;
            for _ in 0..STATUS_LOOKS {
                let mut status = status(&name, &paths, &state);
                let counted = count(&mut status, &paths, &state, configured || state.has_bucket());
                if let Err(error) = &counted {
                    // The rest is known, and one tree that cannot be read hides no other volume.
                    status.last_error.get_or_insert_with(|| error.to_string());
                }
                Foreign::tell(&mut status, &paths);
                if !matches!(counted, Ok(true)) {
                    return Ok(status);
                }
                // Counted without the lock: a sync may have ended meanwhile.
                let now = load()?;
                if now == state {
                    return Ok(status);
                }
                state = now;
            }
            let mut status = status(&name, &paths, &state);
            Foreign::tell(&mut status, &paths);
            Ok(status)
        })
        .await
    }

    /// The volumes of this host, by name. One whose state cannot be read is told with that as its last error, and with all of
    /// its bytes at risk.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn list(&self) -> Result<Vec<VolumeStatus>> {
        let mut found = Vec::new();
        for name in self.names().await? {
            match self.status(&name).await {
                Ok(status) => found.push(status),
                Err(Error::NotFound { .. }) => {}
                Err(error) => {
                    let paths = Paths::new(&self.inner.config.root, &name);
                    let tell = move || Ok(status_without_state(&name, &paths, &error));
                    found.push(blocking("look at a volume", tell).await?);
                }
            }
        }
        Ok(found)
    }

    /// The names of the volumes of this host, in order. Of one that is being made there may be no status yet.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn names(&self) -> Result<Vec<String>> {
        let root = self.inner.config.root.clone();
        blocking("list the volumes", move || names(&root)).await
    }

    /// Who uses the volume on this host.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn users(&self, name: &str) -> Result<Vec<String>> {
        name::check_name(name)?;
        let path = Paths::new(&self.inner.config.root, name).state();
        let state = blocking("read the state", move || State::load(&path)).await?;
        Ok(state.unwrap_or_default().users.into_keys().collect())
    }

    /// The records that hold a tree, oldest first; with `all` also claims, releases and prunes.
    ///
    /// # Errors
    /// [`Error::NoBucket`]; [`Error::NotFound`] when neither S3 nor this host has the volume.
    pub async fn history(&self, name: &str, all: bool) -> Result<Vec<HistoryEntry>> {
        let remote = self.remote(name, "a history").await?;
        let records = remote.records().await?;
        if records.is_empty() {
            remote.store.check_bucket().await?;
            self.status(name).await?;
        }
        Ok(records.into_iter().filter(|record| all || record.tree.is_some()).map(HistoryEntry::from).collect())
    }

    /// Restores a generation in place, or beside. In place, an older one is a change made here: the next sync publishes it as
    /// the newest, and sends nothing again.
    ///
    /// # Errors
    /// In place: [`Error::InUse`]; [`Error::Unsynced`] over changes that are nowhere else, without `discard_local`.
    /// Beside: [`Error::TargetExists`]. Both: [`Error::NotFound`], [`Error::GenerationNotFound`], [`Error::Corrupt`];
    /// [`Error::GenerationPruned`] when it went meanwhile, but not where the newest was asked for: that begins again.
    pub async fn restore(&self, name: &str, options: RestoreOptions) -> Result<RestoreReport> {
        self.remote(name, "a restore").await?;
        self.detached(name, move |store, name| async move {
            match options.to.clone() {
                Some(to) => store.restore_beside(&name, to, &options).await,
                None => store.restore_in_place(&name, &options).await,
            }
        })
        .await
    }

    /// Removes the local copy; with `remote` the history in S3 too. With `force` also one whose state cannot be read: a claim
    /// that only the state tells of stays.
    ///
    /// # Errors
    /// [`Error::InUse`]; without `force` [`Error::Unsynced`] when data would be lost, [`Error::Unpublished`] when a step back, [`Error::Foreign`] when a tree that is
    /// not known to be the volume's would be, [`Error::Owing`] when a debt to another bucket would be, and [`Error::InUseElsewhere`] when the history is another host's; [`Error::NotFound`].
    pub async fn remove(&self, name: &str, remote: bool, force: bool) -> Result<()> {
        self.detached(name, move |store, name| async move {
            let mut volume = if force { store.lock_damaged(&name).await? } else { store.lock(&name).await? };
            refuse_in_use(&volume, "removal")?;
            if !volume.known && !remote {
                return Err(Error::NotFound { name });
            }
            let elsewhere = match volume.belongs_elsewhere().await {
                Err(_) if force => true,
                told => told?,
            };
            if !force {
                refuse_foreign(&volume).await?;
            }
            if !force && (elsewhere || !remote) {
                refuse_loss(&mut volume, elsewhere).await?;
            }
            if remote {
                store.remove_history(&mut volume, force).await?;
            } else if volume.state.epoch.is_some()
                && !elsewhere
                && let Err(error) = claim::release(&mut volume).await
                && !force
            {
                return Err(error);
            }
            store.remove_local(&volume).await.map(drop)
        })
        .await
    }

    /// Removes local copies that nobody uses and S3 holds as they are, if it has every pack of the newest generation.
    ///
    /// # Errors
    /// Those of the disk. A volume whose state cannot be told is kept, and so is one beside which another tree lies.
    pub async fn prune_local(&self) -> Result<PruneResult> {
        let mut result = PruneResult::default();
        for name in self.names().await? {
            let pruned = self.detached(&name, |store, name| async move {
                let mut volume = store.lock(&name).await?;
                let idle =
                    volume.known && volume.state.users.is_empty() && volume.state.tree.is_some() && !volume.state.held;
                if volume.remote.is_none() || !idle {
                    return Ok(None);
                }
                refuse_foreign(&volume).await?;
                if !volume.is_here()? {
                    return Ok(None);
                }
                volume.head().await?;
                // In another bucket than the one it belongs to, it was never published.
                if volume.state.tree.is_none()
                    || volume.state.owes()
                    || volume.state.went_back()
                    || volume.has_changes().await?
                {
                    return Ok(None);
                }
                store.refuse_lost_packs(&volume).await?;
                store.remove_local(&volume).await.map(Some)
            });
            match pruned.await {
                Ok(Some(bytes)) => {
                    result.deleted.push(name);
                    result.space_reclaimed += bytes;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(volume = name, %error, "not pruned"),
            }
        }
        Ok(result)
    }

    /// Races 16 writers for one key and keeps the result. The first use of a bucket does so by itself.
    ///
    /// # Errors
    /// [`Error::NoBucket`], [`Error::S3Unreachable`], [`Error::BucketMissing`]. A server that crowns several is no error
    /// here: the result says so.
    pub async fn check_server(&self) -> Result<ServerCheck> {
        let Some(config) = &self.inner.config.s3 else {
            return Err(Error::NoBucket { name: "any".into(), operation: "a check of the server" });
        };
        let check = race(&self.client(config).await?, config).await?;
        let (path, kept) = (self.server_file(config), check.clone());
        blocking("keep the check", move || {
            path.parent().map_or(Ok(()), make_directories)?;
            write_json_unlocked(&path, &kept)
        })
        .await?;
        Ok(check)
    }

    /// Over another object store than the configured one.
    #[cfg(test)]
    pub(crate) async fn open_with(config: VolumesConfig, store: Arc<dyn ObjectStore>) -> Result<Self> {
        let opened = Self::open(config).await?;
        opened.inner.store.get_or_init(|| async { store }).await;
        Ok(opened)
    }

    #[cfg(test)]
    pub(crate) fn inner_root(&self) -> &std::path::Path {
        &self.inner.config.root
    }

    /// Refuses a server that lets several writers win; races for it if that was never done.
    pub(crate) async fn trust_server(&self) -> Result<()> {
        let Some(config) = &self.inner.config.s3 else { return Ok(()) };
        let path = self.server_file(config);
        let known = blocking("read the check", move || Ok(read_json::<ServerCheck>(&path).ok().flatten())).await?;
        match known {
            Some(check) => check.verdict(config),
            None => self.check_server().await?.verdict(config),
        }
    }

    fn server_file(&self, config: &S3Config) -> PathBuf {
        let digest = Digest::of(config.location().as_bytes()).to_string();
        self.inner.config.root.join(".servers").join(format!("{}.json", &digest[..32]))
    }

    pub(crate) async fn lock(&self, name: &str) -> Result<Volume> {
        Volume::lock(&self.inner.config, name, self.bucket().await?).await
    }

    async fn lock_damaged(&self, name: &str) -> Result<Volume> {
        Volume::lock_damaged(&self.inner.config, name, self.bucket().await?).await
    }

    async fn bucket(&self) -> Result<Option<(Arc<dyn ObjectStore>, Arc<Place>)>> {
        Ok(match (&self.inner.config.s3, &self.inner.place) {
            (Some(config), Some(place)) => Some((self.client(config).await?, place.clone())),
            _ => None,
        })
    }

    pub(crate) async fn client(&self, config: &S3Config) -> Result<Arc<dyn ObjectStore>> {
        self.inner.store.get_or_try_init(|| object_store::open(config)).await.cloned()
    }

    pub(crate) async fn remote(&self, name: &str, operation: &'static str) -> Result<Remote> {
        name::check_name(name)?;
        let Some(config) = &self.inner.config.s3 else {
            return Err(Error::NoBucket { name: name.to_owned(), operation });
        };
        Ok(Remote::new(self.client(config).await?, format!("{}{name}/", config.key_prefix())))
    }

    /// Runs `work` to its end even if the caller stops waiting.
    pub(crate) async fn detached<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(Self, String) -> F,
    ) -> Result<T> {
        name::check_name(name)?;
        let task = tokio::spawn(work(self.clone(), name.to_owned()));
        task.await.map_err(|_| Error::Interrupted { operation: "a volume's work" })?
    }
}

/// The names that volumes have beneath `root`, in order.
fn names(root: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io("read", root, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name::check_name(&name).is_ok() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
