//! A new volume takes on what the image has at its target, as with docker: the directory's own attributes, and a copy
//! of all that is in it.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fgetxattr, flistxattr, fsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};

use crate::error::{Error, Result};
use crate::files::open_within;

/// How deep an image's directories may be nested here: deeper ones would exhaust this process's stack.
const MAX_DEPTH: usize = 512;

/// Copies what is at `target` in `root` into the empty directory `volume`, then says that it is full. A target that is
/// no directory leaves it empty.
pub(super) fn fill(root: &OwnedFd, target: &str, volume: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = match open_within(root, Path::new(target), flags) {
        Ok(from) => Some(from),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => None,
        Err(error) => return Err(Error::io("opening", target)(error.into())),
    };
    let failed = Error::io("filling", volume);
    let copy = || -> io::Result<()> {
        let to = openat(CWD, volume, flags, Mode::empty())?;
        if let Some(from) = from {
            copy_entries(from.as_fd(), to.as_fd(), 0)?;
            let stat = rustix::fs::fstat(&from)?;
            copy_attributes(from.as_fd(), to.as_fd(), &stat)?;
            // A power cut must not leave the half of it, and the word that it is all.
            if volumes_s3::is_unfilled(&to)? {
                rustix::fs::syncfs(&to)?;
            }
        }
        volumes_s3::mark_filled(&to)
    };
    copy().map_err(failed)
}

/// Gives the directory `to` the owner, mode, times and extended attributes of `from`.
pub(super) fn copy_directory_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let open = |path| openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let (from, to) = (open(from)?, open(to)?);
    copy_attributes(from.as_fd(), to.as_fd(), &rustix::fs::fstat(&from)?)
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("directories are nested deeper than {MAX_DEPTH}")));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(from, to, name, depth)?;
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let source = openat(from, name, OFlags::RDONLY | OFlags::DIRECTORY | nofollow, Mode::empty())?;
            let copy = openat(to, name, OFlags::RDONLY | OFlags::DIRECTORY | nofollow, Mode::empty())?;
            copy_entries(source.as_fd(), copy.as_fd(), depth + 1)?;
            copy_attributes(source.as_fd(), copy.as_fd(), &stat)
        }
        FileType::RegularFile => {
            let source = openat(from, name, OFlags::RDONLY | nofollow, Mode::empty())?;
            let copy =
                openat(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | nofollow, Mode::RUSR | Mode::WUSR)?;
            io::copy(&mut fs::File::from(source.try_clone()?), &mut fs::File::from(copy.try_clone()?))?;
            copy_attributes(source.as_fd(), copy.as_fd(), &stat)
        }
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
            chown_entry(to, name, &stat)
        }
        kind => {
            mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777), stat.st_rdev)?;
            chown_entry(to, name, &stat)?;
            // The umask took some away, and a change of the owner others. It is no link.
            let mode = Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777);
            Ok(rustix::fs::chmodat(to, name, mode, AtFlags::empty())?)
        }
    }
}

fn chown_entry(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(dir, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner first: changing it takes setuid bits and capabilities away.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777))?;
    let mut names = vec![0u8; 64 << 10];
    let used = flistxattr(from, &mut names)?;
    for name in names[..used].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // Overlay's own are no part of the tree.
        if name.to_bytes().starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        let size = fgetxattr(from, name, &mut value)?;
        fsetxattr(to, name, &value[..size], XattrFlags::empty())?;
    }
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_volume_takes_on_the_tree_with_its_attributes() {
        let image = tempfile::tempdir().unwrap();
        let data = image.path().join("data");
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("sub/file"), b"content").unwrap();
        fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("sub/file", data.join("link")).unwrap();
        rustix::fs::mknodat(CWD, data.join("fifo"), FileType::Fifo, Mode::empty(), 0).unwrap();
        // What a umask would take, and a change of the owner.
        fs::set_permissions(data.join("fifo"), fs::Permissions::from_mode(0o4662)).unwrap();
        let volume = tempfile::tempdir().unwrap();
        let root = openat(CWD, image.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        fill(&root, "/data", volume.path()).unwrap();
        assert_eq!(fs::metadata(volume.path()).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read(volume.path().join("link")).unwrap(), b"content");
        let (from, to) = (data.join("sub/file"), volume.path().join("sub/file"));
        let (from, to) = (fs::metadata(from).unwrap(), fs::metadata(to).unwrap());
        assert_eq!((from.mode(), from.mtime_nsec()), (to.mode(), to.mtime_nsec()));
        assert_eq!(fs::metadata(volume.path().join("fifo")).unwrap().mode() & 0o7777, 0o4662);
    }

    #[test]
    fn a_target_that_leaves_the_root_is_resolved_within_it() {
        let image = tempfile::tempdir().unwrap();
        symlink("/etc", image.path().join("data")).unwrap();
        let volume = tempfile::tempdir().unwrap();
        let root = openat(CWD, image.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        fill(&root, "/data", volume.path()).unwrap();
        assert_eq!(fs::read_dir(volume.path()).unwrap().count(), 0);
    }
}
