//! One layer's archive into a directory of its own.
//!
//! Nothing but that directory is touched: every step of a path is opened without following links, and links of the
//! layer itself are resolved here, within it. What the layer takes from the layers below (attributes of directories it
//! does not list, targets of hard links it does not hold) is noted in [`Unpacked`] and settled by `finalise`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::dir;
use super::tar::{Entry, Kind, Segment, TarError, TarReader, Time, shown};
use crate::limits::{Limits, MAX_PATH_BYTES};

/// Symbolic links followed on one path, as in the kernel.
const MAX_LINKS: usize = 40;
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
    /// Hard links to what this layer does not hold, in the order of the archive: (name, target).
    pub(crate) links: Vec<(Vec<u8>, Vec<u8>)>,
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

/// Unpacks a whole archive into `root`, an empty directory. The thread's umask must be 0.
pub(crate) fn unpack<R: BufRead>(reader: &mut TarReader<R>, root: OwnedFd, limits: &Limits) -> Result<Unpacked> {
    let mut unpacker = Unpacker {
        root: Rc::new(root),
        limits,
        handles: BTreeMap::new(),
        directories: BTreeMap::new(),
        whiteouts: BTreeSet::new(),
        links: BTreeMap::new(),
        is_root: rustix::process::geteuid().is_root() && rustix::process::getegid().is_root(),
        out: Unpacked::default(),
    };
    // The directory of the store it lies in may have a group or bits that are inherited.
    let (uid, gid) = if unpacker.is_root { dir::owner(0, 0) } else { (None, None) };
    rustix::fs::fchown(&unpacker.root, uid, gid).on(b".")?;
    rustix::fs::fchmod(&unpacker.root, Mode::from_raw_mode(0o755)).on(b".")?;
    while let Some(entry) = reader.next_entry()? {
        unpacker.out.entries += 1;
        if unpacker.out.entries > limits.layer_entries {
            return Err(UnpackError::Limit { what: "its entries", limit: limits.layer_entries, unit: "entries" });
        }
        unpacker.entry(entry, reader)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root: Rc<OwnedFd>,
    limits: &'a Limits,
    /// Opened parents by the path as entries write it: handle and real path.
    handles: BTreeMap<Vec<u8>, (Rc<OwnedFd>, Vec<u8>)>,
    /// Listed directories by real path, with what is set only when they are complete.
    directories: BTreeMap<Vec<u8>, Completion>,
    /// Paths that are removed from the layers below.
    whiteouts: BTreeSet<Vec<u8>>,
    /// Hard links to what is not here, by name: their place in the archive, and the target.
    links: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
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
        if path.is_empty() {
            return self.root_entry(&entry);
        }
        let (parent, name) = dir::split(&path);
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(parent, name, hidden, &path);
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
        if self.links.remove(&real).is_some() {
            // The link had already replaced what is below.
            self.whiteouts.insert(real.clone());
        }
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

    /// Notes a removal; it is made at the end, because it acts on the layers below only, wherever it stands.
    fn whiteout(&mut self, parent: &[u8], name: &[u8], hidden: &[u8], path: &[u8]) -> Result<()> {
        if name == b".wh..wh..opq" {
            let (_, real) = self.parent(parent)?;
            self.out.opaque.insert(real);
            return Ok(());
        }
        // Other names of this form are bookkeeping of aufs.
        if name.starts_with(b".wh..wh.") {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(UnpackError::Invalid(format!("{}: a whiteout of nothing", shown(path))));
        }
        let (_, real) = self.parent(parent)?;
        self.whiteouts.insert(dir::join(&real, hidden));
        Ok(())
    }

    /// The directory that `path` names, made where it is missing; links of this layer are followed within it.
    fn parent(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Vec<u8>)> {
        if path.is_empty() {
            return Ok((Rc::clone(&self.root), Vec::new()));
        }
        if let Some((handle, real)) = self.handles.get(path) {
            return Ok((Rc::clone(handle), real.clone()));
        }
        let (handle, real) = match dir::open_dir(self.root.as_fd(), path) {
            Ok(handle) => (Rc::new(handle), path.to_vec()),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(path)?,
            Err(error) => return Err(error).on(path),
        };
        if self.handles.len() >= MAX_HANDLES {
            self.handles.clear();
        }
        self.handles.insert(path.to_vec(), (Rc::clone(&handle), real.clone()));
        Ok((handle, real))
    }

    /// Walks a directory path name by name, making what is missing.
    fn walk(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Vec<u8>)> {
        let (real, existing) = resolve_links(self.root.as_fd(), path)?;
        if let Walked::NotADirectory = existing {
            return Err(UnpackError::Invalid(format!("{}: is no directory, but has entries beneath", shown(&real))));
        }
        let mut current = Rc::clone(&self.root);
        let mut at: Vec<u8> = Vec::new();
        for name in real.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            at = dir::join(&at, name);
            if self.links.contains_key(&at) {
                return Err(UnpackError::Invalid(format!("{}: is no directory, but has entries beneath", shown(&at))));
            }
            let c_name = dir::c(name).on(&at)?;
            match rustix::fs::mkdirat(current.as_fd(), c_name.as_c_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => _ = self.out.implied.insert(at.clone()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).on(&at),
            }
            current = Rc::new(dir::open_dir(current.as_fd(), name).on(&at)?);
        }
        if real.split(|b| *b == b'/').count() > self.limits.path_depth {
            let limit = self.limits.path_depth as u64;
            return Err(UnpackError::Limit { what: "directories within directories", limit, unit: "levels" });
        }
        Ok((current, real))
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
        forget(&mut self.directories, real);
        forget(&mut self.links, real);
        for set in [&mut self.out.implied, &mut self.out.opaque] {
            let range = (Bound::Included(real.to_vec()), Bound::Unbounded);
            let gone: Vec<Vec<u8>> = set.range(range).take_while(|path| path.starts_with(real)).cloned().collect();
            for path in gone.iter().filter(|path| *path == real || dir::is_beneath(path, real)) {
                set.remove(path);
            }
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
                self.out.implied.remove(real);
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

    fn directory_attributes(&mut self, handle: BorrowedFd<'_>, real: &[u8], entry: &Entry) -> Result<()> {
        let known = self.directories.contains_key(real) || real.is_empty();
        let (uid, gid) = dir::owner(entry.uid, entry.gid);
        rustix::fs::fchown(handle, uid, gid).on(real)?;
        rustix::fs::fchmod(handle, Mode::from_raw_mode(entry.mode & 0o1777)).on(real)?;
        if known {
            for (name, _) in dir::xattrs(handle).on(real)? {
                if !name.to_bytes().starts_with(b"security.selinux") {
                    rustix::fs::fremovexattr(handle, name.as_c_str()).on(real)?;
                }
            }
        }
        let mut default_acl = None;
        for (name, value) in taken_over(&entry.xattrs) {
            if name == dir::DEFAULT_ACL_XATTR {
                default_acl = Some(value.clone());
                continue;
            }
            set_fd_xattr(handle, name, value, real)?;
        }
        let mode = (entry.mode & 0o6000 != 0).then_some(entry.mode);
        self.directories.insert(real.to_vec(), Completion { mtime: entry.mtime, mode, default_acl });
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
        self.out.bytes = self.out.bytes.saturating_add(reader.data_left());
        if self.out.bytes > self.limits.layer_bytes {
            return Err(UnpackError::Limit { what: "its files", limit: self.limits.layer_bytes, unit: "bytes" });
        }
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

    /// Owner, mode, extended attributes and times of what cannot be opened: links, devices, FIFOs.
    fn attributes_at(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        real: &[u8],
        entry: &Entry,
        has_mode: bool,
    ) -> Result<()> {
        let c_name = dir::c(name).on(real)?;
        let (uid, gid) = dir::owner(entry.uid, entry.gid);
        rustix::fs::chownat(parent, c_name.as_c_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW).on(real)?;
        if has_mode && entry.mode & 0o7000 != 0 {
            let mode = Mode::from_raw_mode(entry.mode & 0o7777);
            rustix::fs::chmodat(parent, c_name.as_c_str(), mode, AtFlags::empty()).on(real)?;
        }
        for (xattr, value) in taken_over(&entry.xattrs) {
            let path = dir::proc_path(parent, name).on(real)?;
            let xattr_name = dir::c(xattr).on(real)?;
            let set = rustix::fs::lsetxattr(path.as_c_str(), xattr_name.as_c_str(), value, XattrFlags::empty());
            xattr_result(set, xattr, real)?;
        }
        let times = dir::timestamps(entry.mtime);
        rustix::fs::utimensat(parent, c_name.as_c_str(), &times, AtFlags::SYMLINK_NOFOLLOW).on(real)
    }

    fn hardlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], real: &[u8], entry: &Entry) -> Result<()> {
        let target = self.clean(&entry.link)?;
        let (target_parent, target_name) = dir::split(&target);
        if target_name.is_empty() {
            return Err(UnpackError::Invalid(format!("{}: a hard link to the root", shown(real))));
        }
        let (real_target_parent, walked) = resolve_links(self.root.as_fd(), target_parent)?;
        let real_target = dir::join(&real_target_parent, target_name);
        if real_target == real {
            return Ok(());
        }
        if let Walked::Directory(target_parent) = walked
            && let Some(stat) = dir::stat(target_parent.as_fd(), target_name).on(&real_target)?
        {
            if dir::is_dir(&stat) {
                return Err(UnpackError::Invalid(format!("{}: a hard link to a directory", shown(real))));
            }
            let (from, to) = (dir::c(target_name).on(real)?, dir::c(name).on(real)?);
            return self.create(parent, name, real, || {
                rustix::fs::linkat(target_parent.as_fd(), from.as_c_str(), parent, to.as_c_str(), AtFlags::empty())
            });
        }
        // It lies in a layer below, or nowhere: finalise knows. An earlier entry of this name is replaced.
        if dir::stat(parent, name).on(real)?.is_some() {
            self.remove(parent, name, real)?;
        }
        self.links.insert(real.to_vec(), (self.out.entries, real_target));
        Ok(())
    }

    /// Makes whiteouts and opaque marks, then completes the directories.
    fn finish(mut self) -> Result<Unpacked> {
        self.handles.clear();
        let root = Rc::clone(&self.root);
        let mut links: Vec<_> = std::mem::take(&mut self.links).into_iter().collect();
        links.sort_unstable_by_key(|(_, (entry, _))| *entry);
        self.out.links = links.into_iter().map(|(name, (_, target))| (name, target)).collect();
        for path in std::mem::take(&mut self.whiteouts) {
            match dir::stat_path(root.as_fd(), &path).on(&path)? {
                Some(stat) if dir::is_dir(&stat) => {
                    self.out.opaque.insert(path.clone());
                    self.out.replaced.insert(path);
                }
                // Something new stands there, which hides what is below anyway.
                Some(_) => {}
                None => self.out.whiteouts.push(path),
            }
        }
        self.out.root_opaque = self.out.opaque.remove(&b""[..]);
        let mut opaque = BTreeSet::new();
        for path in std::mem::take(&mut self.out.opaque) {
            // A later entry may have put something else there.
            match dir::open_dir(root.as_fd(), &path) {
                Ok(handle) => {
                    dir::set_opaque(handle.as_fd()).on(&path)?;
                    opaque.insert(path);
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error).on(&path),
            }
        }
        self.out.opaque = opaque;
        let out = &mut self.out;
        let linked: BTreeSet<&Vec<u8>> = out.links.iter().map(|(name, _)| name).collect();
        let mut whiteouts = Vec::new();
        for path in std::mem::take(&mut out.whiteouts) {
            // Where nothing shows through, the mark would itself be seen in listings. A link to come takes its place.
            let hidden = out.root_opaque || dir::ancestors(&path).any(|ancestor| out.opaque.contains(ancestor));
            if hidden || linked.contains(&path) {
                continue;
            }
            let (parent, name) = dir::split(&path);
            let handle = match dir::open_dir(root.as_fd(), parent) {
                Ok(handle) => handle,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error).on(&path),
            };
            let name = dir::c(name).on(&path)?;
            let mode = Mode::empty();
            rustix::fs::mknodat(&handle, name.as_c_str(), FileType::CharacterDevice, mode, 0).on(&path)?;
            whiteouts.push(path);
        }
        out.whiteouts = whiteouts;
        for (path, completion) in self.directories.iter().rev() {
            let handle = dir::open_dir(root.as_fd(), path).on(path)?;
            if let Some(mode) = completion.mode {
                rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode & 0o7777)).on(path)?;
            }
            if let Some(acl) = &completion.default_acl {
                set_fd_xattr(handle.as_fd(), dir::DEFAULT_ACL_XATTR, acl, path)?;
            }
            rustix::fs::futimens(&handle, &dir::timestamps(completion.mtime)).on(path)?;
        }
        Ok(self.out)
    }
}

/// Takes `real` and all beneath it out of a map.
fn forget<V>(map: &mut BTreeMap<Vec<u8>, V>, real: &[u8]) {
    let range = (Bound::Included(real.to_vec()), Bound::Unbounded);
    let near = map.range(range).map(|(path, _)| path).take_while(|path| path.starts_with(real));
    let gone: Vec<Vec<u8>> = near.filter(|path| *path == real || dir::is_beneath(path, real)).cloned().collect();
    for path in gone {
        map.remove(&path);
    }
}

enum Walked {
    Directory(OwnedFd),
    Missing,
    NotADirectory,
}

/// The real path of a directory path within a layer: its own links followed, never out of it. Behind the first name that
/// is missing nothing is known, and names are taken as they are.
fn resolve_links(root: BorrowedFd<'_>, path: &[u8]) -> Result<(Vec<u8>, Walked)> {
    let mut todo: Vec<Vec<u8>> = parts_reversed(path);
    let mut real: Vec<u8> = Vec::new();
    let mut links = 0;
    let mut walked = Walked::Directory(dir::open_dir(root, b"").on(path)?);
    while let Some(name) = todo.pop() {
        if name == b".." {
            real = dir::split(&real).0.to_vec();
            walked = match dir::open_dir(root, &real) {
                Ok(handle) => Walked::Directory(handle),
                Err(Errno::NOENT) => Walked::Missing,
                Err(error) => return Err(error).on(&real),
            };
            continue;
        }
        let next = dir::join(&real, &name);
        if next.len() >= MAX_PATH_BYTES {
            return Err(UnpackError::Invalid(format!("{}: its real path is too long", shown(path))));
        }
        let Walked::Directory(current) = &walked else {
            real = next;
            continue;
        };
        match dir::stat(current.as_fd(), &name).on(&next)? {
            None => {
                real = next;
                walked = Walked::Missing;
            }
            Some(stat) if dir::is_dir(&stat) => {
                walked = Walked::Directory(dir::open_dir(current.as_fd(), &name).on(&next)?);
                real = next;
            }
            Some(stat) if dir::file_type(&stat) == FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(UnpackError::Invalid(format!("{}: too many symbolic links", shown(path))));
                }
                let c_name = dir::c(&name).on(&next)?;
                let target = rustix::fs::readlinkat(current, c_name.as_c_str(), Vec::new()).on(&next)?;
                if target.to_bytes().starts_with(b"/") {
                    real.clear();
                    walked = Walked::Directory(dir::open_dir(root, b"").on(path)?);
                }
                todo.extend(parts_reversed(target.to_bytes()));
            }
            Some(_) => return Ok((next, Walked::NotADirectory)),
        }
    }
    Ok((real, walked))
}

/// The names of a path, the last first; empty ones and `.` left out.
pub(crate) fn parts_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec).collect()
}

/// The extended attributes that an image may set: not overlayfs' own, which would change what other layers show, and
/// not a label of the machine it was built on.
fn taken_over(xattrs: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&[u8], &Vec<u8>)> {
    xattrs.iter().map(|(name, value)| (name.as_slice(), value)).filter(|(name, _)| {
        !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") && *name != b"security.selinux"
    })
}

fn set_fd_xattr(file: BorrowedFd<'_>, name: &[u8], value: &[u8], real: &[u8]) -> Result<()> {
    let c_name = dir::c(name).on(real)?;
    xattr_result(rustix::fs::fsetxattr(file, c_name.as_c_str(), value, XattrFlags::empty()), name, real)
}

/// Attributes that this kernel or file system has no place for are left out, as every other unpacker does.
fn xattr_result(result: rustix::io::Result<()>, name: &[u8], real: &[u8]) -> Result<()> {
    match result {
        Err(error @ (Errno::NOTSUP | Errno::PERM | Errno::INVAL)) => {
            tracing::debug!(path = %shown(real), xattr = %shown(name), %error, "extended attribute left out");
            Ok(())
        }
        other => other.on(real),
    }
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
