//! Whether the bucket still has what a local copy is a copy of.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::fetch::blocking;
use crate::generation::parts;
use crate::pack::PackId;
use crate::reach::reached;
use crate::restoration::summary;
use crate::scan_record::RecordReader;
use crate::store::VolumeStore;
use crate::volume::{Remote, Volume};

impl VolumeStore {
    /// Refuses while the bucket lacks a pack that the newest generation reaches, or the branch that the tree here is: the tree
    /// may be the only copy of what is in it. The packs are listed. Of an older tree the manifest of the newest is read, too.
    pub(crate) async fn refuse_lost_packs(&self, volume: &Volume) -> Result<()> {
        let (Some(remote), Some(tree)) = (&volume.remote, &volume.state.tree) else { return Ok(()) };
        let newest = volume.state.head.as_ref().and_then(|head| head.generation);
        let mut needed = HashSet::new();
        if tree.branch || newest == Some(tree.record) {
            match volume.scan_record()? {
                Some(record) => needed.extend(blocking("read the scan record", move || recorded(record)).await?),
                None => needed.extend(self.reached(volume, remote, tree.record).await?),
            }
        }
        if let Some(generation) = newest.filter(|generation| *generation != tree.record) {
            needed.extend(self.reached(volume, remote, generation).await?);
        }
        check(remote, needed).await
    }

    async fn reached(&self, volume: &Volume, remote: &Remote, generation: u64) -> Result<HashSet<PackId>> {
        let record = self.tree_record(volume, generation).await?;
        reached(&remote.packs, &[summary(&record)?.root]).await
    }
}

/// The packs that the tree of `record` is made of.
fn recorded(mut record: RecordReader) -> Result<HashSet<PackId>> {
    let mut found: HashSet<PackId> = record.manifest.iter().map(|chunk| chunk.pack).collect();
    while let Some(seen) = record.next()? {
        let (lists, data) = parts(&seen.entry);
        found.extend(lists.iter().chain(&data).map(|chunk| chunk.pack));
    }
    Ok(found)
}

/// Lists the packs until all that are `needed` were seen.
async fn check(remote: &Remote, mut needed: HashSet<PackId>) -> Result<()> {
    let prefix = format!("{}packs/", remote.prefix);
    let mut after: Option<String> = None;
    while !needed.is_empty() {
        let page = remote.store.list(&prefix, after.as_deref()).await?;
        for object in page.iter().filter(|object| object.size > 0) {
            if let Ok(pack) = object.name().parse::<PackId>() {
                needed.remove(&pack);
            }
        }
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
    }
    needed.into_iter().next().map_or(Ok(()), |pack| Err(Error::corrupt(remote.packs.key(pack), "is gone")))
}
