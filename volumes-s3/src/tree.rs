//! Makes a tree from entries, beneath a directory that nobody else has yet.
//!
//! Entries come from a bucket: whatever they say, nothing outside the directory is touched. Paths are checked when
//! they are decoded, and resolved by the kernel beneath the root, following no link.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat, fchmod,
    fchown, futimens, linkat, makedev, mkdirat, mknodat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::attributes;
use crate::entry::{Entry, Node};
use crate::error::{Error, Result};
use crate::walk::{display, open_beneath, open_root};

/// The tree that is being made.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    /// It was told that not all attributes could be set.
    told: AtomicBool,
}

impl Tree {
    /// In the empty directory `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let root = open_root(path)?;
        spread(&root, true);
        Ok(Self { root, told: AtomicBool::new(false) })
    }

    /// All of it is made: what comes later is put where the filesystem likes it.
    pub(crate) fn settle(&self) {
        spread(&self.root, false);
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Makes anything but a regular file and a hard link, with its attributes; a directory gets them from
    /// [`Tree::finish_directory`], once it is filled.
    pub(crate) fn make(&self, entry: &Entry) -> Result<()> {
        let failed = |error| Error::io("create", display(&entry.path), error);
        let Some((parent, name)) = self.parent(&entry.path)? else { return Ok(()) };
        let kind = match &entry.node {
            Node::Directory => return mkdirat(&parent, &name, Mode::RWXU).map_err(failed),
            Node::Symlink(target) => {
                symlinkat(target.as_slice(), &parent, &name).map_err(failed)?;
                None
            }
            Node::Fifo => Some((FileType::Fifo, 0)),
            Node::Socket => Some((FileType::Socket, 0)),
            Node::CharDevice { major, minor } => Some((FileType::CharacterDevice, makedev(*major, *minor))),
            Node::BlockDevice { major, minor } => Some((FileType::BlockDevice, makedev(*major, *minor))),
            Node::File { .. } | Node::HardLink(_) => return Ok(()),
        };
        if let Some((kind, device)) = kind {
            mknodat(&parent, &name, kind, Mode::RUSR, device).map_err(failed)?;
        }
        self.attributes(entry, &parent, &name)
    }

    /// Creates a regular file. Its attributes come from [`Tree::finish_file`], once it is written.
    pub(crate) fn create_file(&self, path: &[u8]) -> Result<File> {
        self.open_file(path, OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens a file that was created.
    pub(crate) fn reopen_file(&self, path: &[u8]) -> Result<File> {
        self.open_file(path, OFlags::empty())
    }

    /// Gives a file that is written its owner, mode, attributes and times.
    pub(crate) fn finish_file(&self, file: &File, entry: &Entry) -> Result<()> {
        let failed = |error: Errno| Error::io("set the attributes of", display(&entry.path), error);
        let (uid, gid) = owner(entry);
        fchown(file, uid, gid).map_err(failed)?;
        fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
        if !entry.xattrs.is_empty()
            && let Some((parent, name)) = self.parent(&entry.path)?
        {
            self.extended_attributes(entry, &parent, &name)?;
        }
        futimens(file, &times(entry)).map_err(failed)
    }

    /// Makes a further name of a file.
    pub(crate) fn link(&self, path: &[u8], target: &[u8]) -> Result<()> {
        let failed = |error| Error::io("link", display(path), error);
        let (from, to) = (self.parent(target)?, self.parent(path)?);
        let (Some((from, old)), Some((to, new))) = (from, to) else { return Ok(()) };
        linkat(&from, &old, &to, &new, AtFlags::empty()).map_err(failed)
    }

    /// Gives a directory that is filled its owner, mode, attributes and times. Children before parents.
    pub(crate) fn finish_directory(&self, entry: &Entry) -> Result<()> {
        match self.parent(&entry.path)? {
            Some((parent, name)) => self.attributes(entry, &parent, &name),
            None => self.attributes(entry, &self.root, c"."),
        }
    }

    fn attributes(&self, entry: &Entry, parent: &OwnedFd, name: &std::ffi::CStr) -> Result<()> {
        let failed = |error: Errno| Error::io("set the attributes of", display(&entry.path), error);
        let (uid, gid) = owner(entry);
        chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if !matches!(entry.node, Node::Symlink(_)) {
            chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()).map_err(failed)?;
        }
        self.extended_attributes(entry, parent, name)?;
        utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    fn extended_attributes(&self, entry: &Entry, parent: &OwnedFd, name: &std::ffi::CStr) -> Result<()> {
        let set = attributes::write(parent.as_fd(), name, &entry.xattrs);
        let unknown = set.map_err(|error| Error::io("set the attributes of", display(&entry.path), error))?;
        if let Some(unknown) = unknown
            && !self.told.swap(true, Ordering::Relaxed)
        {
            let (path, attribute) = (display(&entry.path), String::from_utf8_lossy(unknown));
            tracing::warn!(path = %path.display(), %attribute, "restored without what this filesystem does not know");
        }
        Ok(())
    }

    fn open_file(&self, path: &[u8], more: OFlags) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
        let mode = if more.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
        let file = open_beneath(&self.root, path, flags, mode);
        file.map(File::from).map_err(|error| Error::io("create", display(path), error))
    }

    /// The directory of `path` and the name in it. `None` for the root.
    fn parent(&self, path: &[u8]) -> Result<Option<(OwnedFd, CString)>> {
        let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b"."[..], path),
        };
        if name.is_empty() {
            return Ok(None);
        }
        let failed = |error| Error::io("open", display(directory), error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory_fd = open_beneath(&self.root, directory, flags, Mode::empty()).map_err(failed)?;
        let name = CString::new(name).map_err(|_| Error::corrupt("path", "a NUL in a name"))?;
        Ok(Some((directory_fd, name)))
    }
}

/// Asks ext4 to put what is made in `directory` each in a part of the disk of its own, or not to.
///
/// ext4 does not give out an inode again for some minutes after its removal, and looks at all of those near a directory
/// before it takes one for it: next to a tree that was just removed, half of a restore's time (measured) went there. Other
/// filesystems know no such flag.
pub(crate) fn spread(directory: &OwnedFd, on: bool) {
    let Ok(flags) = rustix::fs::ioctl_getflags(directory) else { return };
    let mut wanted = flags;
    wanted.set(IFlags::TOPDIR, on);
    if wanted != flags
        && let Err(error) = rustix::fs::ioctl_setflags(directory, wanted)
    {
        tracing::debug!(%error, "what is made is not spread over the disk");
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times(entry: &Entry) -> Timestamps {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_modification = Timespec { tv_sec: entry.mtime.seconds, tv_nsec: entry.mtime.nanoseconds.into() };
    Timestamps { last_access, last_modification }
}
