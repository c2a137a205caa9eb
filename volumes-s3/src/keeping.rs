//! What who keeps must know of volumes, and do with them, whichever process used them.

use std::path::PathBuf;

use crate::error::Result;
use crate::fetch::blocking;
use crate::lock::VolumeLock;
use crate::paths::{DEBTS, GROWN, Paths, make_directories};
use crate::state::{State, remove_file};
use crate::store::VolumeStore;

impl VolumeStore {
    /// The names of volumes that somebody on this host may write to, and that this host owns or is to claim.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn written(&self) -> Result<Vec<String>> {
        self.names_where(|state| state.has_writer() && (state.epoch.is_some() || state.pending.claim)).await
    }

    /// Those whose state is there, can be read, and is as `wanted`.
    pub(crate) async fn names_where(&self, wanted: impl Fn(&State) -> bool + Send + 'static) -> Result<Vec<String>> {
        let (mut names, root) = (self.names().await?, self.inner.config.root.clone());
        blocking("look at the volumes", move || {
            names.retain(|name| {
                let state = State::load(&Paths::new(&root, name).state());
                state.is_ok_and(|state| state.is_some_and(|state| wanted(&state)))
            });
            Ok(names)
        })
        .await
    }

    /// The volumes that owe S3 something, by name. None without a bucket.
    ///
    /// # Errors
    /// Those of reading the root.
    pub async fn owing(&self) -> Result<Vec<String>> {
        self.owing_of(self.names().await?).await
    }

    /// Those of `names`, whose forms must have been checked, that owe S3 something. None without a bucket.
    ///
    /// # Errors
    /// None of one volume's own: one whose state cannot be read may owe something.
    pub async fn owing_of(&self, mut names: Vec<String>) -> Result<Vec<String>> {
        if self.inner.config.s3.is_none() {
            return Ok(Vec::new());
        }
        let root = self.inner.config.root.clone();
        blocking("look for what is owed", move || {
            // One whose state cannot be read may owe: whoever retries is told why not.
            names.retain(|name| {
                let state = State::load(&Paths::new(&root, name).state());
                state.map_or(true, |state| state.is_some_and(|state| state.owes()))
            });
            Ok(names)
        })
        .await
    }

    /// A directory in which a file of a volume's name appears, or is written again, whenever that volume owes S3
    /// something: a bell for who retries. What it rings for may be settled by the time that is looked at.
    ///
    /// # Errors
    /// Those of making it.
    pub fn debts(&self) -> Result<PathBuf> {
        let path = self.inner.config.root.join(DEBTS);
        make_directories(&path)?;
        Ok(path)
    }

    /// The same for the names of volumes whose histories have grown since retention was last applied to them.
    ///
    /// # Errors
    /// Those of making it.
    pub fn grown(&self) -> Result<PathBuf> {
        let path = self.inner.config.root.join(GROWN);
        make_directories(&path)?;
        Ok(path)
    }

    /// Whether nobody works with the volume just now.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn is_idle(&self, name: &str) -> Result<bool> {
        VolumeLock::is_free(&self.inner.config.root, name).await
    }

    /// Tries once what the volume owes to S3: a claim, a sync, a release. Ok if it owes nothing; true if it did, so that its
    /// tree is durable only now.
    ///
    /// # Errors
    /// Those of [`VolumeStore::sync`], but a volume that is not known owes nothing.
    pub async fn retry(&self, name: &str) -> Result<bool> {
        self.detached(name, |store, name| async move {
            let mut volume = store.lock(&name).await?;
            if volume.remote.is_none() {
                return Ok(false);
            }
            if !volume.state.owes() {
                let debt = volume.paths.debt();
                return blocking("settle a debt", move || remove_file(&debt).map(|()| false)).await;
            }
            volume.state.pending.release |= volume.state.claims_for_nobody();
            // Whoever was to fill it was killed before its use was written down.
            if volume.state.users.is_empty() && volume.is_unfilled()? {
                volume.discard_tree().await?;
            }
            let is_here = volume.is_here()?;
            store.settle(&mut volume).await?;
            store.forget_blank(&mut volume).await?;
            Ok(is_here)
        })
        .await
    }
}
