//! Which packs trees are made of.

use std::collections::HashSet;

use futures_util::StreamExt as _;

use crate::error::Result;
use crate::fetch::Packs;
use crate::generation::{entries, expand, leaves, parts};
use crate::pack::{ChunkRef, PackId};

/// The packs without which some of the trees with these roots could not be restored. A leaf that several share is read
/// once.
pub(crate) async fn reached(packs: &Packs, roots: &[ChunkRef]) -> Result<HashSet<PackId>> {
    let mut found = HashSet::new();
    let mut seen = HashSet::new();
    for root in roots {
        found.insert(root.pack);
        let mut leaves = leaves(packs, *root).await?;
        found.extend(leaves.iter().map(|leaf| leaf.chunk.pack));
        leaves.retain(|leaf| seen.insert((leaf.chunk.digest, leaf.chunk.pack)));
        let mut leaves = std::pin::pin!(entries(packs.clone(), leaves));
        while let Some(entries) = leaves.next().await {
            for mut entry in entries? {
                expand(packs, &mut entry).await?;
                let (lists, data) = parts(&entry);
                found.extend(lists.iter().chain(&data).map(|chunk| chunk.pack));
            }
        }
    }
    Ok(found)
}
