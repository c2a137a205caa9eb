//! Applies retention to a history: a record names what goes, then it goes.
//!
//! The record is what decides. Whatever was published before it was taken into account; whoever publishes after it looks
//! at it first ([`crate::sync`]). So nothing that stays, or comes, refers to what goes, whoever is stopped for how long.
//!
//! Steps: copies of the records that stay, to `kept/`; the list of what goes, to `prunes/`; the record. Then what is before
//! the record goes from the log, the oldest first, then copies and packs, and the list last: as long as it is there, the
//! prune is not finished. The next one finishes it, or who keeps, after a time for readers ([`crate::grace`]).
//!
//! Where no retention is configured but claims are renewed, a long log is cut off in the same way, and all trees stay.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use runtime_core::{HistoryPruned, RecordKind};
use serde::{Deserialize, Serialize};

use crate::claim::{self, Standing, TakeOver};
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::log::Append;
use crate::object_store::Listed;
use crate::pack::{Digest, PackId};
use crate::reach::reached;
use crate::record::{PruneSummary, Record};
use crate::retention::{Keep, Tree};
use crate::state::remove_file;
use crate::store::VolumeStore;
use crate::uploads::Uploads;
use crate::volume::{Remote, Volume};

/// How often a number is lost to another writer's record before a prune gives up.
const ATTEMPTS: u32 = 16;
/// Packs that one prune deletes; what is left is the next one's. As many are 7 TiB, and a list of 27 MB.
const PACKS_AT_ONCE: usize = 500_000;
/// Longest list read.
const LIST_LIMIT: usize = 64 << 20;
/// Requests in flight.
pub(crate) const REQUESTS: usize = 8;
/// A log that has so many records is cut off though no generation goes: they are claims.
pub(crate) const LONG_LOG: usize = 512;
/// Most trees that a cut keeps where no retention is configured: its record names all of them, in about a mebibyte. A log
/// with more of them stays as long as it is.
pub(crate) const MOST_KEPT: usize = 100_000;

/// What a look by who keeps came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// What was decided.
    pub pruned: HistoryPruned,
    /// So long after now what was decided, now or before, may be deleted: by [`VolumeStore::finish_prune`]. `None`: all of
    /// it is.
    pub unfinished: Option<Duration>,
}

/// The list of what goes.
#[derive(Debug, Serialize, Deserialize)]
struct Going {
    generations: Vec<u64>,
    packs: Vec<String>,
}

/// How far a prune looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Whatever it costs.
    Everywhere,
    /// For packs that nothing reaches only where a generation goes: all manifests must be read for that.
    ForWhatIsDue,
}

impl VolumeStore {
    /// Applies the retention that is configured (`keep`) to the history in S3, and deletes packs that nothing reaches, at
    /// once. The newest generation always stays. Without a retention no tree goes; where claims are renewed, a long log of
    /// them is cut off all the same.
    ///
    /// Only the owner may do so, or anybody while the volume is released. One that was cut off is finished first.
    ///
    /// # Errors
    /// [`Error::InUseElsewhere`], [`Error::NotFound`], [`Error::NoBucket`], [`Error::S3Unreachable`]; [`Error::Corrupt`] when
    /// a manifest cannot be read: then nothing goes.
    pub async fn prune(&self, name: &str) -> Result<HistoryPruned> {
        self.prune_looking(name, Look::Everywhere).await.map(|retained| retained.pruned)
    }

    /// The same for who keeps: only if something is due, and without a look for packs of syncs that were cut off. What goes
    /// is left to readers for `prune_grace`. While an earlier prune waits for that, nothing new is decided.
    ///
    /// # Errors
    /// Those of [`VolumeStore::prune`].
    pub async fn retain(&self, name: &str) -> Result<Retained> {
        self.prune_looking(name, Look::ForWhatIsDue).await
    }

    /// Deletes what the newest prune has decided to, if its time for readers is over; else tells how much of it is left.
    /// Needs neither claim nor lock: what is decided may be done by anybody.
    ///
    /// # Errors
    /// [`Error::NoBucket`], [`Error::S3Unreachable`].
    pub async fn finish_prune(&self, name: &str) -> Result<Option<Duration>> {
        let remote = self.remote(name, "a prune").await?;
        self.detached(name, move |store, name| async move {
            match remote.log.head(None).await? {
                Some(head) => store.finish_newest(&name, &remote, &head, Look::ForWhatIsDue).await,
                None => Ok(None),
            }
        })
        .await
    }

    async fn prune_looking(&self, name: &str, look: Look) -> Result<Retained> {
        self.remote(name, "a prune").await?;
        self.detached(name, move |store, name| async move {
            let mut volume = store.lock(&name).await?;
            let pruned = store.prune_locked(&mut volume, look).await;
            let due = volume.state.pending.release && !volume.state.has_writer();
            if due && volume.state.pending.sync {
                // What is owed comes first: given back now, another host would go on from what is older.
                volume.save().await?;
            } else if due {
                claim::release(&mut volume).await?;
                store.forget_blank(&mut volume).await?;
            }
            // Nothing grows while the lock is held. Who keeps next must know of what waits.
            if pruned.as_ref().is_ok_and(|retained| retained.unfinished.is_none()) {
                remove_file(&volume.paths.grown())?;
            }
            pruned
        })
        .await
    }

    async fn prune_locked(&self, volume: &mut Volume, look: Look) -> Result<Retained> {
        let name = volume.name.clone();
        let nothing = HistoryPruned { name: name.clone(), ..HistoryPruned::default() };
        let Some(remote) = volume.remote.clone() else { return Ok(Retained { pruned: nothing, unfinished: None }) };
        for _ in 0..ATTEMPTS {
            self.contact(volume).await?;
            let Some(head) = volume.state.head.clone() else { return Err(Error::NotFound { name }) };
            match claim::standing(volume) {
                Standing::Elsewhere { host, record } => return Err(Error::InUseElsewhere { name, host, record }),
                // By a claim that this data root does not know of, and so nobody else's.
                Standing::OursBefore => {
                    claim::claim(volume, TakeOver::No).await?;
                    volume.state.pending.release = true;
                    continue;
                }
                Standing::Free | Standing::Ours => {}
            }
            let (keep, folds) = (self.inner.config.keep, self.inner.config.take_over_after.is_some());
            if (keep.is_some() || folds)
                && let Some(left) = self.finish_newest(&name, &remote, &head, look).await?
            {
                return Ok(Retained { pruned: nothing, unfinished: Some(left) });
            }
            let plan = match keep {
                Some(keep) => Plan::make(volume, &remote, &head, &keep, look).await?,
                None => Plan::keep_all(&name, &remote, &head, folds, look).await?,
            };
            if plan.is_empty() {
                return Ok(Retained { pruned: plan.pruned, unfinished: None });
            }
            if let Some(record) = plan.decide(volume, &remote).await? {
                let unfinished = self.grace_left(&name, &record, look);
                if unfinished.is_none() {
                    finish(&remote, &record, &plan.going()).await?;
                    self.inner.graces.over(&name);
                }
                return Ok(Retained { pruned: plan.pruned, unfinished });
            }
        }
        Err(Error::Interrupted { operation: "prune a history that others keep writing to" })
    }

    /// Finishes the newest prune, if it was cut off or left to readers, and tells how long it still is.
    async fn finish_newest(&self, name: &str, remote: &Remote, head: &Record, look: Look) -> Result<Option<Duration>> {
        let Some(number) = head.pruned else { return Ok(None) };
        let Some(record) = remote.log.read(number).await? else { return Ok(None) };
        let Some(going) = read_list(remote, &record).await? else { return Ok(None) };
        if let Some(left) = self.grace_left(name, &record, look) {
            return Ok(Some(left));
        }
        finish(remote, &record, &going).await?;
        self.inner.graces.over(name);
        Ok(None)
    }

    /// How long what `record` has decided to delete is left to readers. One by whom nothing goes that they read is not.
    fn grace_left(&self, name: &str, record: &Record, look: Look) -> Option<Duration> {
        let takes_away = record.prune.as_ref().is_some_and(|prune| prune.generations > 0 || prune.packs > 0);
        let waits = look == Look::ForWhatIsDue && takes_away;
        waits.then(|| self.inner.graces.left(name, record.record, self.inner.config.prune_grace)).flatten()
    }
}

/// What is to be decided.
#[derive(Debug, Default)]
struct Plan {
    pruned: HistoryPruned,
    /// The records of the trees that stay and have no copy yet.
    uncopied: Vec<Record>,
    packs: Vec<PackId>,
    /// The log is long enough to be cut off for that alone.
    long: bool,
}

impl Plan {
    /// What `keep` asks for.
    async fn make(volume: &Volume, remote: &Remote, head: &Record, keep: &Keep, look: Look) -> Result<Self> {
        let records = remote.records().await?;
        let tree = |record: &Record| Tree {
            record: record.record,
            branch: record.kind == RecordKind::Branch,
            created_at: record.created_at,
        };
        let trees: Vec<Tree> = records.iter().filter(|record| record.tree.is_some()).map(tree).collect();
        let mut kept = keep.choose(&trees, head.generation);
        // An older one that was restored here: the next generation will be made of its packs.
        let own = volume.state.tree.as_ref().filter(|_| volume.state.parent == head.generation);
        kept.extend(own.map(|tree| tree.record).filter(|own| has(&trees, *own)));
        let removed: Vec<u64> = trees.iter().map(|tree| tree.record).filter(|tree| !kept.contains(tree)).collect();
        let in_log = |record: &Record| head.pruned.is_none_or(|pruned| record.record > pruned);
        let mut plan = Self {
            long: records.iter().filter(|record| in_log(record)).count() >= LONG_LOG,
            pruned: HistoryPruned { name: volume.name.clone(), kept: Vec::from_iter(kept), ..HistoryPruned::default() },
            ..Self::default()
        };
        if removed.is_empty() && look == Look::ForWhatIsDue && !plan.long {
            return Ok(plan);
        }
        let stays = |record: &&Record| plan.pruned.kept.binary_search(&record.record).is_ok();
        let roots: Vec<_> =
            records.iter().filter(stays).filter_map(|record| Some(record.tree.as_ref()?.root)).collect();
        // Listed before the record is put: what comes later is not in it.
        let listed = remote.store.list_all(&format!("{}packs/", remote.prefix)).await?;
        let mut reached = reached(&remote.packs, &roots).await?;
        let (uploads, lineage) = (volume.paths.uploads(), volume.state.lineage());
        reached.extend(blocking("read what arrived", move || Uploads::packs(&uploads, lineage)).await?);
        for object in listed {
            let Ok(pack) = object.name().parse::<PackId>() else { continue };
            if pack.epoch <= head.epoch && !reached.contains(&pack) && plan.packs.len() < PACKS_AT_ONCE {
                plan.packs.push(pack);
                plan.pruned.space_reclaimed += object.size;
            }
        }
        plan.uncopied = records.iter().filter(stays).filter(|record| in_log(record)).cloned().collect();
        plan.pruned.removed = removed;
        plan.pruned.packs = plan.packs.len() as u64;
        Ok(plan)
    }

    /// All trees stay. With `folds` the log is cut off if it is long, which its numbers tell: a short one is not read for
    /// who only wants to know what is due.
    async fn keep_all(name: &str, remote: &Remote, head: &Record, folds: bool, look: Look) -> Result<Self> {
        let mut plan = Self::default();
        plan.pruned.name = name.to_owned();
        plan.long = folds && head.record - head.pruned.unwrap_or(0) >= LONG_LOG as u64;
        if !plan.long && look == Look::ForWhatIsDue {
            return Ok(plan);
        }
        let before = remote.newest_prune(head).await?.map(|prune| prune.kept).unwrap_or_default();
        let log = remote.log.all().await?;
        plan.uncopied = log.into_iter().filter(|record| record.tree.is_some()).collect();
        plan.pruned.kept = before;
        plan.pruned.kept.extend(plan.uncopied.iter().map(|record| record.record));
        if plan.long && plan.pruned.kept.len() > MOST_KEPT {
            tracing::warn!(
                volume = name,
                trees = plan.pruned.kept.len(),
                "too many to cut its log off: configure `keep`"
            );
            plan.long = false;
        }
        Ok(plan)
    }

    fn is_empty(&self) -> bool {
        self.pruned.removed.is_empty() && self.packs.is_empty() && !self.long
    }

    fn going(&self) -> Going {
        let packs = self.packs.iter().map(ToString::to_string).collect();
        Going { generations: self.pruned.removed.clone(), packs }
    }

    /// Puts the record, after what it refers to. `None` if another record came before it.
    async fn decide(&self, volume: &mut Volume, remote: &Remote) -> Result<Option<Record>> {
        copy_records(remote, self.uncopied.clone()).await?;
        let list = serde_json::to_vec(&self.going());
        let list = list.map_err(|error| Error::corrupt("the list of a prune", error.to_string()))?;
        let mut record = volume.next_record(RecordKind::Prune);
        record.pruned = Some(record.record);
        record.prune = Some(PruneSummary {
            kept: self.pruned.kept.clone(),
            generations: self.pruned.removed.len() as u64,
            packs: self.pruned.packs,
            list: Digest::of(&list),
        });
        let key = list_key(remote, &record);
        remote.store.put(&key, Bytes::from(list)).await?;
        match remote.log.append(&record).await? {
            Append::Won => {
                volume.state.head = Some(record.clone());
                if volume.known {
                    volume.save().await?;
                }
                Ok(Some(record))
            }
            Append::Lost => {
                remote.store.delete(&key).await?;
                Ok(None)
            }
        }
    }
}

fn has(trees: &[Tree], number: u64) -> bool {
    trees.iter().any(|tree| tree.record == number)
}

/// The key of the list of a prune.
fn list_key(remote: &Remote, record: &Record) -> String {
    format!("{}{:020}-{}", lists_prefix(remote), record.record, record.nonce)
}

fn lists_prefix(remote: &Remote) -> String {
    format!("{}prunes/", remote.prefix)
}

async fn copy_records(remote: &Remote, records: Vec<Record>) -> Result<()> {
    stream::iter(records)
        .map(|record| async move {
            remote.store.put(&remote.kept_key(record.record), Bytes::from(record.encode()?)).await
        })
        .buffer_unordered(REQUESTS)
        .try_collect()
        .await
}

/// The list of the prune `record`; `None` if all that it names is gone.
async fn read_list(remote: &Remote, record: &Record) -> Result<Option<Going>> {
    let (key, Some(summary)) = (list_key(remote, record), &record.prune) else { return Ok(None) };
    let Some(list) = remote.store.get(&key, None, LIST_LIMIT).await? else { return Ok(None) };
    if Digest::of(&list) != summary.list {
        return Err(Error::corrupt(key, "is not the list that its prune names"));
    }
    serde_json::from_slice(&list).map(Some).map_err(|error| Error::corrupt(key, error.to_string()))
}

/// Those of `packs` that the newest prune names and maybe has not deleted yet.
pub(crate) async fn doomed(remote: &Remote, head: &Record, packs: &HashSet<PackId>) -> Result<bool> {
    let Some(number) = head.pruned else { return Ok(false) };
    let Some(record) = remote.log.read(number).await? else { return Ok(true) };
    let going = read_list(remote, &record).await?.map(|going| going.packs).unwrap_or_default();
    Ok(going.iter().any(|pack| pack.parse().is_ok_and(|pack| packs.contains(&pack))))
}

/// Deletes what the prune `record` has decided to. Any number may be at it, and none of them has to come to an end.
async fn finish(remote: &Remote, record: &Record, going: &Going) -> Result<()> {
    let Some(summary) = &record.prune else { return Ok(()) };
    // One after the other: who appends relies on it that a number is free only if all before it are.
    for number in remote.log.numbers().await?.into_iter().filter(|number| *number < record.record) {
        remote.store.delete(&remote.log.key(number)).await?;
    }
    let kept: BTreeSet<u64> = summary.kept.iter().copied().collect();
    let number = |object: &Listed| object.name().parse::<u64>().ok();
    // A copy after this record is a later prune's.
    let old = |number: &u64| *number < record.record && !kept.contains(number);
    let copies = remote.store.list_all(&remote.kept_prefix()).await?;
    let copies = copies.iter().filter_map(number).filter(old).map(|number| remote.kept_key(number));
    delete(remote, copies).await?;
    let packs: Result<Vec<PackId>> = going.packs.iter().map(|pack| pack.parse()).collect();
    delete(remote, packs?.into_iter().map(|pack| remote.packs.key(pack))).await?;
    // The lists of prunes that never got a record, or are finished; this one's own goes last.
    let own = list_key(remote, record);
    let of_old = |object: &Listed| {
        let number = object.name().split('-').next().and_then(|number| number.parse::<u64>().ok());
        number.is_some_and(|number| number <= record.record) && object.key != own
    };
    let lists = remote.store.list_all(&lists_prefix(remote)).await?;
    delete(remote, lists.into_iter().filter(of_old).map(|object| object.key)).await?;
    remote.store.delete(&own).await
}

/// Deletes these objects, several at once.
pub(crate) async fn delete(remote: &Remote, keys: impl Iterator<Item = String>) -> Result<()> {
    let deletions = stream::iter(keys).map(|key| async move { remote.store.delete(&key).await });
    deletions.buffer_unordered(REQUESTS).try_collect().await
}
