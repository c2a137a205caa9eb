//! Directory handles and paths within one layer. Paths are relative, of names joined by `/`; the root is empty.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};

use super::tar::Time;

/// Overlayfs' mark of a directory that hides all below it.
pub(crate) const OPAQUE_XATTR: &CStr = c"trusted.overlay.opaque";
/// Default ACLs are inherited by what is created beneath: they are set when a directory is complete.
pub(crate) const DEFAULT_ACL_XATTR: &[u8] = b"system.posix_acl_default";

/// Parent and last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// `parent/name`, where the parent may be the root.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// The path's ancestors, from the first name down, without itself.
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at])
}

/// Whether `path` lies strictly beneath `directory`.
pub(crate) fn is_beneath(path: &[u8], directory: &[u8]) -> bool {
    path.len() > directory.len() && path.starts_with(directory) && path[directory.len()] == b'/'
}

/// A name for a system call. Names with NUL were refused when the archive was read.
pub(crate) fn c(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

/// Opens the directory `path` beneath `root` for listing, crossing no symbolic link.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens `path` beneath `root`, crossing no symbolic link.
pub(crate) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let path = if path.is_empty() { c(b".")? } else { c(path)? };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel says so when a rename elsewhere raced with the walk; ours are private, but it may.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What `name` in `parent` is, links not followed; `None` if it is not there.
pub(crate) fn stat(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(parent, c(name)?.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `path` beneath `root` is, crossing no link; `None` if it, or a directory on the way, is not there.
pub(crate) fn stat_path(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Stat>> {
    match open(root, path, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(fd) => rustix::fs::fstat(fd).map(Some),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        // NO_SYMLINKS answers so for a link in last place too, which may be looked at.
        Err(Errno::LOOP) => {
            let (parent, name) = split(path);
            match open(root, parent, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(parent) => stat(parent.as_fd(), name),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode as RawMode)
}

pub(crate) fn is_dir(stat: &Stat) -> bool {
    file_type(stat) == FileType::Directory
}

/// Whether it is overlayfs' mark of a removed file.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn mtime_of(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
}

/// Both times of an inode: images carry one, and access times mean nothing in them.
pub(crate) fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

pub(crate) fn owner(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// Runs `change` in a directory and gives it its times back.
pub(crate) fn keeping_times<T, E: From<Errno>>(
    directory: BorrowedFd<'_>,
    change: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let before = rustix::fs::fstat(directory)?;
    let result = change()?;
    rustix::fs::futimens(directory, &timestamps(mtime_of(&before)))?;
    Ok(result)
}

/// A path to `name` in `parent` for the calls on extended attributes, which take no directory handle.
pub(crate) fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> Result<CString> {
    c(&[format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat())
}

/// The extended attributes of what an open descriptor (not `O_PATH`) refers to.
pub(crate) fn xattrs(file: BorrowedFd<'_>) -> Result<Vec<(CString, Vec<u8>)>> {
    read_xattrs(|list| rustix::fs::flistxattr(file, list), |name, value| rustix::fs::fgetxattr(file, name, value))
}

/// The extended attributes of `name` in `parent`, links not followed.
pub(crate) fn xattrs_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<(CString, Vec<u8>)>> {
    let path = proc_path(parent, name)?;
    read_xattrs(
        |list| rustix::fs::llistxattr(path.as_c_str(), list),
        |name, value| rustix::fs::lgetxattr(path.as_c_str(), name, value),
    )
}

fn read_xattrs(
    list: impl Fn(&mut [u8]) -> Result<usize>,
    get: impl Fn(&CStr, &mut [u8]) -> Result<usize>,
) -> Result<Vec<(CString, Vec<u8>)>> {
    // 64 KiB is the kernel's limit for the list and for each value.
    let mut buffer = vec![0; 64 << 10];
    let length = match list(&mut buffer) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let names: Vec<CString> =
        buffer[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).map(c).collect::<Result<_>>()?;
    names
        .into_iter()
        .map(|name| {
            let length = get(&name, &mut buffer)?;
            Ok((name, buffer[..length].to_vec()))
        })
        .collect()
}

/// Whether overlayfs takes the directory for opaque.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(directory, OPAQUE_XATTR, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn set_opaque(directory: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// Removes `name` in `parent`, a whole tree if it is one. Depth is bounded by the limits on paths.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let name = c(name)?;
    match rustix::fs::unlinkat(parent, name.as_c_str(), AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name.as_c_str(), flags, Mode::empty())?;
    for child in names(directory.as_fd())? {
        remove(directory.as_fd(), &child)?;
    }
    rustix::fs::unlinkat(parent, name.as_c_str(), AtFlags::REMOVEDIR)
}

/// The names in a directory, in no order.
pub(crate) fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Opens a directory of the store by its path.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// The names of a path, the last first; empty ones and `.` left out.
pub(crate) fn parts_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec).collect()
}
