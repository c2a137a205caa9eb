//! Turns a tree into entries: what has not changed since the last scan is taken from its record, the rest is read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Stat, readlinkat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::attributes::{self, Attributes};
use crate::chunker::Chunker;
use crate::codec::Reader;
use crate::entry::{Entry, Lists, Node, PackTable, Part, Time, decode_parts, encode_parts, tree_order};
use crate::error::{Error, Result};
use crate::manifest::{Leaf, LeafBuilder, LeafRef, encode_root};
use crate::pack::{ChunkRef, Packer, SealedPack};
use crate::scan_record::{RecordReader, RecordWriter, Seen, Subject};
use crate::walk::{Found, ctime, mtime, open_root, walk};
use content::{At, next_run, open_file};

mod content;
#[cfg(test)]
mod tests;

/// A time stamp of the kernel may lag behind by one of its ticks, 10 ms at the slowest.
const TICK: Duration = Duration::from_millis(10);
/// So long the clock is waited for to go on by a tick.
const CLOCK_PATIENCE: Duration = Duration::from_secs(1);
/// A file that changes while it is read is read again this often before it is recorded as torn.
const READ_ATTEMPTS: u32 = 3;
/// Files of more parts than this have their parts in chunks of their own.
const LIST_FROM: usize = 1024;
/// Such a chunk ends after a part whose digest has these bits clear: one in 256.
const LIST_MASK: u8 = 0xff;
/// It is not ended before it has this many parts.
const LIST_MIN: usize = 64;
/// Most bytes that the paths of directories, and of the first names of files with several, may have together: who restores
/// holds them all, and who scans those names.
const HELD_PATH_BYTES: usize = 256 << 20;

/// What a scan found.
#[derive(Debug, Clone)]
pub(crate) struct Scanned {
    /// The root of the manifest.
    pub root: ChunkRef,
    pub entries: u64,
    pub files: u64,
    pub size_bytes: u64,
    /// Bytes of files that were read because they seemed changed.
    pub read_bytes: u64,
    /// Bytes that went into packs.
    pub new_bytes: u64,
    pub torn: u64,
}

/// How a tree differs from its record, by metadata alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Entries changed, new or gone.
    pub entries: u64,
    /// Bytes of the files among the changed and new.
    pub bytes: u64,
    /// Bytes of all files.
    pub size_bytes: u64,
}

/// Scans the tree at `root`: new chunks, leaves and the root go to `packer`, the new record to `record`.
///
/// Blocks. `old` is the record of the last scan, if it is of the same lineage.
pub(crate) fn scan<F: FnMut(SealedPack) -> Result<()>>(
    root: &Path,
    old: Option<RecordReader>,
    packer: Packer<F>,
    record: &Path,
    lineage: crate::pack::Digest,
) -> Result<Scanned> {
    let tree = open_root(root)?;
    let started = clean(&tree, root)?;
    let mut packer = packer;
    old.iter().flat_map(|old| &old.manifest).for_each(|chunk| packer.know(*chunk));
    let mut scan = Scan {
        started,
        known: old.as_ref().map(|old| old.path().to_owned()),
        packer,
        record: RecordWriter::create(record)?,
        chunker: Chunker::default(),
        leaf: LeafBuilder::default(),
        leaves: Vec::new(),
        totals: Totals::default(),
    };
    let device = device_of(&tree)?;
    compare(&tree, old, |found, seen, first_name| scan.entry(found, seen, first_name))?;
    scan.finish(device, lineage)
}

/// Compares the tree at `root` with its record; no file is read. Blocks.
pub(crate) fn difference(root: &Path, old: Option<RecordReader>) -> Result<Difference> {
    clean(&open_root(root)?, root)?;
    changes(root, old)
}

/// Brings what was written to the disk, and tells when it began to.
///
/// A write through a mapping gives a file its times only where the page was clean; what is written to a dirty one shows by
/// nothing. From here on each page is clean once, maybe long before all are: whatever is written to it later gives the file
/// a time that is not before the beginning. (A tmpfs never tells.)
fn clean(tree: &OwnedFd, root: &Path) -> Result<Time> {
    let began = now();
    rustix::fs::syncfs(tree).map_err(|error| Error::io("sync", root, error))?;
    #[cfg(test)]
    tests::CLEANED.take().into_iter().for_each(|cleaned| cleaned());
    Ok(began)
}

/// The same, where what a mapping has written just now may be left out: nothing is brought to the disk. Blocks.
pub(crate) fn changes(root: &Path, old: Option<RecordReader>) -> Result<Difference> {
    let tree = open_root(root)?;
    let mut difference = Difference::default();
    let mut same = 0;
    let rows = compare(&tree, old, |found, seen, first_name| {
        let size =
            if found.kind() == FileType::RegularFile && first_name.is_none() { found.stat.st_size as u64 } else { 0 };
        difference.size_bytes += size;
        if seen.is_some() {
            same += 1;
        } else {
            difference.entries += 1;
            difference.bytes += size;
        }
        Ok(())
    })?;
    difference.entries += rows.saturating_sub(same);
    Ok(difference)
}

/// Writes the record of a tree that was just restored from `entries`, all of them, in order. Blocks.
pub(crate) fn record_restored(
    tree: &OwnedFd,
    mut entries: impl FnMut() -> Result<Option<Entry>>,
    record: &Path,
    subject: Subject,
    manifest: &[ChunkRef],
) -> Result<()> {
    let mut writer = RecordWriter::create(record)?;
    let mut latest = Time::default();
    walk(tree, |found| {
        let entry = entries()?.filter(|entry| entry.path == found.path);
        let entry = entry.ok_or_else(|| Error::corrupt("restored tree", "is not the generation's"))?;
        let ctime = ctime(&found.stat);
        // The clock was set back since it was made: a change may come to bear this time yet.
        let racy = since(now(), ctime) > TICK.as_nanos() as i64;
        if !racy {
            latest = latest.max(ctime);
        }
        writer.add(&Seen { entry, inode: found.stat.st_ino, ctime, racy })
    })?;
    // Nobody has the tree yet: once the clock has moved on, no change can bear a time in the record.
    let begin = Instant::now();
    while latest >= now() {
        if begin.elapsed() > CLOCK_PATIENCE {
            return Err(Error::Interrupted { operation: "a restore while the clock was set back" });
        }
        std::thread::sleep(TICK / 4);
    }
    writer.finish(device_of(tree)?, subject, manifest)
}

/// Walks the tree beside its record. `each` gets the row if nothing changed since, and for further names of a file
/// its first name. Returns the number of rows.
fn compare(
    tree: &OwnedFd,
    mut old: Option<RecordReader>,
    mut each: impl FnMut(&Found<'_>, Option<Seen>, Option<Vec<u8>>) -> Result<()>,
) -> Result<u64> {
    let same_device = old.as_ref().is_some_and(|old| device_of(tree).is_ok_and(|device| device == old.device));
    let mut rows = 0;
    let mut next = |rows: &mut u64| -> Result<Option<Seen>> {
        let row = old.as_mut().map_or(Ok(None), RecordReader::next)?;
        *rows += u64::from(row.is_some());
        Ok(row)
    };
    let mut row = next(&mut rows)?;
    let mut names: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut held_bytes = 0;
    let mut hold = |path: &[u8]| {
        held_bytes += path.len();
        if held_bytes > HELD_PATH_BYTES {
            let what =
                format!("directories and linked files whose paths have more than {HELD_PATH_BYTES} bytes together");
            return Err(Error::Unsupported { what });
        }
        Ok(())
    };
    walk(tree, |found| {
        while row.as_ref().is_some_and(|row| tree_order(&row.entry.path, found.path).is_lt()) {
            row = next(&mut rows)?;
        }
        let mut seen = None;
        if row.as_ref().is_some_and(|row| row.entry.path == found.path) {
            seen = row.take().filter(|row| same_device && is_same(row, found));
            row = next(&mut rows)?;
        }
        if found.is_directory() {
            hold(found.path)?;
        }
        let mut first_name = None;
        if found.stat.st_nlink > 1 && !found.is_directory() {
            first_name = names.get(&found.stat.st_ino).cloned();
            if first_name.is_none() {
                hold(found.path)?;
                names.insert(found.stat.st_ino, found.path.to_vec());
            }
        }
        let seen = seen.filter(|seen| match (&seen.entry.node, &first_name) {
            (Node::HardLink(target), Some(first)) => target == first,
            (Node::HardLink(_), None) | (_, Some(_)) => false,
            _ => true,
        });
        each(found, seen, first_name)
    })?;
    while row.is_some() {
        row = next(&mut rows)?;
    }
    Ok(rows)
}

fn is_same(row: &Seen, found: &Found<'_>) -> bool {
    let kind = match (&row.entry.node, found.kind()) {
        (Node::File { size, .. }, FileType::RegularFile) => *size == found.stat.st_size as u64,
        (Node::HardLink(_), kind) => kind != FileType::Directory,
        (Node::Directory, FileType::Directory)
        | (Node::Symlink(_), FileType::Symlink)
        | (Node::Fifo, FileType::Fifo)
        | (Node::Socket, FileType::Socket)
        | (Node::CharDevice { .. }, FileType::CharacterDevice)
        | (Node::BlockDevice { .. }, FileType::BlockDevice) => true,
        _ => false,
    };
    let link = matches!(row.entry.node, Node::HardLink(_));
    kind && row.inode == found.stat.st_ino
        && row.ctime == ctime(&found.stat)
        && (link || row.entry.mtime == mtime(&found.stat))
}

#[derive(Debug, Default)]
struct Totals {
    entries: u64,
    files: u64,
    size_bytes: u64,
    read_bytes: u64,
    torn: u64,
}

struct Scan<F> {
    started: Time,
    /// The old record, until its chunks are known to the packer: only when something has changed.
    known: Option<std::path::PathBuf>,
    packer: Packer<F>,
    record: RecordWriter,
    chunker: Chunker,
    leaf: LeafBuilder,
    leaves: Vec<LeafRef>,
    totals: Totals,
}

impl<F: FnMut(SealedPack) -> Result<()>> Scan<F> {
    fn entry(&mut self, found: &Found<'_>, seen: Option<Seen>, first_name: Option<Vec<u8>>) -> Result<()> {
        let seen = match (seen.filter(|seen| !seen.racy), first_name) {
            (Some(seen), _) => Some(seen),
            (None, Some(first)) => Some(self.seen(&found.stat, hard_link(found, first))),
            (None, None) => self.read(found)?,
        };
        // Gone since it was seen.
        let Some(seen) = seen else { return Ok(()) };
        if let Node::File { size, torn, .. } = &seen.entry.node {
            self.totals.files += 1;
            self.totals.size_bytes += size;
            self.totals.torn += u64::from(*torn);
        }
        self.totals.entries += 1;
        if let Some(leaf) = self.leaf.add(&seen.entry)? {
            self.store_leaf(leaf)?;
        }
        self.record.add(&seen)
    }

    fn finish(mut self, device: u64, lineage: crate::pack::Digest) -> Result<Scanned> {
        if let Some(leaf) = self.leaf.end() {
            self.store_leaf(leaf)?;
        }
        let root = self.packer.add(&encode_root(&self.leaves)?)?;
        let manifest: Vec<_> = std::iter::once(root).chain(self.leaves.iter().map(|leaf| leaf.chunk)).collect();
        self.record.finish(device, Subject { root: root.digest, lineage }, &manifest)?;
        let new_bytes = self.packer.finish()?;
        let Totals { entries, files, size_bytes, read_bytes, torn } = self.totals;
        Ok(Scanned { root, entries, files, size_bytes, read_bytes, new_bytes, torn })
    }

    fn store_leaf(&mut self, leaf: Leaf) -> Result<()> {
        let chunk = self.packer.add(&leaf.bytes)?;
        self.leaves.push(LeafRef { chunk, first: leaf.first, entries: leaf.entries });
        Ok(())
    }

    fn seen(&self, stat: &Stat, entry: Entry) -> Seen {
        let ctime = ctime(stat);
        let age = since(ctime, self.started);
        let torn = matches!(entry.node, Node::File { torn: true, .. });
        Seen { entry, inode: stat.st_ino, ctime, racy: torn || age < TICK.as_nanos() as i64 }
    }

    fn read(&mut self, found: &Found<'_>) -> Result<Option<Seen>> {
        let failed = |error: Errno| Error::io("read", found.display(), error);
        let node = match found.kind() {
            FileType::RegularFile => return self.read_file(found),
            FileType::Directory => Node::Directory,
            FileType::Symlink => match readlinkat(found.directory, found.name, Vec::new()) {
                Ok(target) => Node::Symlink(target.into_bytes()),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(failed(error)),
            },
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            FileType::CharacterDevice => {
                let device = found.stat.st_rdev;
                Node::CharDevice { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
            }
            FileType::BlockDevice => {
                let device = found.stat.st_rdev;
                Node::BlockDevice { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
            }
            FileType::Unknown => {
                return Err(Error::Unsupported { what: format!("{}: its kind", found.display().display()) });
            }
        };
        let xattrs = match attributes::read(found.directory, found.name) {
            Ok(xattrs) => xattrs,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        Ok(Some(self.seen(&found.stat, entry_of(found.path, &found.stat, xattrs, node))))
    }

    fn read_file(&mut self, found: &Found<'_>) -> Result<Option<Seen>> {
        self.know_old_chunks()?;
        let failed = |error: io::Error| Error::io("read", found.display(), error);
        #[cfg(test)]
        tests::FOUND.take().into_iter().for_each(|found| found());
        let Some((file, mut before)) = open_file(found).map_err(|error| failed(error.into()))? else {
            // Gone, or something else by now: the next sync sees what.
            return Ok(None);
        };
        for attempt in 1.. {
            let parts = self.read_parts(&file, &before, found)?;
            let xattrs = attributes::read(found.directory, found.name).or_else(|error| match error {
                Errno::NOENT => Ok(Vec::new()),
                error => Err(failed(error.into())),
            })?;
            let after = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
            let steady =
                (ctime(&before), mtime(&before), before.st_size) == (ctime(&after), mtime(&after), after.st_size);
            if steady || attempt == READ_ATTEMPTS {
                let size = parts.iter().map(Part::covers).sum();
                let torn = !steady || size != before.st_size as u64;
                let parts = self.store_lists(parts)?;
                let entry = entry_of(found.path, &before, xattrs, Node::File { size, parts, torn });
                return Ok(Some(self.seen(&before, entry)));
            }
            before = after;
        }
        Ok(None)
    }

    fn read_parts(&mut self, file: &File, stat: &Stat, found: &Found<'_>) -> Result<Vec<Part>> {
        let failed = |error: io::Error| Error::io("read", found.display(), error);
        let size = stat.st_size as u64;
        let mut parts = Vec::new();
        let mut position = 0;
        let sparse = (stat.st_blocks as u64) * 512 < size;
        while position < size {
            let (start, end) = if sparse { next_run(file, position, size).map_err(failed)? } else { (0, size) };
            if start > position {
                parts.push(Part::Hole(start - position));
            }
            let reader = At { file, position: start };
            let packer = &mut self.packer;
            let read = self.chunker.cut(reader, end - start, |chunk| {
                parts.push(Part::Chunk(packer.add(chunk).map_err(Cut::Ours)?));
                Ok(())
            });
            let read = read.map_err(|error: Cut| match error {
                Cut::Ours(error) => error,
                Cut::Read(error) => failed(error),
            })?;
            self.totals.read_bytes += read;
            if read < end - start {
                break;
            }
            position = end;
        }
        Ok(parts)
    }

    /// Puts the parts of a huge file into chunks of their own, cut by content as well.
    fn store_lists(&mut self, parts: Vec<Part>) -> Result<Vec<Part>> {
        if parts.len() <= LIST_FROM {
            return Ok(parts);
        }
        let mut lists = Vec::new();
        let mut stretch: Vec<Part> = Vec::new();
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            let cut = matches!(&part, Part::Chunk(chunk) if chunk.digest.0[0] & LIST_MASK == 0);
            stretch.push(part);
            if (cut && stretch.len() >= LIST_MIN) || stretch.len() >= LIST_FROM || parts.peek().is_none() {
                let parts = std::mem::take(&mut stretch);
                let chunk = self.packer.add(&encode_list(&parts))?;
                lists.push(Part::List { chunk, covers: parts.iter().map(Part::covers).sum(), parts });
            }
        }
        Ok(lists)
    }

    fn know_old_chunks(&mut self) -> Result<()> {
        let Some(path) = self.known.take() else { return Ok(()) };
        let Some(mut old) = RecordReader::open(&path)? else { return Ok(()) };
        while let Some(seen) = old.next()? {
            if let Node::File { parts, .. } = seen.entry.node {
                know_parts(&mut self.packer, &parts);
            }
        }
        Ok(())
    }
}

fn know_parts<F: FnMut(SealedPack) -> Result<()>>(packer: &mut Packer<F>, parts: &[Part]) {
    for part in parts {
        match part {
            Part::Hole(_) => {}
            Part::Chunk(chunk) => packer.know(*chunk),
            Part::List { chunk, parts, .. } => {
                packer.know(*chunk);
                know_parts(packer, parts);
            }
        }
    }
}

/// The parts that a chunk holds.
pub(crate) fn decode_list(bytes: &[u8]) -> Result<Vec<Part>> {
    let mut reader = Reader::new("list of parts", bytes);
    let mut packs = PackTable::default();
    packs.decode(&mut reader)?;
    let parts = decode_parts(&mut reader, &packs, Lists::InChunks)?;
    let nested = parts.iter().any(|part| matches!(part, Part::List { .. }));
    if nested || parts.len() > LIST_FROM || !reader.is_empty() {
        Err(reader.error("it holds more than parts"))
    } else {
        Ok(parts)
    }
}

/// The bytes of a chunk that holds parts.
fn encode_list(parts: &[Part]) -> Vec<u8> {
    let (mut packs, mut body) = (PackTable::default(), Vec::new());
    encode_parts(parts, &mut body, &mut packs, Lists::InChunks);
    let mut bytes = Vec::with_capacity(body.len() + 64);
    packs.encode(0, &mut bytes);
    bytes.extend_from_slice(&body);
    bytes
}

fn hard_link(found: &Found<'_>, first: Vec<u8>) -> Entry {
    let node = Node::HardLink(first);
    Entry { path: found.path.to_vec(), mode: 0, uid: 0, gid: 0, mtime: Time::default(), xattrs: Vec::new(), node }
}

fn entry_of(path: &[u8], stat: &Stat, xattrs: Attributes, node: Node) -> Entry {
    let mode = stat.st_mode & 0o7777;
    Entry { path: path.to_vec(), mode, uid: stat.st_uid, gid: stat.st_gid, mtime: mtime(stat), xattrs, node }
}

fn device_of(tree: &OwnedFd) -> Result<u64> {
    let stat = rustix::fs::fstat(tree.as_fd()).map_err(|error| Error::io("stat", ".", error))?;
    Ok(stat.st_dev)
}

fn now() -> Time {
    // Coarse: the clock that the kernel stamps files with.
    let now = clock_gettime(ClockId::RealtimeCoarse);
    #[cfg(test)]
    let now = rustix::time::Timespec { tv_sec: now.tv_sec - tests::SET_BACK.get(), ..now };
    Time { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
}

/// Nanoseconds from `then` to `now`.
fn since(then: Time, now: Time) -> i64 {
    let nanoseconds = i64::from(now.nanoseconds) - i64::from(then.nanoseconds);
    now.seconds.saturating_sub(then.seconds).saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// What ends the cutting of a file.
enum Cut {
    Read(io::Error),
    Ours(Error),
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}
