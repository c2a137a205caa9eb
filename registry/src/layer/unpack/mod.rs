//! One layer's archive into a directory of its own.
//!
//! Nothing but that directory is touched: every step of a path is opened without following links, and links of the
//! layer itself are resolved here, within it. What the layer takes from the layers below (attributes of directories it
//! does not list) is noted in [`Unpacked`] and settled by `finalise`.
//!
//! Most layers mean the same whatever lies below. Where one does not (a directory that it goes through may be a link
//! below, a hard link names what it does not hold), it is unpacked a second time [`Over`] the layers below: then every
//! entry finds what the ones before it and the layers below left, in the archive's order.

mod attributes;
mod bring_up;
mod completion;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use self::attributes::{set_fd_xattr, taken_over};
use self::paths::Walked;
use super::below::Below;
use super::dir;
use super::tar::{Entry, Kind, Segment, TarError, TarReader, Time, shown};
use crate::limits::{Limits, MAX_PATH_BYTES};

/// Directory handles kept open: archives are written directory by directory, so few are hot.
const MAX_HANDLES: usize = 64;
/// Entries between two looks at whether anybody still wants the result is left to the stream; this bounds one write.
const MAX_WRITE_BYTES: u64 = 1 << 20;

/// What a layer needs from below, and what it says of itself.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Directories that were made for what lies in them, without an entry of their own.
    pub(crate) implied: BTreeSet<Vec<u8>>,
    /// Directories that hide all below them. (In the file system too; here for quick looks.)
    pub(crate) opaque: BTreeSet<Vec<u8>>,
    /// Directories that are new in this layer although there was one below: they inherit nothing.
    pub(crate) replaced: BTreeSet<Vec<u8>>,
    /// Directories that were implied until a later entry listed or replaced them.
    pub(crate) passed: BTreeSet<Vec<u8>>,
    /// What the entries mean depends on the layers below, and nothing here is of use.
    pub(crate) unsettled: bool,
    /// Paths that whiteouts remove, and (true) directories that they empty, as the archive writes them.
    pub(crate) removals: BTreeSet<(Vec<u8>, bool)>,
    /// Marks of removed files that were made.
    pub(crate) whiteouts: Vec<Vec<u8>>,
    /// Whether the root directory has an entry.
    pub(crate) root_listed: bool,
    /// Whether everything below is hidden. Overlayfs does not look at the mark on a root.
    pub(crate) root_opaque: bool,
    /// Entries, and bytes of file data.
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("{0}")]
    Invalid(String),
    /// An entry that has no place in what the ones before it left. What is below may make another place of it.
    #[error("{0}")]
    Misplaced(String),
    #[error("{what} exceed {limit} {unit}")]
    Limit { what: &'static str, limit: u64, unit: &'static str },
    #[error("{path}: {source}")]
    Os { path: String, source: Errno },
    #[error(transparent)]
    Tar(#[from] TarError),
}

type Result<T> = std::result::Result<T, UnpackError>;

trait OsContext<T> {
    fn on(self, path: &[u8]) -> Result<T>;
}

impl<T> OsContext<T> for rustix::io::Result<T> {
    fn on(self, path: &[u8]) -> Result<T> {
        self.map_err(|source| UnpackError::Os { path: shown(path), source })
    }
}

/// The layers that a layer is unpacked over, and what it removes from them wherever its whiteouts stand.
#[derive(Debug)]
pub(crate) struct Over {
    pub(crate) below: Below,
    pub(crate) removals: BTreeSet<(Vec<u8>, bool)>,
}

/// Unpacks a whole archive into `root`, an empty directory. The thread's umask must be 0.
pub(crate) fn unpack<R: BufRead>(
    reader: &mut TarReader<R>,
    root: OwnedFd,
    limits: &Limits,
    over: Option<&Over>,
) -> Result<Unpacked> {
    let mut unpacker = Unpacker {
        root: Rc::new(root),
        below: over.map(|over| &over.below),
        limits,
        handles: BTreeMap::new(),
        directories: BTreeMap::new(),
        whiteouts: BTreeSet::new(),
        noted_bytes: 0,
        is_root: rustix::process::geteuid().is_root() && rustix::process::getegid().is_root(),
        out: Unpacked::default(),
    };
    // The directory of the store it lies in may have a group or bits that are inherited.
    let (uid, gid) = if unpacker.is_root { dir::owner(0, 0) } else { (None, None) };
    rustix::fs::fchown(&unpacker.root, uid, gid).on(b".")?;
    rustix::fs::fchmod(&unpacker.root, Mode::from_raw_mode(0o755)).on(b".")?;
    for (path, emptied) in over.iter().flat_map(|over| &over.removals) {
        unpacker.remove_below(path, *emptied)?;
    }
    while let Some(entry) = reader.next_entry()? {
        unpacker.out.entries += 1;
        if unpacker.out.entries > limits.layer_entries {
            return Err(UnpackError::Limit { what: "its entries", limit: limits.layer_entries, unit: "entries" });
        }
        match unpacker.entry(entry, reader) {
            Err(UnpackError::Misplaced(reason)) if over.is_none() => {
                tracing::debug!(reason, "a layer is unpacked again over the layers below");
                unpacker.out.unsettled = true;
            }
            other => other?,
        }
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root: Rc<OwnedFd>,
    /// The layers below, if they are to be looked at.
    below: Option<&'a Below>,
    limits: &'a Limits,
    /// Opened parents by the path as entries write it: handle and real path.
    handles: BTreeMap<Vec<u8>, (Rc<OwnedFd>, Vec<u8>)>,
    /// Listed directories by real path, with what is set only when they are complete.
    directories: BTreeMap<Vec<u8>, Completion>,
    /// Paths that are removed from the layers below.
    whiteouts: BTreeSet<Vec<u8>>,
    /// Bytes of all the paths that were noted in these and in what the layer says of itself.
    noted_bytes: u64,
    /// Whether this process creates files as 0:0.
    is_root: bool,
    out: Unpacked,
}

struct Completion {
    mtime: Time,
    /// Set-id bits are inherited by, or lost to, what happens in between.
    mode: Option<u32>,
    default_acl: Option<Vec<u8>>,
}

impl Unpacker<'_> {
    fn entry<R: BufRead>(&mut self, entry: Entry, reader: &mut TarReader<R>) -> Result<()> {
        let path = self.clean(&entry.path)?;
        let (parent, name) = dir::split(&path);
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(parent, name, hidden, &path);
        }
        if self.out.unsettled {
            return Ok(());
        }
        if path.is_empty() {
            return self.root_entry(&entry);
        }
        for component in parent.split(|b| *b == b'/') {
            if component.starts_with(b".wh..wh.") {
                return Ok(());
            }
            if component.starts_with(b".wh.") {
                return Err(UnpackError::Invalid(format!("{}: lies beneath a whiteout", shown(&path))));
            }
        }
        // The mark of a removed file is ours to make: an image's own would remove what it does not list.
        if entry.kind == (Kind::CharDevice { major: 0, minor: 0 }) {
            tracing::debug!(path = %shown(&path), "a 0/0 device is not taken over");
            return Ok(());
        }
        let (handle, real_parent) = self.parent(parent)?;
        let real = dir::join(&real_parent, name);
        if real.len() >= MAX_PATH_BYTES {
            return Err(UnpackError::Invalid(format!("{}: its real path is too long", shown(&path))));
        }
        let at = handle.as_fd();
        match entry.kind {
            Kind::Directory => self.directory(at, name, &real, &entry),
            Kind::File => self.file(at, name, &real, &entry, reader),
            Kind::Hardlink => self.hardlink(at, name, &real, &entry),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(UnpackError::Invalid(format!("{}: a symbolic link to nothing", shown(&path))));
                }
                let (target, c_name) = (dir::c(&entry.link).on(&real)?, dir::c(name).on(&real)?);
                self.create(at, name, &real, || rustix::fs::symlinkat(target.as_c_str(), at, c_name.as_c_str()))?;
                self.attributes_at(at, name, &real, &entry, false)
            }
            Kind::Fifo => self.node(at, name, &real, &entry, FileType::Fifo, 0),
            Kind::CharDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                self.node(at, name, &real, &entry, FileType::CharacterDevice, device)
            }
            Kind::BlockDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                self.node(at, name, &real, &entry, FileType::BlockDevice, device)
            }
        }
    }

    /// The path without empty and `.` parts, `..` taken back; leading slashes mean the root.
    fn clean(&self, path: &[u8]) -> Result<Vec<u8>> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    if parts.pop().is_none() {
                        return Err(UnpackError::Invalid(format!("{}: leads out of the root", shown(path))));
                    }
                }
                part if part.len() > 255 => {
                    return Err(UnpackError::Invalid(format!("{}: a name is longer than 255 bytes", shown(path))));
                }
                part => parts.push(part),
            }
        }
        if parts.len() > self.limits.path_depth {
            let limit = self.limits.path_depth as u64;
            return Err(UnpackError::Limit { what: "directories within directories", limit, unit: "levels" });
        }
        Ok(parts.join(&b'/'))
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(UnpackError::Invalid("the root is listed as something else than a directory".into()));
        }
        self.out.root_listed = true;
        let root = Rc::clone(&self.root);
        self.directory_attributes(root.as_fd(), b"", entry)
    }

    /// Counts a path that is held until the layer is whole.
    fn note(&mut self, path: &[u8]) -> Result<()> {
        self.noted_bytes += path.len() as u64;
        let limit = self.limits.noted_bytes();
        if self.noted_bytes > limit {
            return Err(UnpackError::Limit {
                what: "the paths of its directories and whiteouts",
                limit,
                unit: "bytes",
            });
        }
        Ok(())
    }

    /// Notes a removal; it is made at the end, because it acts on the layers below only, wherever it stands.
    fn whiteout(&mut self, parent: &[u8], name: &[u8], hidden: &[u8], path: &[u8]) -> Result<()> {
        // As the archive writes it, and as it is.
        self.note(path)?;
        self.note(path)?;
        if name == b".wh..wh..opq" {
            self.out.removals.insert((parent.to_vec(), true));
            if !self.out.unsettled {
                let (_, real) = self.parent(parent)?;
                self.out.opaque.insert(real);
            }
            return Ok(());
        }
        // Other names of this form are bookkeeping of aufs.
        if name.starts_with(b".wh..wh.") {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(UnpackError::Invalid(format!("{}: a whiteout of nothing", shown(path))));
        }
        self.out.removals.insert((dir::join(parent, hidden), false));
        if !self.out.unsettled {
            let (_, real) = self.parent(parent)?;
            self.whiteouts.insert(dir::join(&real, hidden));
        }
        Ok(())
    }

    /// Makes something that may take the place of an earlier entry: the last one wins.
    fn create<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        real: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, name, real)?;
                make().on(real)
            }
            other => other.on(real),
        }
    }

    fn remove(&mut self, parent: BorrowedFd<'_>, name: &[u8], real: &[u8]) -> Result<()> {
        dir::remove(parent, name).on(real)?;
        // What is known of paths there is known no more.
        self.handles.clear();
        for path in take_at_and_beneath(&mut self.out.implied, real) {
            self.out.passed.insert(path);
        }
        take_at_and_beneath(&mut self.out.opaque, real);
        let range = self.directories.range::<[u8], _>(begin_at(real));
        for path in at_and_beneath(range.map(|(path, _)| path), real) {
            self.directories.remove(&path);
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], real: &[u8], entry: &Entry) -> Result<()> {
        let c_name = dir::c(name).on(real)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let make = || rustix::fs::mkdirat(parent, c_name.as_c_str(), mode);
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) if dir::stat(parent, name).on(real)?.is_some_and(|stat| dir::is_dir(&stat)) => {
                if self.out.implied.remove(real) {
                    self.out.passed.insert(real.to_vec());
                }
            }
            Err(Errno::EXIST) => {
                self.remove(parent, name, real)?;
                make().on(real)?;
                // What stood there between had already replaced a directory below.
                self.whiteouts.insert(real.to_vec());
            }
            Err(error) => return Err(error).on(real),
        }
        let handle = dir::open_dir(parent, name).on(real)?;
        self.directory_attributes(handle.as_fd(), real, entry)?;
        // What follows is likely to lie in it.
        if self.handles.len() >= MAX_HANDLES {
            self.handles.clear();
        }
        self.handles.insert(real.to_vec(), (Rc::new(handle), real.to_vec()));
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        real: &[u8],
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<()> {
        self.count_bytes(reader.data_left())?;
        let c_name = dir::c(name).on(real)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & 0o7777);
        let file = self.create(parent, name, real, || rustix::fs::openat(parent, c_name.as_c_str(), flags, mode))?;
        match &entry.sparse {
            None => write_data(&file, real, 0, entry.size, reader)?,
            Some(segments) => {
                for Segment { offset, length } in segments {
                    write_data(&file, real, *offset, *length, reader)?;
                }
                rustix::fs::ftruncate(&file, entry.size).on(real)?;
            }
        }
        // New files belong to this process; no directory gives them its group, as set-id bits are set at the end.
        if !self.is_root || (entry.uid, entry.gid) != (0, 0) {
            let (uid, gid) = dir::owner(entry.uid, entry.gid);
            rustix::fs::fchown(&file, uid, gid).on(real)?;
        }
        if entry.mode & 0o7000 != 0 {
            rustix::fs::fchmod(&file, mode).on(real)?;
        }
        for (name, value) in taken_over(&entry.xattrs) {
            set_fd_xattr(file.as_fd(), name, value, real)?;
        }
        rustix::fs::futimens(&file, &dir::timestamps(entry.mtime)).on(real)
    }

    fn count_bytes(&mut self, bytes: u64) -> Result<()> {
        self.out.bytes = self.out.bytes.saturating_add(bytes);
        if self.out.bytes > self.limits.layer_bytes {
            return Err(UnpackError::Limit { what: "its files", limit: self.limits.layer_bytes, unit: "bytes" });
        }
        Ok(())
    }

    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        real: &[u8],
        entry: &Entry,
        kind: FileType,
        device: u64,
    ) -> Result<()> {
        let (c_name, mode) = (dir::c(name).on(real)?, Mode::from_raw_mode(entry.mode & 0o7777));
        self.create(parent, name, real, || rustix::fs::mknodat(parent, c_name.as_c_str(), kind, mode, device))?;
        self.attributes_at(parent, name, real, entry, true)
    }

    fn hardlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], real: &[u8], entry: &Entry) -> Result<()> {
        let target = self.clean(&entry.link)?;
        let (target_parent, target_name) = dir::split(&target);
        if target_name.is_empty() {
            return Err(UnpackError::Invalid(format!("{}: a hard link to the root", shown(real))));
        }
        let (real_target_parent, walked) = self.resolve(target_parent)?;
        let real_target = dir::join(&real_target_parent, target_name);
        if real_target == real {
            return Ok(());
        }
        if let Walked::Directory(target_parent) = walked
            && let Some(stat) = dir::stat(target_parent.as_fd(), target_name).on(&real_target)?
        {
            if dir::is_dir(&stat) {
                return Err(UnpackError::Misplaced(format!("{}: a hard link to a directory", shown(real))));
            }
            let (from, to) = (dir::c(target_name).on(real)?, dir::c(name).on(real)?);
            return self.create(parent, name, real, || {
                rustix::fs::linkat(target_parent.as_fd(), from.as_c_str(), parent, to.as_c_str(), AtFlags::empty())
            });
        }
        self.link_below(parent, name, real, &real_target)
    }
}

fn begin_at(path: &[u8]) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Included(path), Bound::Unbounded)
}

/// Of sorted paths from `real` on, it and those beneath it.
fn at_and_beneath<'a>(paths: impl Iterator<Item = &'a Vec<u8>>, real: &[u8]) -> Vec<Vec<u8>> {
    let near = paths.take_while(|path| path.starts_with(real));
    near.filter(|path| *path == real || dir::is_beneath(path, real)).cloned().collect()
}

fn take_at_and_beneath(set: &mut BTreeSet<Vec<u8>>, real: &[u8]) -> Vec<Vec<u8>> {
    let gone = at_and_beneath(set.range::<[u8], _>(begin_at(real)), real);
    for path in &gone {
        set.remove(path);
    }
    gone
}

fn write_data<R: BufRead>(
    file: &OwnedFd,
    real: &[u8],
    offset: u64,
    length: u64,
    reader: &mut TarReader<R>,
) -> Result<()> {
    let mut at = offset;
    let end = offset + length;
    while at < end {
        let written = reader.data((end - at).min(MAX_WRITE_BYTES), |mut piece| {
            let length = piece.len() as u64;
            let mut position = at;
            while !piece.is_empty() {
                match rustix::io::pwrite(file, piece, position) {
                    Ok(count) => {
                        piece = &piece[count..];
                        position += count as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(length)
        })?;
        match written {
            Some(result) => at += result.on(real)?,
            None => return Err(UnpackError::Invalid(format!("{}: its data ends early", shown(real)))),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
