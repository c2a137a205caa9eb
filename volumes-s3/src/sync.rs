//! Publishes the tree of this host as the next generation, or as a branch when the claim is lost.

use std::collections::{BTreeSet, HashSet};

use futures_util::{StreamExt as _, stream};
use runtime_core::RecordKind;

use crate::claim::{self, Standing, TakeOver};
use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::log::Append;
use crate::pack::{ChunkRef, PackId, Packer, SealedPack};
use crate::prune::doomed;
use crate::record::TreeSummary;
use crate::scan::{Scanned, scan};
use crate::scan_record::RecordReader;
use crate::state::{Commit, remove_file};
use crate::uploads::Uploads;
use crate::volume::{Remote, Volume};

/// Packs sent at once. With the one being filled and one waiting, 80 MiB.
const UPLOADS: usize = 3;
/// How often a number is lost to another writer's record before a sync gives up; each loss is somebody's progress.
const APPEND_ATTEMPTS: u32 = 64;

/// Brings the tree to S3, by the newest record that `volume` has seen. Ok: it is a generation of the main line, or unchanged since one.
pub(crate) async fn publish(volume: &mut Volume) -> Result<()> {
    let Some(remote) = volume.remote.clone() else { return Ok(()) };
    let believed = volume.state.epoch.is_some();
    let mut line = line(volume);
    if line == Line::Unclaimed {
        let may_differ = volume.state.has_writer() || volume.state.tree.is_none() || volume.state.went_back();
        if !may_differ && !volume.has_changes().await? {
            return Ok(());
        }
        claim::claim(volume, TakeOver::No).await?;
        line = Line::Main;
    }
    if line == Line::Branch && is_past(volume, &remote).await? {
        // It is nowhere in S3, and is not brought there again.
        return Err(fenced(volume, None));
    }
    let mut uploaded = upload(volume, &remote).await?;
    for _ in 0..APPEND_ATTEMPTS {
        if history(volume) != uploaded.history {
            // It was looked at what an earlier prune had decided, or refers to what went with another history.
            uploaded = upload(volume, &remote).await?;
        }
        let root = uploaded.scanned.root.digest.to_string();
        let known = volume.state.tree.clone().filter(|tree| tree.root == root);
        let kind = match (line, &known) {
            (Line::Main, Some(tree)) if Some(tree.record) == volume.state.parent => {
                return uploaded.keep_scan(volume).await;
            }
            (Line::Branch, Some(tree)) => {
                let branch = tree.branch.then_some(tree.record);
                uploaded.keep_scan(volume).await?;
                let told = believed || branch.is_some() || volume.state.went_back();
                return if told { Err(fenced(volume, branch)) } else { Ok(()) };
            }
            (Line::Branch, None) => RecordKind::Branch,
            (Line::Main | Line::Unclaimed, _) => RecordKind::Data,
        };
        match volume.commit(uploaded.commit(volume, kind)).await? {
            Append::Won if kind == RecordKind::Data => return Ok(()),
            Append::Won => {
                let branch = volume.state.tree.as_ref().map(|tree| tree.record);
                return Err(fenced(volume, branch));
            }
            Append::Lost => {
                volume.head().await?;
                line = self::line(volume);
                if line == Line::Unclaimed {
                    line = Line::Branch;
                }
            }
        }
    }
    Err(Error::Interrupted { operation: "append to a log that others keep writing to" })
}

/// Where the next record of this host's tree belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// The claim is held, and nobody has published since.
    Main,
    /// The claim is lost, or never was held and somebody else holds it or has gone on.
    Branch,
    /// No claim was held, and none stands against this tree.
    Unclaimed,
}

fn line(volume: &Volume) -> Line {
    let head = volume.state.head.as_ref();
    let follows = head.and_then(|head| head.generation) == volume.state.parent;
    match claim::standing(volume) {
        Standing::Ours if follows => Line::Main,
        Standing::Free | Standing::OursBefore if follows && volume.state.epoch.is_none() => Line::Unclaimed,
        // Released by us, or taken over and released since: nobody stands against it as long as nothing was published.
        Standing::Free if follows => Line::Unclaimed,
        _ => Line::Branch,
    }
}

fn fenced(volume: &mut Volume, branch: Option<u64>) -> Error {
    // The claim may be one that this host has made since, for a newer tree which it does not have.
    if !volume.owns() {
        (volume.state.epoch, volume.state.held) = (None, false);
    }
    volume.state.pending.claim = false;
    let head = volume.state.head.as_ref();
    let owner = head.and_then(|head| head.owner.clone()).filter(|owner| *owner != volume.host);
    Error::Fenced { name: volume.name.clone(), owner, branch }
}

/// Whether the tree here is a generation that retention has let go, unchanged.
async fn is_past(volume: &Volume, remote: &Remote) -> Result<bool> {
    let (Some(head), Some(tree)) = (&volume.state.head, &volume.state.tree) else { return Ok(false) };
    Ok(!remote.still_has(head, tree.record).await? && !volume.has_changes().await?)
}

/// The history, and its newest prune, as far as the log has been read.
fn history(volume: &Volume) -> Option<(String, Option<u64>)> {
    volume.state.head.as_ref().map(|head| (head.volume.clone(), head.pruned))
}

/// A tree whose chunks are all in the bucket, and stay there as far as the history and the prune go that were the newest.
struct Uploaded {
    scanned: Scanned,
    history: Option<(String, Option<u64>)>,
    /// Packs that no generation reaches yet.
    packs: BTreeSet<String>,
}

impl Uploaded {
    /// Nothing changed: the new scan record knows it better than the old one.
    async fn keep_scan(&self, volume: &Volume) -> Result<()> {
        let paths = volume.paths.clone();
        blocking("keep the scan record", move || {
            std::fs::rename(paths.new_scan(), paths.scan())
                .map_err(|error| Error::io("rename", paths.new_scan(), error))?;
            remove_file(&paths.uploads())
        })
        .await
    }

    fn commit(&self, volume: &Volume, kind: RecordKind) -> Commit {
        let mut record = volume.next_record(kind);
        if kind == RecordKind::Data {
            record.generation = Some(record.record);
        }
        record.tree = Some(TreeSummary {
            parent: match &volume.state.tree {
                Some(tree) if kind == RecordKind::Branch => Some(tree.record),
                _ => volume.state.parent,
            },
            root: self.scanned.root,
            entries: self.scanned.entries,
            files: self.scanned.files,
            size_bytes: self.scanned.size_bytes,
            new_bytes: self.scanned.new_bytes,
            torn: self.scanned.torn,
        });
        Commit { record, packs: self.packs.iter().cloned().collect() }
    }
}

/// What an earlier, interrupted upload brought there, if it still is, and stays.
async fn resume(volume: &Volume, remote: &Remote) -> Result<(Uploads, Vec<ChunkRef>)> {
    let (path, lineage) = (volume.paths.uploads(), volume.state.lineage());
    let open = move || Uploads::open(&path, lineage);
    let (uploads, arrived) = blocking("read what arrived", open.clone()).await?;
    let packs: HashSet<PackId> = arrived.iter().map(|chunk| chunk.pack).collect();
    let going = match &volume.state.head {
        Some(head) if !packs.is_empty() => doomed(remote, head, &packs).await?,
        _ => false,
    };
    let gone = match remote.packs.check(packs.into_iter().collect()).await {
        Err(Error::Corrupt { .. }) => true,
        checked => checked.map(|()| false)?,
    };
    if !going && !gone {
        return Ok((uploads, arrived));
    }
    tracing::debug!(volume = volume.name, "what an earlier sync brought to S3 was pruned");
    let path = volume.paths.uploads();
    blocking("forget what arrived", move || remove_file(&path).and_then(|()| open())).await
}

/// The record of the tree, if the generation that it is of is there and stays.
async fn base(volume: &Volume, remote: &Remote) -> Result<Option<RecordReader>> {
    if let (Some(head), Some(tree)) = (&volume.state.head, &volume.state.tree)
        && !remote.still_has(head, tree.record).await?
    {
        tracing::debug!(volume = volume.name, generation = tree.record, "pruned: all of it is sent again");
        return Ok(None);
    }
    volume.scan_record()
}

/// Scans, and sends what the bucket does not have. Scan, hashing and compression run beside the uploads.
async fn upload(volume: &Volume, remote: &Remote) -> Result<Uploaded> {
    let lineage = volume.state.lineage();
    let (mut uploads, arrived) = resume(volume, remote).await?;
    let resumed: BTreeSet<_> = arrived.iter().map(|chunk| chunk.pack.to_string()).collect();

    let epoch = volume.state.head.as_ref().map_or(0, |head| head.epoch);
    let (data, record, old, hold) =
        (volume.paths.data(), volume.paths.new_scan(), base(volume, remote).await?, volume.hold());
    let (sender, receiver) = tokio::sync::mpsc::channel::<SealedPack>(1);
    let scanning = tokio::task::spawn_blocking(move || {
        let seal = |pack| sender.blocking_send(pack).map_err(|_| Error::Interrupted { operation: "upload" });
        let mut packer = Packer::new(epoch, seal)?;
        arrived.into_iter().for_each(|chunk| packer.know(chunk));
        let scanned = scan(&data, old, packer, &record, lineage);
        drop(hold);
        scanned
    });

    let mut packs = resumed;
    let sent = async {
        let sealed =
            stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|pack| (pack, receiver)) });
        let mut sending = std::pin::pin!(
            sealed
                .map(|pack| async move {
                    remote.store.put(&remote.packs.key(pack.id), pack.bytes).await.map(|()| (pack.id, pack.chunks))
                })
                .buffer_unordered(UPLOADS)
        );
        while let Some(pack) = sending.next().await {
            let (id, chunks) = pack?;
            packs.insert(id.to_string());
            uploads = blocking("note what arrived", move || uploads.add(&chunks).map(|()| uploads)).await?;
        }
        Ok(())
    }
    .await;
    // The scan ends when nobody takes its packs any more; it is waited for, since it writes the new record.
    let scanned = scanning.await.map_err(|_| Error::Interrupted { operation: "scan" })?;
    sent?;
    if let Ok(Scanned { entries, read_bytes, new_bytes, .. }) = &scanned {
        tracing::debug!(volume = volume.name, entries, read_bytes, new_bytes, "scanned");
    }
    Ok(Uploaded { scanned: scanned?, history: history(volume), packs })
}
