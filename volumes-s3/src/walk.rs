//! Walks a tree in the manifest's order, by descriptors: a container may move things about meanwhile.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use crate::entry::{PATH_LIMIT, Time};
use crate::error::{Error, Result};

/// Bytes of a path that is too long which are shown.
const SHOWN_PATH_BYTES: usize = 100;

/// Something found in a tree.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    /// From the root; empty for the root.
    pub path: &'a [u8],
    /// The directory it is in (the root for the root).
    pub directory: BorrowedFd<'a>,
    /// Its name there (`.` for the root).
    pub name: &'a CStr,
    /// What lstat says.
    pub stat: Stat,
}

impl Found<'_> {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// For messages.
    pub(crate) fn display(&self) -> PathBuf {
        display(self.path)
    }
}

/// A path within a tree, for messages.
pub(crate) fn display(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    PathBuf::from(std::ffi::OsStr::from_bytes(if path.is_empty() { b"." } else { path }))
}

/// The time of the last change of the content.
pub(crate) fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
}

/// The time of the last change of anything.
pub(crate) fn ctime(stat: &Stat) -> Time {
    Time { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec as u32 }
}

/// Opens the root of a tree.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::io("open", path, error))
}

struct Level {
    directory: OwnedFd,
    names: std::vec::IntoIter<CString>,
    /// Length of the path of the directory.
    prefix: usize,
}

/// Gives `each` everything in the tree, the root first. What vanishes meanwhile is passed over; other filesystems
/// mounted within are seen as the directories they cover, and not entered.
pub(crate) fn walk(root: &OwnedFd, mut each: impl FnMut(&Found<'_>) -> Result<()>) -> Result<()> {
    let stat = statat(root, c".", AtFlags::empty()).map_err(|error| Error::io("stat", ".", error))?;
    let device = stat.st_dev;
    each(&Found { path: b"", directory: root.as_fd(), name: c".", stat })?;
    let mut path = Vec::new();
    let mut levels = Vec::new();
    levels.extend(enter(root.as_fd(), c".", &path)?);
    while let Some(level) = levels.last_mut() {
        path.truncate(level.prefix);
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if path.len() > PATH_LIMIT {
            let begins = display(&path[..SHOWN_PATH_BYTES]);
            return Err(Error::Unsupported {
                what: format!(
                    "a path of more than {PATH_LIMIT} bytes, beneath {}…, which must be removed,",
                    begins.display()
                ),
            });
        }
        let stat = match statat(&level.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(Error::io("stat", display(&path), error)),
        };
        let found = Found { path: &path, directory: level.directory.as_fd(), name: &name, stat };
        each(&found)?;
        if found.is_directory() && found.stat.st_dev == device {
            let entered = enter(found.directory, &name, &path)?;
            levels.extend(entered);
        }
    }
    Ok(())
}

fn enter(parent: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<Option<Level>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOATIME;
    let failed = |error| Error::io("read directory", display(path), error);
    let directory = match openat(parent, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(Some(Level { directory, names: names.into_iter(), prefix: path.len() }))
}
