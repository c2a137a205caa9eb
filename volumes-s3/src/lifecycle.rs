//! What a use of a volume does: begin it, sync it, end it.

use std::path::PathBuf;

use runtime_core::{Progress, VolumeStatus};
use tokio_util::sync::CancellationToken;

use crate::claim::{self, Standing, TakeOver};
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::removal::{holds_anything, remove_unfinished};
use crate::state::{Pending, User};
use crate::store::VolumeStore;
use crate::sync::publish;
use crate::volume::Volume;

/// How often it is looked at again what another host has published before this one's claim.
const MAKE_USABLE_ATTEMPTS: u32 = 4;

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
    /// Calls it off as long as it waits, for another host's sign of life or for whoever works with the volume here: it then
    /// changes nothing. What has begun goes on to its end.
    pub called_off: CancellationToken,
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

impl VolumeStore {
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
    /// [`Error::S3Unreachable`]; [`Error::BucketMissing`]; [`Error::RacyServer`]; [`Error::Unsupported`] for a size;
    /// [`Error::CalledOff`].
    pub async fn acquire(&self, name: &str, user: &str, options: AcquireOptions) -> Result<Acquired> {
        if options.size.is_some() {
            return Err(Error::Unsupported { what: "a size limit of a volume".into() });
        }
        let user = user.to_owned();
        let permission = options.called_off.run_until_cancelled(self.may_take_over(name, &options)).await;
        let take_over = permission.unwrap_or_else(|| Err(Error::CalledOff { name: name.to_owned() }))?;
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            if options.called_off.is_cancelled() {
                return Err(Error::CalledOff { name });
            }
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

    /// Ends the use by `user` as [`VolumeStore::release`] does, but without a word to S3: what is owed for it is written down,
    /// for [`VolumeStore::retry`] to do. Whether anything is. Nothing changes once it is `called_off` while somebody else works with the volume.
    ///
    /// # Errors
    /// Those of the disk; [`Error::CalledOff`].
    pub async fn leave(&self, name: &str, user: &str, called_off: &CancellationToken) -> Result<bool> {
        let (user, called_off) = (user.to_owned(), called_off.clone());
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            if called_off.is_cancelled() {
                return Err(Error::CalledOff { name });
            }
            let owes = store.note_end(&mut volume, &user, false).await?.unwrap_or(false);
            if !owes {
                store.forget_blank(&mut volume).await?;
            }
            Ok(owes)
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

    pub(crate) async fn make_usable(
        &self,
        volume: &mut Volume,
        user: &str,
        options: &AcquireOptions,
        take_over: TakeOver,
    ) -> Result<Acquired> {
        for _ in 1..MAKE_USABLE_ATTEMPTS {
            match self.try_to_make_usable(volume, user, options, take_over).await {
                Err(error) if claim::was_overtaken(&error) => {}
                made => return made,
            }
        }
        self.try_to_make_usable(volume, user, options, take_over).await
    }

    async fn try_to_make_usable(
        &self,
        volume: &mut Volume,
        user: &str,
        options: &AcquireOptions,
        take_over: TakeOver,
    ) -> Result<Acquired> {
        let path = volume.paths.data();
        if volume.is_unfilled()? {
            let others: Vec<_> = volume.state.users.keys().filter(|other| *other != user).cloned().collect();
            if !others.is_empty() {
                return Err(Error::BeingFilled { name: volume.name.clone(), users: others });
            }
            volume.discard_tree().await?;
        }
        let here = volume.is_here()?;
        let acquired = |is_new, claimed| Acquired { path: path.clone(), is_new, claimed };
        if volume.remote.is_none() {
            if here {
                volume.state.pending.claim |= volume.state.has_bucket() && !options.readonly;
                return Ok(acquired(false, false));
            }
            if volume.state.tree.is_some() {
                return Err(Error::NoBucket { name: volume.name.clone(), operation: "restoring it" });
            }
            volume.make_empty(options.fill).await?;
            return Ok(acquired(true, false));
        }
        match self.contact(volume).await {
            Err(error) if error.is_transient() && here => {
                tracing::warn!(volume = volume.name, %error, "S3 is away: used without a claim");
                volume.state.pending.claim |= !options.readonly;
                volume.state.last_error = Some(chain(&error));
                return Ok(acquired(false, false));
            }
            contact => contact?,
        }
        if let Standing::Elsewhere { host, record } = claim::standing(volume)
            && !options.readonly
            && !take_over.permits(record)
        {
            return Err(Error::InUseElsewhere { name: volume.name.clone(), host, record });
        }
        let newest = volume.state.head.as_ref().and_then(|head| head.generation);
        let restore = match newest {
            Some(_) if !here => newest,
            Some(remote) if newest != volume.state.parent => {
                let name = volume.name.clone();
                let others = volume.state.users.keys().filter(|other| *other != user);
                let users: Vec<_> = others.cloned().collect();
                let changed = volume.state.went_back() || volume.has_changes().await?;
                if changed && !(users.is_empty() && self.is_restored(volume, remote).await?) {
                    return Err(Error::Conflict { name, local: volume.state.parent, remote });
                }
                if !changed && !users.is_empty() {
                    return Err(Error::InUse { name, operation: "a restore of the newer generation", users });
                }
                newest.filter(|_| !changed)
            }
            _ => None,
        };
        if !options.readonly {
            claim::claim(volume, take_over).await?;
        }
        if let Some(generation) = restore {
            self.restore_newest(volume, generation, options).await?;
        } else if !here {
            volume.make_empty(options.fill).await?;
        }
        Ok(acquired(!here && restore.is_none(), !options.readonly))
    }

    /// Takes back what a use that failed has begun: a claim that nobody needs, and what is kept of the volume for it. What
    /// cannot be is journaled, or found by the next who looks.
    pub(crate) async fn give_up(&self, volume: &mut Volume) {
        if volume.state.claims_for_nobody() {
            volume.state.pending.release = true;
            if let Err(error) = volume.save().await {
                // Whether it could be is told next.
                tracing::debug!(volume = volume.name, %error, "that its claim is to be given back is not journaled");
            }
            self.settle_release(volume).await;
        }
        if let Err(error) = self.forget_blank(volume).await {
            tracing::warn!(volume = volume.name, %error, "what is left of a failed use is not removed");
        }
    }

    /// Sees that the server can be trusted, and reads the newest record.
    pub(crate) async fn contact(&self, volume: &mut Volume) -> Result<()> {
        self.trust_server().await?;
        volume.head().await.map(drop)
    }

    pub(crate) async fn sync_locked(&self, volume: &mut Volume) -> Result<()> {
        if !volume.is_here()? {
            return Err(Error::NotFound { name: volume.name.clone() });
        }
        if volume.is_unfilled()? {
            let users = volume.state.users.keys().cloned().collect();
            return Err(Error::BeingFilled { name: volume.name.clone(), users });
        }
        let published = self.publish(volume).await;
        match &published {
            Ok(()) => {
                volume.state.pending.sync = false;
                volume.state.bytes_at_risk = None;
                volume.state.last_error = None;
            }
            Err(error) => {
                // What is in a branch, or was not changed, is not at risk.
                let fenced = matches!(error, Error::Fenced { .. });
                if fenced {
                    let release = volume.state.pending.release && volume.owns();
                    volume.state.pending = Pending { release, ..Pending::default() };
                } else {
                    volume.state.pending.sync = true;
                }
                volume.state.bytes_at_risk =
                    if fenced { None } else { volume.difference().await.ok().map(|difference| difference.bytes) };
                volume.state.last_error = Some(chain(error));
                tracing::warn!(volume = volume.name, %error, "not synced");
            }
        }
        volume.save().await?;
        published
    }

    async fn publish(&self, volume: &mut Volume) -> Result<()> {
        self.contact(volume).await?;
        match self.has_nothing_new(volume).await? {
            true => Ok(()),
            false => publish(volume).await,
        }
    }

    /// Whether a use that was killed after its claim has left the tree as it was about to have it, the newest, or as it
    /// was before, an older one that is in S3.
    async fn has_nothing_new(&self, volume: &mut Volume) -> Result<bool> {
        let newest = volume.state.head.as_ref().and_then(|head| head.generation);
        if !volume.owns() || newest == volume.state.parent || volume.state.has_writer() {
            return Ok(false);
        }
        let Some(newest) = newest else { return Ok(false) };
        if self.is_restored(volume, newest).await? {
            return Ok(true);
        }
        let is_kept = match (&volume.remote, &volume.state.head, &volume.state.tree) {
            (Some(remote), Some(head), Some(tree)) => remote.still_has(head, tree.record).await?,
            _ => false,
        };
        Ok(is_kept && !volume.state.went_back() && !volume.has_changes().await?)
    }

    /// Writes down that `user` is gone and what is owed for it, then tries once to do that.
    ///
    /// The journal comes first: a try may hang, and its process may end before it does. The error in Ok tells what is
    /// still owed. With `undone` the user has never run.
    pub(crate) async fn end_use(&self, volume: &mut Volume, name: &str, undone: bool) -> Result<Option<Error>> {
        let Some(owes) = self.note_end(volume, name, undone).await? else { return Ok(None) };
        let owed = if owes { self.settle(volume).await.err() } else { None };
        if let Some(error) = &owed {
            tracing::warn!(volume = volume.name, %error, "not durable");
        }
        self.forget_blank(volume).await?;
        Ok(owed)
    }

    /// Writes down that `user` is gone; whether S3 is to be asked for it. `None` if it was no user.
    async fn note_end(&self, volume: &mut Volume, name: &str, undone: bool) -> Result<Option<bool>> {
        let Some(user) = volume.state.users.remove(name) else { return Ok(None) };
        let unfilled = volume.is_unfilled()?;
        let made_for_it = undone && volume.state.made_by.as_deref() == Some(name);
        if (unfilled || made_for_it) && volume.state.users.is_empty() && volume.is_here()? {
            volume.discard_tree().await?;
        }
        let claims = volume.state.epoch.is_some() || volume.state.pending.claim;
        volume.state.pending.release |= claims && !volume.state.has_writer() && !volume.state.held;
        let bucket = volume.remote.is_some() || volume.state.has_bucket();
        if !user.readonly && !unfilled && bucket && volume.is_here()? {
            (volume.state.pending.sync, volume.state.bytes_at_risk) = (true, None);
            volume.state.last_error.get_or_insert_with(|| "the sync after its last use has not ended".to_owned());
        }
        volume.save().await?;
        Ok(Some(volume.remote.is_some() && !user.readonly))
    }

    /// Removes what is kept of a volume of which nothing was ever here: its create was undone, or its restore failed.
    pub(crate) async fn forget_blank(&self, volume: &mut Volume) -> Result<()> {
        let (state, directory) = (&volume.state, volume.paths.directory.clone());
        if !volume.known {
            return blocking("tidy up", move || {
                remove_unfinished(&directory);
                Ok(())
            })
            .await;
        }
        let needed = !state.users.is_empty() || state.owes() || state.epoch.is_some() || state.tree.is_some();
        if !needed && !blocking("look for a tree", move || holds_anything(&directory)).await? {
            self.remove_local(volume).await?;
            volume.known = false;
        }
        Ok(())
    }

    /// Syncs and gives the claim back if that is due; what fails is journaled.
    pub(crate) async fn settle_release(&self, volume: &mut Volume) {
        if volume.state.pending.release
            && !volume.state.has_writer()
            && volume.remote.is_some()
            && let Err(error) = self.settle(volume).await
        {
            tracing::warn!(volume = volume.name, %error, "not released yet");
        }
    }

    /// Does what is owed to S3.
    pub(crate) async fn settle(&self, volume: &mut Volume) -> Result<()> {
        let settled = match volume.is_here()? {
            true => self.sync_locked(volume).await,
            // Claimed, and never restored: there is nothing to sync.
            false => volume.head().await.map(drop),
        };
        // What is kept as a branch keeps no claim.
        if matches!(settled, Ok(()) | Err(Error::Fenced { .. })) {
            self.give_back(volume).await?;
        }
        settled
    }

    /// Gives the claim back if that is due.
    pub(crate) async fn give_back(&self, volume: &mut Volume) -> Result<()> {
        if volume.state.pending.release && !volume.state.has_writer() {
            claim::release(volume).await?;
        }
        Ok(())
    }
}

/// The message of an error and of its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
