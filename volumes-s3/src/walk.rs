//! Walks a tree in the manifest's order, by descriptors: a container may move things about meanwhile.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, statat};
use rustix::io::Errno;

use crate::entry::{PATH_LIMIT, Time};
use crate::error::{Error, Result};

/// Longest path that a system call takes.
const CALL_LIMIT: usize = libc::PATH_MAX as usize - 1;
/// Bytes of the beginning of a longer path which are shown.
const SHOWN_PATH_BYTES: usize = 200;
/// Directories that are kept open at once; those above are opened again when it is their turn.
const OPEN_DIRECTORIES: usize = 64;
/// Nothing outside a tree is reached by a path that is resolved so.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

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
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    if path.len() > CALL_LIMIT {
        let shown = [&path[..SHOWN_PATH_BYTES], "…".as_bytes()].concat();
        return PathBuf::from(std::ffi::OsString::from_vec(shown));
    }
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

/// Opens `path` beneath `root`, however long it is, following no link and entering no other filesystem.
pub(crate) fn open_beneath(
    root: &OwnedFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> std::result::Result<OwnedFd, Errno> {
    let mut directory: Option<OwnedFd> = None;
    let mut rest = path;
    while rest.len() > CALL_LIMIT {
        let slash = rest[..=CALL_LIMIT].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let on_the_way = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory =
            Some(openat2(directory.as_ref().unwrap_or(root), &rest[..slash], on_the_way, Mode::empty(), BENEATH)?);
        rest = &rest[slash + 1..];
    }
    openat2(directory.as_ref().unwrap_or(root), rest, flags, mode, BENEATH)
}

struct Level {
    directory: Directory,
    names: std::vec::IntoIter<CString>,
    /// Length of the path of the directory.
    prefix: usize,
}

enum Directory {
    Open(OwnedFd),
    /// Device and inode.
    Closed(u64, u64),
}

impl Directory {
    fn close(&mut self, path: &[u8]) -> Result<()> {
        if let Self::Open(directory) = self {
            let stat = fstat(&*directory).map_err(|error| Error::io("stat", display(path), error))?;
            *self = Self::Closed(stat.st_dev, stat.st_ino);
        }
        Ok(())
    }

    /// Opens it again if need be; `None` if another is there by now, or none.
    fn open(&mut self, root: &OwnedFd, path: &[u8]) -> Result<Option<&OwnedFd>> {
        if let Self::Closed(device, inode) = *self {
            let failed = |error| Error::io("open again", display(path), error);
            // The root has the path of no bytes, which is none to the kernel.
            let opened = open_beneath(root, if path.is_empty() { b"." } else { path }, DIRECTORY_FLAGS, Mode::empty());
            let directory = match opened {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            let stat = fstat(&directory).map_err(failed)?;
            if (stat.st_dev, stat.st_ino) != (device, inode) {
                return Ok(None);
            }
            *self = Self::Open(directory);
        }
        match self {
            Self::Open(directory) => Ok(Some(directory)),
            Self::Closed(..) => Ok(None),
        }
    }
}

const DIRECTORY_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NOATIME);

/// Gives `each` everything in the tree, the root first. What vanishes meanwhile is passed over; other filesystems
/// mounted within are seen as the directories they cover, and not entered.
pub(crate) fn walk(root: &OwnedFd, mut each: impl FnMut(&Found<'_>) -> Result<()>) -> Result<()> {
    let stat = statat(root, c".", AtFlags::empty()).map_err(|error| Error::io("stat", ".", error))?;
    let device = stat.st_dev;
    each(&Found { path: b"", directory: root.as_fd(), name: c".", stat })?;
    let mut path = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    levels.extend(enter(root.as_fd(), c".", &path)?);
    while let Some(level) = levels.last_mut() {
        path.truncate(level.prefix);
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        // What was moved away takes the rest of its names along.
        let Some(directory) = level.directory.open(root, &path)? else {
            levels.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if path.len() > PATH_LIMIT {
            let begins = display(&path);
            let begins = begins.display();
            let what = format!("a path of more than {PATH_LIMIT} bytes, beneath {begins}, which must be removed,");
            return Err(Error::Unsupported { what });
        }
        let stat = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(Error::io("stat", display(&path), error)),
        };
        let found = Found { path: &path, directory: directory.as_fd(), name: &name, stat };
        each(&found)?;
        if found.is_directory() && found.stat.st_dev == device {
            let entered = enter(found.directory, &name, &path)?;
            levels.extend(entered);
            if let Some(above) = levels.len().checked_sub(OPEN_DIRECTORIES + 1) {
                levels[above].directory.close(&path)?;
            }
        }
    }
    Ok(())
}

fn enter(parent: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<Option<Level>> {
    let failed = |error| Error::io("read directory", display(path), error);
    let directory = match openat(parent, name, DIRECTORY_FLAGS, Mode::empty()) {
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
    let directory = Directory::Open(directory);
    Ok(Some(Level { directory, names: names.into_iter(), prefix: path.len() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(tree: &Path, mut each: impl FnMut(&Found<'_>)) -> Vec<String> {
        let mut seen = Vec::new();
        let root = open_root(tree).unwrap();
        walk(&root, |found| {
            seen.push(String::from_utf8(found.path.to_vec()).unwrap());
            each(found);
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn what_was_moved_away_while_it_was_closed_takes_its_rest_along_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        let levels = 2 * OPEN_DIRECTORIES;
        let deep = vec!["d"; levels].join("/");
        std::fs::create_dir_all(tree.join("a").join(&deep)).unwrap();
        for file in ["a/z", "z"] {
            std::fs::write(tree.join(file), "").unwrap();
        }
        let all = levels + 4;
        assert_eq!(paths(&tree, |_| {}).len(), all);
        let deepest = format!("a/{deep}");
        let put_back = |found: &Found<'_>, other: bool| {
            if found.path == deepest.as_bytes() {
                std::fs::rename(tree.join("a"), base.path().join("moved")).unwrap();
                if other {
                    std::fs::create_dir(tree.join("a")).unwrap();
                    std::fs::write(tree.join("a/z"), "of another").unwrap();
                }
            }
        };
        for other in [false, true] {
            let seen = paths(&tree, |found| put_back(found, other));
            assert_eq!(seen.len(), all - 1, "{seen:?}");
            assert!(seen.last().unwrap() == "z" && !seen.contains(&"a/z".to_owned()), "{seen:?}");
            let _ = std::fs::remove_dir_all(tree.join("a"));
            std::fs::rename(base.path().join("moved"), tree.join("a")).unwrap();
        }
    }
}
