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

use std::path::Path;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::config::{S3Config, VolumesConfig};
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::grace::Graces;
use crate::name;
use crate::object_store::{self, ObjectStore};
use crate::paths::{Paths, make_directories};
use crate::place::Place;
use crate::removal::{empty_trash, reconcile};
use crate::renewal::{Renewals, check_take_over_after};
use crate::retention::Keep;
use crate::state::State;
use crate::volume::{Remote, Volume};

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

    pub(crate) async fn lock(&self, name: &str) -> Result<Volume> {
        Volume::lock(&self.inner.config, name, self.bucket().await?).await
    }

    pub(crate) async fn lock_damaged(&self, name: &str) -> Result<Volume> {
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
