//! Reads the manifest of a generation, leaf by leaf and in order.

use futures_util::{Stream, StreamExt as _, stream};

use crate::entry::{Entry, Node, Part};
use crate::error::{Error, Result};
use crate::fetch::{Packs, blocking};
use crate::manifest::{LeafRef, decode_leaf, decode_root};
use crate::pack::ChunkRef;
use crate::scan::decode_list;

/// Leaves asked for ahead of the one that is read.
const LEAVES_AHEAD: usize = 8;

/// The leaves that the chunk `root` lists.
pub(crate) async fn leaves(packs: &Packs, root: ChunkRef) -> Result<Vec<LeafRef>> {
    let root = packs.chunk(root).await?;
    blocking("read the manifest", move || decode_root(&root)).await
}

/// The entries of each of these leaves.
pub(crate) fn entries(packs: Packs, leaves: Vec<LeafRef>) -> impl Stream<Item = Result<Vec<Entry>>> + Send {
    let read = move |leaf: LeafRef| {
        let packs = packs.clone();
        async move {
            let leaf = packs.chunk(leaf.chunk).await?;
            blocking("read the manifest", move || decode_leaf(&leaf)).await
        }
    };
    stream::iter(leaves).map(read).buffered(LEAVES_AHEAD)
}

/// Reads the lists of parts of a huge file.
pub(crate) async fn expand(packs: &Packs, entry: &mut Entry) -> Result<()> {
    let Node::File { parts, .. } = &mut entry.node else { return Ok(()) };
    for part in parts {
        let Part::List { chunk, covers, parts } = part else { continue };
        let bytes = packs.chunk(*chunk).await?;
        *parts = decode_list(&bytes)?;
        if parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.covers())) != Some(*covers) {
            return Err(Error::corrupt("list of parts", "does not cover what it should"));
        }
    }
    Ok(())
}

/// The lists of a file's parts, and the chunks of its data that are known.
pub(crate) fn parts(entry: &Entry) -> (Vec<ChunkRef>, Vec<ChunkRef>) {
    let (mut lists, mut data) = (Vec::new(), Vec::new());
    let Node::File { parts, .. } = &entry.node else { return (lists, data) };
    for part in parts {
        match part {
            Part::Hole(_) => {}
            Part::Chunk(chunk) => data.push(*chunk),
            Part::List { chunk, parts, .. } => {
                lists.push(*chunk);
                data.extend(parts.iter().filter_map(|part| match part {
                    Part::Chunk(chunk) => Some(*chunk),
                    _ => None,
                }));
            }
        }
    }
    (lists, data)
}
