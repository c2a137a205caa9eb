//! Who may publish: claims, their release, and what a host may do with the tree it has.

use runtime_core::RecordKind;

use crate::error::{Error, Result};
use crate::log::Append;
use crate::record::Record;
use crate::volume::Volume;

/// How often a number is lost to another writer's record before a claim is given up.
const CLAIM_ATTEMPTS: u32 = 16;

/// What is interrupted where another host has published between a look at the log and the claim.
const OVERTAKEN: &str = "claim a volume that another host has published meanwhile";

/// Whether a claim failed because what was decided before it is out of date: all of it is to be looked at again.
pub(crate) fn was_overtaken(error: &Error) -> bool {
    matches!(error, Error::Interrupted { operation: OVERTAKEN })
}

/// How the newest record stands to this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No record, or released.
    Free,
    /// This host is the owner, and knows it.
    Ours,
    /// This host is the owner by an epoch that this data root does not know: it was emptied, or is a copy.
    OursBefore,
    /// Another host is.
    Elsewhere { host: String, record: u64 },
}

/// Whether a claim may be taken from another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakeOver {
    /// Never.
    No,
    /// It may: who asks knows that the other host is dead.
    ByName,
    /// As long as this record is the newest: nothing came after it for as long as a claim lasts.
    Lapsed(u64),
}

impl TakeOver {
    /// From the host whose log ends with `record`.
    pub(crate) fn permits(self, record: u64) -> bool {
        self == Self::ByName || self == Self::Lapsed(record)
    }
}

/// Of the newest record seen.
pub(crate) fn standing(volume: &Volume) -> Standing {
    match &volume.state.head {
        Some(Record { owner: Some(owner), record, .. }) => {
            if *owner != volume.host {
                Standing::Elsewhere { host: owner.clone(), record: *record }
            } else if volume.owns() {
                Standing::Ours
            } else {
                Standing::OursBefore
            }
        }
        _ => Standing::Free,
    }
}

/// Makes this host the owner, by the newest record that `volume` has seen. Nothing is put if it is already.
///
/// The epoch is journaled before the record is put: a claim of which nobody here knew would never be given back.
pub(crate) async fn claim(volume: &mut Volume, take_over: TakeOver) -> Result<()> {
    let (former, history) = (volume.state.epoch, history(volume));
    let mut journaled = false;
    let claimed = contend(volume, take_over, &mut journaled).await;
    // After any other error, refused credentials too, a record may have been made: who reads the log next will see. One that
    // was made, and could not be written down again, is known by its epoch.
    let not_made = matches!(&claimed, Err(Error::InUseElsewhere { .. } | Error::Conflict { .. }))
        || claimed.as_ref().is_err_and(was_overtaken);
    if not_made && journaled && !volume.owns() {
        volume.state.epoch = former.filter(|_| self::history(volume) == history);
        volume.save().await?;
    }
    claimed
}

/// Which history the newest record seen is of.
fn history(volume: &Volume) -> Option<String> {
    volume.state.head.as_ref().map(|head| head.volume.clone())
}

async fn contend(volume: &mut Volume, take_over: TakeOver, journaled: &mut bool) -> Result<()> {
    let Some(remote) = volume.remote.clone() else { return Ok(()) };
    for _ in 0..CLAIM_ATTEMPTS {
        match standing(volume) {
            Standing::Ours => return Ok(()),
            Standing::Elsewhere { host, record } if !take_over.permits(record) => {
                return Err(Error::InUseElsewhere { name: volume.name.clone(), host, record });
            }
            _ => {}
        }
        let parent = volume.state.head.as_ref().and_then(|head| head.generation);
        let history = history(volume);
        let mut record = volume.next_record(RecordKind::Claim);
        record.epoch += 1;
        record.owner = Some(volume.host.clone());
        record.lasts_ms = volume.lasts_ms;
        volume.state.epoch = Some(record.epoch);
        *journaled = true;
        volume.save().await?;
        match remote.log.append(&record).await? {
            Append::Won => {
                volume.state.pending.claim = false;
                volume.state.head = Some(record);
                return volume.save().await;
            }
            Append::Lost => {
                let head = volume.head().await?;
                let generation = head.as_ref().and_then(|head| head.generation);
                // Begun anew, it may have as many records.
                let is_another = history.is_some_and(|history| head.is_none_or(|head| head.volume != history));
                // What was decided about the tree here was decided about another generation.
                match generation {
                    Some(remote) if is_another => {
                        let (name, local) = (volume.name.clone(), volume.state.parent);
                        return Err(Error::Conflict { name, local, remote });
                    }
                    Some(_) if generation != parent => return Err(Error::Interrupted { operation: OVERTAKEN }),
                    _ => {}
                }
            }
        }
    }
    Err(Error::Interrupted { operation: "claim a volume that others keep writing to" })
}

/// Gives the claim back, if this host holds it.
pub(crate) async fn release(volume: &mut Volume) -> Result<()> {
    let Some(remote) = volume.remote.clone() else { return Ok(()) };
    for _ in 0..CLAIM_ATTEMPTS {
        if !volume.owns() {
            break;
        }
        let mut record = volume.next_record(RecordKind::Released);
        (record.owner, record.lasts_ms) = (None, None);
        match remote.log.append(&record).await? {
            Append::Won => {
                volume.state.head = Some(record);
                break;
            }
            Append::Lost => drop(volume.head().await?),
        }
    }
    volume.state.epoch = None;
    // Nor is one owed: no writer is left.
    (volume.state.pending.release, volume.state.pending.claim) = (false, false);
    volume.save().await
}
