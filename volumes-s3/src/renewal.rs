//! Claims that last as long as they are renewed (`take_over_after`): who holds one shows that it lives, who wants it waits for
//! the time to run out. No clock is compared with another: each measures by its own, and only how long.
//!
//! A renewal is a claim of the same epoch. It needs no lock: a sync of the same host, however long it takes, finds its number
//! taken and takes the next.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use runtime_core::RecordKind;
use tokio::time::{Instant, sleep};

use crate::claim::TakeOver;
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::lifecycle::AcquireOptions;
use crate::log::Append;
use crate::paths::{Paths, ring};
use crate::prune::LONG_LOG;
use crate::record::Record;
use crate::state::State;
use crate::store::{Inner, VolumeStore};

/// Shortest `take_over_after`: its owner's requests to S3 must be answered within a part of it.
pub const SHORTEST_TAKE_OVER: Duration = Duration::from_secs(1);
/// A claim is renewed so often while it lasts.
const RENEWALS: u32 = 3;
/// So often it is looked whether a renewal is due.
const ROUNDS: u32 = 2 * RENEWALS;
/// Who waits for a claim to run out looks so often, to be told early that its owner lives.
const LOOKS: u32 = 10;
/// How often a number is lost to another writer's record before a renewal is left to the next round.
const ATTEMPTS: u32 = 8;
/// Claims renewed at once.
const AT_ONCE: usize = 8;

/// The claims that this process renews because it has begun to use their volumes.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    names: Mutex<BTreeSet<String>>,
    running: AtomicBool,
}

/// Whose use of a volume a process renews the claim for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Of this host, whatever process began it.
    Anybodys,
    /// Of this process.
    ItsOwn,
}

/// The last sign of life of this host in the log of a volume.
#[derive(Debug, Clone, Copy)]
struct Sign {
    record: u64,
    /// When the next one is.
    due: Instant,
}

/// Refuses a time in which no claim could be renewed.
pub(crate) fn check_take_over_after(after: Duration) -> Result<()> {
    if after >= SHORTEST_TAKE_OVER {
        return Ok(());
    }
    let reason = format!("{after:?} is shorter than {SHORTEST_TAKE_OVER:?}");
    Err(Error::Configuration { what: "volumes.take_over_after".into(), reason })
}

impl VolumeStore {
    /// Renews the claims of this host, whatever process uses the volumes, for as long as it is polled: for who keeps. Ends
    /// where claims are not renewed.
    pub async fn renew_claims(&self) {
        renew(Arc::downgrade(&self.inner), Whose::Anybodys).await;
    }

    /// Renews the claim on `name` for as long as it is held and this process has its volumes open.
    pub(crate) fn renew_while_open(&self, name: &str) {
        if self.inner.config.take_over_after.is_none() {
            return;
        }
        let renewals = &self.inner.renewals;
        renewals.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        if !renewals.running.swap(true, Ordering::SeqCst) {
            tokio::spawn(renew(Arc::downgrade(&self.inner), Whose::ItsOwn));
        }
    }

    /// What this use may do about another host's claim. Waits until that has run out, if it can, or its owner lives.
    pub(crate) async fn may_take_over(&self, name: &str, options: &AcquireOptions) -> Result<TakeOver> {
        if options.take_over {
            return Ok(TakeOver::ByName);
        }
        let config = &self.inner.config;
        let (Some(after), Some(_), false) = (config.take_over_after, &config.s3, options.readonly) else {
            return Ok(TakeOver::No);
        };
        let remote = self.remote(name, "a claim").await?;
        // Whatever is wrong is told by the use itself.
        let Ok(Some(first)) = remote.log.head(None).await else { return Ok(TakeOver::No) };
        let owner = first.owner.clone().filter(|owner| *owner != config.host);
        let (Some(owner), Some(lasts)) = (owner, first.lasts_ms) else { return Ok(TakeOver::No) };
        let begin = Instant::now();
        let patience = after.max(Duration::from_millis(lasts));
        tracing::warn!("volume {name}: waiting up to {patience:?} for a sign of life of host {owner}, which holds it");
        loop {
            sleep(patience.saturating_sub(begin.elapsed()).min(patience / LOOKS)).await;
            // Before it is looked: what was put until then is seen.
            let over = begin.elapsed() >= patience;
            match remote.log.head(Some(first.clone())).await {
                Ok(Some(newest)) if newest.record == first.record && over => return Ok(TakeOver::Lapsed(first.record)),
                Ok(Some(newest)) if newest.record == first.record => {}
                Ok(_) => return Ok(TakeOver::No),
                Err(error) if over => return Err(error),
                Err(error) => tracing::debug!(volume = name, %error, "a sign of life cannot be looked for"),
            }
        }
    }

    /// One round; `signs` are those of the rounds before.
    async fn renew_due(&self, whose: Whose, third: Duration, signs: &mut HashMap<String, Sign>) {
        let names = match whose {
            Whose::Anybodys => self.names_where(holds).await,
            Whose::ItsOwn => {
                let names = self.inner.renewals.names.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(names.iter().cloned().collect())
            }
        };
        let names: Vec<String> = names.unwrap_or_else(|error| {
            tracing::error!(%error, "claims on volumes are not renewed");
            Vec::new()
        });
        let looks = names.into_iter().map(|name| {
            let sign = signs.get(&name).copied();
            async move { (self.renew_one(&name, third, sign).await, name) }
        });
        let mut looks = Box::pin(stream::iter(looks).buffer_unordered(AT_ONCE));
        let mut found = HashMap::new();
        while let Some((renewed, name)) = looks.next().await {
            match renewed {
                Ok(sign) => found.extend(sign.map(|sign| (name, sign))),
                Err(error) => tracing::warn!(volume = name, %error, "its claim is not renewed"),
            }
        }
        drop(looks);
        *signs = found;
    }

    /// Renews the claim on `name` if it is held and nothing of this host has come after `sign` for a third of its time. `None`
    /// if it is not held.
    async fn renew_one(&self, name: &str, third: Duration, sign: Option<Sign>) -> Result<Option<Sign>> {
        let (paths, host) = (Paths::new(&self.inner.config.root, name), &self.inner.config.host);
        let path = paths.state();
        let state = blocking("read the state", move || State::load(&path)).await?;
        let Some(state) = state.filter(holds) else { return Ok(None) };
        let remote = self.remote(name, "a claim").await?;
        for _ in 0..ATTEMPTS {
            let now = Instant::now();
            let known = state.head.as_ref().map(|head| &head.volume);
            let ours = |head: &Record| {
                head.owner.as_ref() == Some(host) && Some(head.epoch) == state.epoch && Some(&head.volume) == known
            };
            let Some(head) = remote.log.head(state.head.clone()).await?.filter(ours) else { return Ok(None) };
            match sign {
                Some(sign) if sign.record == head.record && now < sign.due => return Ok(Some(sign)),
                Some(sign) if sign.record == head.record => {}
                // As good as a renewal. How old it is nobody knows; not older than a round.
                _ if head.host == *host => return Ok(Some(Sign { record: head.record, due: now + third / 4 })),
                _ => {}
            }
            let mut renewal = Record::after(Some(&head), RecordKind::Claim, host);
            renewal.lasts_ms = self.inner.config.lasts_ms();
            if let Append::Won = remote.log.append(&renewal).await? {
                if (renewal.record - renewal.pruned.unwrap_or(0)).is_multiple_of(LONG_LOG as u64) {
                    let bell = paths.grown();
                    blocking("tell who keeps", move || {
                        ring(&bell);
                        Ok(())
                    })
                    .await?;
                }
                return Ok(Some(Sign { record: renewal.record, due: now + third - third / 4 }));
            }
        }
        Err(Error::Interrupted { operation: "renew a claim on a volume that others keep writing to" })
    }
}

/// Whether a claim is held that somebody needs.
fn holds(state: &State) -> bool {
    state.epoch.is_some() && !state.claims_for_nobody()
}

/// Renews for as long as it is polled and somebody has the volumes open.
async fn renew(weak: Weak<Inner>, whose: Whose) {
    let after = weak.upgrade().and_then(|inner| inner.config.take_over_after.filter(|_| inner.config.s3.is_some()));
    let Some(after) = after else { return };
    let mut signs = HashMap::new();
    loop {
        sleep(after / ROUNDS).await;
        let Some(inner) = weak.upgrade() else { return };
        VolumeStore { inner }.renew_due(whose, after / RENEWALS, &mut signs).await;
    }
}
