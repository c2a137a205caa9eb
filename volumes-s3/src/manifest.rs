//! The manifest of a generation: the tree's entries in order, cut into leaves, and a root that lists them.
//!
//! Leaves are cut by the paths of entries, so that one change makes one new leaf; they are chunks in packs like any
//! other. The root is a chunk as well; its reference stands in the record.

use crate::codec::{Reader, put_bytes, put_uint};
use crate::entry::{Entry, Lists, PackTable, decode_chunk, encode_chunk, tree_order};
use crate::error::{Error, Result};
use crate::pack::{CHUNK_LIMIT, ChunkRef, Codec, Digest, PackId};

/// First bytes of a leaf.
const LEAF_MAGIC: &[u8; 4] = b"BVL1";
/// First bytes of a root.
const ROOT_MAGIC: &[u8; 4] = b"BVR1";
/// A leaf is not ended before it has this many bytes.
const LEAF_MIN: usize = 8 << 10;
/// A leaf is ended when it has this many, wherever that is.
const LEAF_MAX: usize = 256 << 10;
/// In between it ends before an entry whose path's hash has these bits clear: one in 512, some 40 KiB of small files.
const LEAF_MASK: u64 = 511;
/// A leaf is ended before the paths in it, each whole, take more than this: a reader holds them so.
const LEAF_PATHS_MAX: usize = 4 << 20;
/// More than this no reader takes: the most that a leaf of short entries beneath one path of 4,095 bytes may have.
const LEAF_PATHS_LIMIT: usize = 128 << 20;
/// Bytes of the first path of a leaf that the root keeps. It is there for people.
const FIRST_PATH_BYTES: usize = 1 << 10;
/// Longest bytes of one entry: a leaf with it still is a chunk.
const ENTRY_LIMIT: usize = CHUNK_LIMIT - LEAF_MAX - (1 << 10);

/// A leaf as the root lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeafRef {
    /// Where it is.
    pub chunk: ChunkRef,
    /// Path of its first entry, or the beginning of it.
    pub first: Vec<u8>,
    /// Number of its entries.
    pub entries: u64,
}

/// Builds leaves from entries in tree order.
#[derive(Debug, Default)]
pub(crate) struct LeafBuilder {
    body: Vec<u8>,
    packs: PackTable,
    previous: Vec<u8>,
    first: Vec<u8>,
    entries: u64,
    /// Bytes of all paths.
    paths: usize,
    scratch: Vec<u8>,
}

/// The bytes of a leaf that is ended.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub bytes: Vec<u8>,
    pub first: Vec<u8>,
    pub entries: u64,
}

impl LeafBuilder {
    /// Adds an entry; a leaf, if it ends before this entry.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<Option<Leaf>> {
        let ends = self.entries > 0
            && (self.body.len() >= LEAF_MAX
                || self.paths + entry.path.len() > LEAF_PATHS_MAX
                || self.body.len() >= LEAF_MIN && path_hash(&entry.path) & LEAF_MASK == 0);
        let ended = if ends { self.end() } else { None };
        if self.entries == 0 {
            self.first.clear();
            self.first.extend_from_slice(&entry.path[..entry.path.len().min(FIRST_PATH_BYTES)]);
        }
        self.scratch.clear();
        entry.encode(&mut self.scratch, &self.previous, &mut self.packs, Lists::InChunks);
        if self.scratch.len() + self.packs.ids.len() * size_of::<PackId>() > ENTRY_LIMIT {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            return Err(Error::Unsupported { what: format!("{path}: an entry of {} bytes", self.scratch.len()) });
        }
        self.body.extend_from_slice(&self.scratch);
        self.previous.clone_from(&entry.path);
        self.paths += entry.path.len();
        self.entries += 1;
        Ok(ended)
    }

    /// Ends the leaf that is being built, if it has entries.
    pub(crate) fn end(&mut self) -> Option<Leaf> {
        let Self { body, packs, first, entries, .. } = std::mem::take(self);
        if entries == 0 {
            return None;
        }
        let mut bytes = Vec::with_capacity(body.len() + 64);
        bytes.extend_from_slice(LEAF_MAGIC);
        packs.encode(0, &mut bytes);
        put_uint(&mut bytes, entries);
        bytes.extend_from_slice(&body);
        Some(Leaf { bytes, first, entries })
    }
}

/// The entries of a leaf. Order is checked; whether parents exist is the reader's to check.
pub(crate) fn decode_leaf(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut reader = Reader::new("leaf of a manifest", bytes);
    if reader.array()? != *LEAF_MAGIC {
        return Err(reader.error("it begins as no leaf does"));
    }
    let mut packs = PackTable::default();
    packs.decode(&mut reader)?;
    let count = reader.count()?;
    let mut entries: Vec<Entry> = Vec::with_capacity(count.min(LEAF_MAX));
    let mut paths = 0;
    for _ in 0..count {
        let previous = entries.last().map_or(&[][..], |entry| &entry.path);
        let entry = Entry::decode(&mut reader, previous, &packs, Lists::InChunks)?;
        if !entries.is_empty() && tree_order(previous, &entry.path).is_ge() {
            return Err(reader.error("entries out of order"));
        }
        paths += entry.path.len();
        if paths > LEAF_PATHS_LIMIT {
            return Err(reader.error("longer paths than a leaf may have"));
        }
        entries.push(entry);
    }
    if reader.is_empty() { Ok(entries) } else { Err(reader.error("more bytes than entries")) }
}

/// The bytes of the root.
pub(crate) fn encode_root(leaves: &[LeafRef]) -> Result<Vec<u8>> {
    let (mut packs, mut body) = (PackTable::default(), Vec::new());
    for leaf in leaves {
        body.push(u8::from(leaf.chunk.codec == Codec::Zstd));
        encode_chunk(&leaf.chunk, &mut body, &mut packs);
        put_bytes(&mut body, &leaf.first);
        put_uint(&mut body, leaf.entries);
    }
    let mut bytes = ROOT_MAGIC.to_vec();
    packs.encode(0, &mut bytes);
    put_uint(&mut bytes, leaves.len() as u64);
    bytes.extend_from_slice(&body);
    // About 40,000 leaves, some 30 million small files.
    if bytes.len() > CHUNK_LIMIT {
        return Err(Error::Unsupported { what: format!("a tree of {} leaves", leaves.len()) });
    }
    Ok(bytes)
}

/// The leaves that a root lists.
pub(crate) fn decode_root(bytes: &[u8]) -> Result<Vec<LeafRef>> {
    let mut reader = Reader::new("root of a manifest", bytes);
    if reader.array()? != *ROOT_MAGIC {
        return Err(reader.error("it begins as no root does"));
    }
    let mut packs = PackTable::default();
    packs.decode(&mut reader)?;
    let count = reader.count()?;
    let mut leaves = Vec::with_capacity(count.min(1 << 16));
    for _ in 0..count {
        let codec = if reader.byte()? == 0 { Codec::Raw } else { Codec::Zstd };
        let chunk = decode_chunk(&mut reader, &packs, codec)?;
        leaves.push(LeafRef { chunk, first: reader.bytes()?.to_vec(), entries: reader.uint()? });
    }
    if reader.is_empty() { Ok(leaves) } else { Err(reader.error("more bytes than leaves")) }
}

fn path_hash(path: &[u8]) -> u64 {
    let Digest(digest) = Digest::of(path);
    digest[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::{Node, Part, Time};

    fn chunk(seed: u8) -> ChunkRef {
        let pack = PackId { epoch: seed.into(), random: [seed; 16] };
        ChunkRef { digest: Digest([seed; 32]), pack, offset: 9, stored: 10, length: 10, codec: Codec::Raw }
    }

    fn entry(path: impl Into<Vec<u8>>, node: Node) -> Entry {
        let mtime = Time { seconds: -5, nanoseconds: 999_999_999 };
        let xattrs = vec![(b"user.a".to_vec(), vec![0, 255])];
        Entry { path: path.into(), mode: 0o4755, uid: 1 << 20, gid: 7, mtime, xattrs, node }
    }

    fn leaves(entries: &[Entry]) -> Vec<Vec<u8>> {
        let mut builder = LeafBuilder::default();
        let mut leaves = Vec::new();
        for entry in entries {
            leaves.extend(builder.add(entry).unwrap());
        }
        leaves.extend(builder.end());
        leaves.into_iter().map(|leaf| leaf.bytes).collect()
    }

    fn file(number: usize) -> Entry {
        let parts = vec![Part::Chunk(chunk(number as u8)), Part::Hole(90)];
        entry(format!("d/{number:06}"), Node::File { size: 100, parts, torn: false })
    }

    #[test]
    fn every_kind_comes_back() {
        let parts =
            vec![Part::Hole(5), Part::Chunk(chunk(1)), Part::List { chunk: chunk(2), covers: 85, parts: Vec::new() }];
        let entries = vec![
            entry("", Node::Directory),
            entry("a", Node::File { size: 100, parts, torn: true }),
            entry("a/x", Node::Fifo),
            entry("a-b", Node::Symlink(b"../\xff".to_vec())),
            entry(b"b\xff".to_vec(), Node::Socket),
            entry("c", Node::CharDevice { major: 1, minor: 3 }),
            entry("d", Node::BlockDevice { major: 8, minor: 1 << 19 }),
            Entry {
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: Time::default(),
                xattrs: vec![],
                ..entry("e", Node::HardLink(b"a".to_vec()))
            },
        ];
        let leaves = leaves(&entries);
        assert_eq!(leaves.len(), 1);
        assert_eq!(decode_leaf(&leaves[0]).unwrap(), entries);
    }

    #[test]
    fn one_change_makes_one_new_leaf() {
        let mut entries: Vec<_> = (0..20_000).map(file).collect();
        let before = leaves(&entries);
        entries[10_000] = entry(entries[10_000].path.clone(), Node::Fifo);
        entries.remove(5_000);
        entries.insert(15_000, entry("d/015000x", Node::Fifo));
        let after = leaves(&entries);
        let new = after.iter().filter(|leaf| !before.contains(leaf)).count();
        assert!(before.len() > 20 && new <= 6, "{new} of {} leaves", after.len());
        let read: Vec<_> = after.iter().flat_map(|leaf| decode_leaf(leaf).unwrap()).collect();
        assert_eq!(read, entries);
    }

    #[test]
    fn a_root_comes_back() {
        let leaves: Vec<_> = (0..300u64)
            .map(|number| LeafRef {
                chunk: chunk(number as u8),
                first: number.to_string().into_bytes(),
                entries: number,
            })
            .collect();
        assert_eq!(decode_root(&encode_root(&leaves).unwrap()).unwrap(), leaves);
    }

    #[test]
    fn a_path_that_leaves_the_tree_is_refused() {
        for path in ["..", "../x", "a/../b", "/a", "a//b", "a/", ".", "a\0"] {
            let leaf = leaves(&[entry(path, Node::Fifo)]).remove(0);
            assert_eq!(decode_leaf(&leaf).unwrap_err().code(), "volume.corrupt", "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(position: prop::sample::Index, value: u8, cut: prop::sample::Index) {
            let entries: Vec<_> = (0..50).map(file).collect();
            let mut bytes = leaves(&entries).remove(0);
            let position = position.index(bytes.len());
            bytes[position] = value;
            let _ = decode_leaf(&bytes);
            let _ = decode_leaf(&bytes[..cut.index(bytes.len())]);
            let _ = decode_root(&bytes);
        }
    }
}
