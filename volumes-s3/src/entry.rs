//! One thing in a tree, and its bytes in the manifest and in a host's scan record.

use std::collections::HashMap;

use crate::attributes::Attributes;
use crate::codec::{Reader, put_bytes, put_int, put_uint};
use crate::error::Result;
use crate::pack::{ChunkRef, Codec, Digest, PackId};

/// Longest path within a tree. System calls take a 16th of it at once, but a program that goes from directory to directory
/// can make longer ones, and is to find them again. Paths are held in memory, so there is an end.
pub(crate) const PATH_LIMIT: usize = 64 << 10;
/// Longest name of one thing.
const NAME_LIMIT: usize = 255;

/// One thing in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From the root, without a leading `/`; empty for the root itself. Any bytes but NUL.
    pub path: Vec<u8>,
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// In the order of their names.
    pub xattrs: Attributes,
    pub node: Node,
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File {
        size: u64,
        parts: Vec<Part>,
        /// It was still changing after several reads.
        torn: bool,
    },
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    /// Another name of the file at this path, which comes earlier in the tree.
    HardLink(Vec<u8>),
}

/// A piece of a file. Pieces follow one another without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// So many bytes that are not on disk.
    Hole(u64),
    /// A chunk of data.
    Chunk(ChunkRef),
    /// A chunk that holds the parts of a stretch of a huge file.
    List {
        chunk: ChunkRef,
        /// Bytes of the file that it covers.
        covers: u64,
        /// The parts themselves; kept in a scan record, empty when read from a manifest.
        parts: Vec<Part>,
    },
}

impl Part {
    /// Bytes of the file that it covers.
    pub(crate) fn covers(&self) -> u64 {
        match self {
            Self::Hole(length) => *length,
            Self::Chunk(chunk) => u64::from(chunk.length),
            Self::List { covers, .. } => *covers,
        }
    }
}

/// Names of packs, each written once and referred to by its number.
#[derive(Debug, Default)]
pub(crate) struct PackTable {
    pub ids: Vec<PackId>,
    numbers: HashMap<PackId, u64>,
}

impl PackTable {
    fn number(&mut self, id: PackId) -> u64 {
        *self.numbers.entry(id).or_insert_with(|| {
            self.ids.push(id);
            self.ids.len() as u64 - 1
        })
    }

    /// Appends a pack that was read.
    pub(crate) fn push(&mut self, id: PackId) {
        self.numbers.insert(id, self.ids.len() as u64);
        self.ids.push(id);
    }

    /// Appends the names from `from` on.
    pub(crate) fn encode(&self, from: usize, out: &mut Vec<u8>) {
        put_uint(out, (self.ids.len() - from) as u64);
        for id in &self.ids[from..] {
            out.extend_from_slice(&id.epoch.to_le_bytes());
            out.extend_from_slice(&id.random);
        }
    }

    /// Reads names and appends them.
    pub(crate) fn decode(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        for _ in 0..reader.count()? {
            self.push(PackId { epoch: u64::from_le_bytes(reader.array()?), random: reader.array()? });
        }
        Ok(())
    }
}

/// Whether the parts inside a [`Part::List`] are written as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    /// As in the manifest: they are in the chunk.
    InChunks,
    /// As in a scan record.
    Inline,
}

const KIND_DIRECTORY: u8 = 0;
const KIND_FILE: u8 = 1;
const KIND_SYMLINK: u8 = 2;
const KIND_FIFO: u8 = 3;
const KIND_SOCKET: u8 = 4;
const KIND_CHAR_DEVICE: u8 = 5;
const KIND_BLOCK_DEVICE: u8 = 6;
const KIND_HARD_LINK: u8 = 7;
const PART_HOLE: u8 = 0;
const PART_RAW: u8 = 1;
const PART_ZSTD: u8 = 2;
const PART_LIST_RAW: u8 = 3;
const PART_LIST_ZSTD: u8 = 4;
const FLAG_TORN: u8 = 1;

impl Entry {
    /// Appends the entry; `previous` is the path before it, of which only the difference is written.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, previous: &[u8], packs: &mut PackTable, lists: Lists) {
        let shared = common_prefix(&self.path, previous);
        put_uint(out, shared as u64);
        put_bytes(out, &self.path[shared..]);
        out.push(match self.node {
            Node::Directory => KIND_DIRECTORY,
            Node::File { .. } => KIND_FILE,
            Node::Symlink(_) => KIND_SYMLINK,
            Node::Fifo => KIND_FIFO,
            Node::Socket => KIND_SOCKET,
            Node::CharDevice { .. } => KIND_CHAR_DEVICE,
            Node::BlockDevice { .. } => KIND_BLOCK_DEVICE,
            Node::HardLink(_) => KIND_HARD_LINK,
        });
        if let Node::HardLink(target) = &self.node {
            put_bytes(out, target);
            return;
        }
        put_uint(out, self.mode.into());
        put_uint(out, self.uid.into());
        put_uint(out, self.gid.into());
        put_int(out, self.mtime.seconds);
        put_uint(out, self.mtime.nanoseconds.into());
        put_uint(out, self.xattrs.len() as u64);
        for (name, value) in &self.xattrs {
            put_bytes(out, name);
            put_bytes(out, value);
        }
        match &self.node {
            Node::File { size, parts, torn } => {
                out.push(if *torn { FLAG_TORN } else { 0 });
                put_uint(out, *size);
                encode_parts(parts, out, packs, lists);
            }
            Node::Symlink(target) => put_bytes(out, target),
            Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                put_uint(out, (*major).into());
                put_uint(out, (*minor).into());
            }
            Node::Directory | Node::Fifo | Node::Socket | Node::HardLink(_) => {}
        }
    }

    /// Reads an entry.
    pub(crate) fn decode(reader: &mut Reader<'_>, previous: &[u8], packs: &PackTable, lists: Lists) -> Result<Self> {
        let shared = reader.uint()? as usize;
        let suffix = reader.bytes()?;
        let prefix = previous.get(..shared).ok_or_else(|| reader.error("shares more than there is"))?;
        let path = [prefix, suffix].concat();
        // What it shares with a path that was checked need not be, but for the name that it ends in.
        let checked = prefix.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        if path.len() > PATH_LIMIT || !is_tree_path(&path[checked..]) || path.ends_with(b"/") {
            return Err(reader.error("a path that leaves the tree"));
        }
        let kind = reader.byte()?;
        let mut entry =
            Self { path, mode: 0, uid: 0, gid: 0, mtime: Time::default(), xattrs: vec![], node: Node::Directory };
        if kind == KIND_HARD_LINK {
            let target = reader.bytes()?.to_vec();
            if target.is_empty() || !is_tree_path(&target) {
                return Err(reader.error("a link that leaves the tree"));
            }
            entry.node = Node::HardLink(target);
            return Ok(entry);
        }
        entry.mode = reader.uint32()? & 0o7777;
        entry.uid = reader.uint32()?;
        entry.gid = reader.uint32()?;
        entry.mtime = Time { seconds: reader.int()?, nanoseconds: reader.uint32()? };
        if entry.mtime.nanoseconds >= 1_000_000_000 {
            return Err(reader.error("more nanoseconds than a second has"));
        }
        for _ in 0..reader.count()? {
            entry.xattrs.push((reader.bytes()?.to_vec(), reader.bytes()?.to_vec()));
        }
        entry.node = match kind {
            KIND_DIRECTORY => Node::Directory,
            KIND_FILE => {
                let torn = reader.byte()? & FLAG_TORN != 0;
                let size = reader.uint()?;
                let parts = decode_parts(reader, packs, lists)?;
                let covered = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.covers()));
                if covered != Some(size) || size > i64::MAX as u64 {
                    return Err(reader.error("parts that are not the file's size"));
                }
                Node::File { size, parts, torn }
            }
            KIND_SYMLINK => Node::Symlink(reader.bytes()?.to_vec()),
            KIND_FIFO => Node::Fifo,
            KIND_SOCKET => Node::Socket,
            KIND_CHAR_DEVICE => Node::CharDevice { major: reader.uint32()?, minor: reader.uint32()? },
            KIND_BLOCK_DEVICE => Node::BlockDevice { major: reader.uint32()?, minor: reader.uint32()? },
            _ => return Err(reader.error("an unknown kind of entry")),
        };
        Ok(entry)
    }
}

/// Appends the parts of a file.
pub(crate) fn encode_parts(parts: &[Part], out: &mut Vec<u8>, packs: &mut PackTable, lists: Lists) {
    put_uint(out, parts.len() as u64);
    for part in parts {
        match part {
            Part::Hole(length) => {
                out.push(PART_HOLE);
                put_uint(out, *length);
            }
            Part::Chunk(chunk) => {
                out.push(if chunk.codec == Codec::Raw { PART_RAW } else { PART_ZSTD });
                encode_chunk(chunk, out, packs);
            }
            Part::List { chunk, covers, parts } => {
                out.push(if chunk.codec == Codec::Raw { PART_LIST_RAW } else { PART_LIST_ZSTD });
                encode_chunk(chunk, out, packs);
                put_uint(out, *covers);
                if lists == Lists::Inline {
                    encode_parts(parts, out, packs, lists);
                }
            }
        }
    }
}

/// Reads the parts of a file. Lists are not nested.
pub(crate) fn decode_parts(reader: &mut Reader<'_>, packs: &PackTable, lists: Lists) -> Result<Vec<Part>> {
    decode_parts_at(reader, packs, lists, true)
}

fn decode_parts_at(reader: &mut Reader<'_>, packs: &PackTable, lists: Lists, outer: bool) -> Result<Vec<Part>> {
    let count = reader.count()?;
    let mut parts = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        parts.push(match reader.byte()? {
            PART_HOLE => Part::Hole(reader.uint()?),
            PART_RAW => Part::Chunk(decode_chunk(reader, packs, Codec::Raw)?),
            PART_ZSTD => Part::Chunk(decode_chunk(reader, packs, Codec::Zstd)?),
            kind @ (PART_LIST_RAW | PART_LIST_ZSTD) if outer => {
                let codec = if kind == PART_LIST_RAW { Codec::Raw } else { Codec::Zstd };
                let chunk = decode_chunk(reader, packs, codec)?;
                let covers = reader.uint()?;
                let parts = match lists {
                    Lists::InChunks => Vec::new(),
                    Lists::Inline => decode_parts_at(reader, packs, lists, false)?,
                };
                Part::List { chunk, covers, parts }
            }
            _ => return Err(reader.error("an unknown kind of part")),
        });
        // Of parts that are nothing a few bytes could claim any number.
        if parts.last().is_some_and(|part| part.covers() == 0) {
            return Err(reader.error("a part without a byte"));
        }
    }
    Ok(parts)
}

/// Appends a reference; its codec is told by what stands before it.
pub(crate) fn encode_chunk(chunk: &ChunkRef, out: &mut Vec<u8>, packs: &mut PackTable) {
    put_uint(out, packs.number(chunk.pack));
    put_uint(out, chunk.offset.into());
    put_uint(out, chunk.stored.into());
    put_uint(out, chunk.length.into());
    out.extend_from_slice(&chunk.digest.0);
}

/// Reads a reference.
pub(crate) fn decode_chunk(reader: &mut Reader<'_>, packs: &PackTable, codec: Codec) -> Result<ChunkRef> {
    let number = reader.uint()? as usize;
    let pack = *packs.ids.get(number).ok_or_else(|| reader.error("a pack that is not in the table"))?;
    let (offset, stored, length) = (reader.uint32()?, reader.uint32()?, reader.uint32()?);
    let chunk = ChunkRef { digest: Digest(reader.array()?), pack, offset, stored, length, codec };
    chunk.check()?;
    Ok(chunk)
}

/// Whether `path` stays within a tree: relative, no empty part, no `.` or `..`, no NUL.
fn is_tree_path(path: &[u8]) -> bool {
    path.is_empty()
        || path.len() <= PATH_LIMIT
            && path
                .split(|byte| *byte == b'/')
                .all(|part| !matches!(part, b"" | b"." | b"..") && part.len() <= NAME_LIMIT && !part.contains(&0))
}

/// The order of a tree: parents before children, names by their bytes, a directory's children right after it.
pub(crate) fn tree_order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    // `/` sorts before every other byte, so that `a/x` comes before `a-b`.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    let common = common_prefix(a, b);
    a.get(common).map(key).cmp(&b.get(common).map(key))
}

/// How many bytes both begin with. Long paths share most of theirs.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 128;
    let steps = a.chunks_exact(STEP).zip(b.chunks_exact(STEP)).take_while(|(a, b)| a == b).count() * STEP;
    steps + a[steps..].iter().zip(&b[steps..]).take_while(|(a, b)| a == b).count()
}
