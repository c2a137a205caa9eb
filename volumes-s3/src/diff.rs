//! What changed from one generation to another, by their manifests: no file is read.

use std::cmp::Ordering;
use std::collections::{HashSet, VecDeque};
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use runtime_core::{Change, DiffEntry};

use crate::entry::{Entry, Node, Part, tree_order};
use crate::error::{Error, Result};
use crate::fetch::Packs;
use crate::generation::{entries, expand, leaves};
use crate::manifest::LeafRef;
use crate::pack::{ChunkRef, Digest};
use crate::store::VolumeStore;
use crate::walk::display;

impl VolumeStore {
    /// What changed from generation `old` to generation `new`, in the order of the tree.
    ///
    /// # Errors
    /// [`Error::GenerationNotFound`], [`Error::NoBucket`], [`Error::S3Unreachable`], [`Error::Corrupt`].
    pub async fn diff(&self, name: &str, old: u64, new: u64) -> Result<Vec<DiffEntry>> {
        let remote = self.remote(name, "a comparison").await?;
        let root = async |generation| {
            let record = remote.tree(generation).await?;
            let missing = || Error::GenerationNotFound { name: name.to_owned(), generation };
            record.and_then(|record| record.tree).map(|tree| tree.root).ok_or_else(missing)
        };
        let roots = (root(old).await?, root(new).await?);
        let mut found = Vec::new();
        let compared = compare(&remote.packs, roots.0, roots.1, |entry| found.push(entry)).await;
        let compared = remote.or_pruned(name, old, compared).await;
        remote.or_pruned(name, new, compared).await.map(|()| found)
    }
}

/// Tells what changed from the tree with root `old` to that with root `new`, in the order of the tree.
pub(crate) async fn compare(
    packs: &Packs,
    old: ChunkRef,
    new: ChunkRef,
    mut tell: impl FnMut(DiffEntry) + Send,
) -> Result<()> {
    if old.digest == new.digest {
        return Ok(());
    }
    let (old, new) = (leaves(packs, old).await?, leaves(packs, new).await?);
    // A leaf that both have is the same in both.
    let digests = |leaves: &[LeafRef]| leaves.iter().map(|leaf| leaf.chunk.digest).collect::<HashSet<_>>();
    let (of_old, of_new) = (digests(&old), digests(&new));
    let without = |leaves: Vec<LeafRef>, other: &HashSet<Digest>| {
        let own = leaves.into_iter().filter(|leaf| !other.contains(&leaf.chunk.digest)).collect();
        Side { leaves: Box::pin(entries(packs.clone(), own)), ready: VecDeque::new() }
    };
    let (mut old, mut new) = (without(old, &of_new), without(new, &of_old));
    loop {
        let order = match (old.peek().await?, new.peek().await?) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => tree_order(&old.path, &new.path),
        };
        let older = if order.is_le() { old.ready.pop_front() } else { None };
        let newer = if order.is_ge() { new.ready.pop_front() } else { None };
        let change = match (&older, &newer) {
            (Some(older), Some(newer)) => change(packs, older, newer).await?,
            (Some(_), None) => Some(Change::Removed),
            _ => Some(Change::Added),
        };
        if let (Some(change), Some(entry)) = (change, newer.as_ref().or(older.as_ref())) {
            tell(DiffEntry {
                path: display(&entry.path).to_string_lossy().into_owned(),
                change,
                old_size_bytes: older.as_ref().and_then(size),
                new_size_bytes: newer.as_ref().and_then(size),
            });
        }
    }
}

/// The entries of one tree, in order.
struct Side {
    leaves: Pin<Box<dyn Stream<Item = Result<Vec<Entry>>> + Send>>,
    ready: VecDeque<Entry>,
}

impl Side {
    async fn peek(&mut self) -> Result<Option<&Entry>> {
        while self.ready.is_empty() {
            match self.leaves.next().await {
                Some(entries) => self.ready = entries?.into(),
                None => return Ok(None),
            }
        }
        Ok(self.ready.front())
    }
}

async fn change(packs: &Packs, old: &Entry, new: &Entry) -> Result<Option<Change>> {
    let same_content = match (&old.node, &new.node) {
        (Node::File { size, parts, .. }, Node::File { size: new_size, parts: new_parts, .. }) => {
            size == new_size && (data(parts) == data(new_parts) || same_lists(packs, old, new).await?)
        }
        (old, new) => old == new,
    };
    if !same_content {
        return Ok(Some(Change::Content));
    }
    let timeless = matches!(new.node, Node::Directory);
    let attributes = |entry: &Entry| (entry.mode, entry.uid, entry.gid);
    let same = attributes(old) == attributes(new) && old.xattrs == new.xattrs && (timeless || old.mtime == new.mtime);
    Ok((!same).then_some(Change::Attributes))
}

/// Where a chunk lies, and so the digest of a list of chunks, tells nothing of the data.
async fn same_lists(packs: &Packs, old: &Entry, new: &Entry) -> Result<bool> {
    let has_lists = |entry: &Entry| match &entry.node {
        Node::File { parts, .. } => parts.iter().any(|part| matches!(part, Part::List { .. })),
        _ => false,
    };
    if !has_lists(old) || !has_lists(new) {
        return Ok(false);
    }
    let (mut old, mut new) = (old.clone(), new.clone());
    expand(packs, &mut old).await?;
    expand(packs, &mut new).await?;
    Ok(match (&old.node, &new.node) {
        (Node::File { parts: old, .. }, Node::File { parts: new, .. }) => data(old) == data(new),
        _ => false,
    })
}

/// Digest and length of each piece; holes have no digest.
fn data(parts: &[Part]) -> Vec<(Option<Digest>, u64)> {
    let mut pieces = Vec::new();
    for part in parts {
        match part {
            Part::Hole(length) => pieces.push((None, *length)),
            Part::Chunk(chunk) => pieces.push((Some(chunk.digest), chunk.length.into())),
            Part::List { chunk, covers, parts } if parts.is_empty() => pieces.push((Some(chunk.digest), *covers)),
            Part::List { parts, .. } => pieces.extend(data(parts)),
        }
    }
    pieces
}

fn size(entry: &Entry) -> Option<u64> {
    match entry.node {
        Node::File { size, .. } => Some(size),
        _ => None,
    }
}
