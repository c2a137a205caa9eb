//! What a use of a volume does: begin it, sync it, end it.

use crate::claim::{self, Standing, TakeOver};
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::removal::{holds_anything, remove_unfinished};
use crate::state::Pending;
use crate::store::{AcquireOptions, Acquired, VolumeStore};
use crate::sync::publish;
use crate::volume::Volume;

impl VolumeStore {
    pub(crate) async fn make_usable(
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
        let published = match self.trust_server().await {
            Ok(()) => publish(volume).await,
            Err(error) => Err(error),
        };
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
                    volume.state.pending = Pending::default();
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

    /// Writes down that `user` is gone and what is owed for it, then tries once to do that.
    ///
    /// The journal comes first: a try may hang, and its process may end before it does. The error in Ok tells what is
    /// still owed. With `undone` the user has never run.
    pub(crate) async fn end_use(&self, volume: &mut Volume, name: &str, undone: bool) -> Result<Option<Error>> {
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
        let owed = match volume.remote.is_some() && !user.readonly {
            true => self.settle(volume).await.err(),
            false => None,
        };
        if let Some(error) = &owed {
            tracing::warn!(volume = volume.name, %error, "not durable");
        }
        self.forget_blank(volume).await?;
        Ok(owed)
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
        if volume.is_here()? {
            self.sync_locked(volume).await?;
        } else {
            // Claimed, and never restored: there is nothing to sync.
            volume.head().await?;
        }
        self.give_back(volume).await
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
