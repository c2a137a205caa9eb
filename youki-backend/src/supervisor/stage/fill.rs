//! A new volume takes on what the image has at its target, as with docker: the directory's own attributes, and a copy
//! of all that is in it. Names of one file stay that, and what a file has no data for takes no room.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RawMode, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fgetxattr, flistxattr, fsetxattr, linkat, mkdirat, mknodat, openat, readlinkat, seek, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::files::open_within;

/// How deep an image's directories may be nested here: deeper ones would exhaust this process's stack.
const MAX_DEPTH: usize = 512;
/// Room for what is remembered of files that have further names; those beyond become files of their own.
const MAX_LINKED_BYTES: usize = 64 << 20;
/// What one of them takes beside its path.
const LINKED_BYTES: usize = 96;

/// Copies what is at `target` in `root` into the empty directory `volume`, then says that it is full. A target that is
/// no directory leaves it empty.
pub(super) fn fill(root: &OwnedFd, target: &str, volume: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = match open_within(root, Path::new(target), flags) {
        Ok(from) => Some(from),
        Err(Errno::NOENT | Errno::NOTDIR) => None,
        Err(error) => return Err(Error::io("opening", target)(error.into())),
    };
    let failed = Error::io("filling", volume);
    let copy = || -> io::Result<()> {
        let to = openat(CWD, volume, flags, Mode::empty())?;
        if let Some(from) = from {
            let mut links = Links { volume: to.as_fd(), copies: HashMap::new(), bytes: 0, dir: PathBuf::new() };
            copy_entries(from.as_fd(), to.as_fd(), &mut links, 0)?;
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

/// What has several names, and where the first of them is in the volume.
struct Links<'a> {
    volume: BorrowedFd<'a>,
    copies: HashMap<(u64, u64), Linked>,
    /// What `copies` takes, about.
    bytes: usize,
    /// The directory that is being copied, from the volume.
    dir: PathBuf,
}

struct Linked {
    path: PathBuf,
    /// Names that it has in the image and that were not met yet; some may be outside of what is copied.
    left: usize,
}

impl Links<'_> {
    /// Gives the file of `stat` one more name in `to`, if it has one already.
    fn link(&mut self, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<bool> {
        let Some(linked) = self.copies.get_mut(&file(stat)) else { return Ok(false) };
        match linkat(self.volume, &linked.path, to, name, AtFlags::empty()) {
            // Longer than one call takes, more names than the filesystem gives one file, or one that gives none.
            Err(Errno::NAMETOOLONG | Errno::MLINK | Errno::PERM | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return Ok(false);
            }
            done => done?,
        }
        linked.left = linked.left.saturating_sub(1);
        if linked.left == 0
            && let Some(linked) = self.copies.remove(&file(stat))
        {
            self.bytes -= linked.path.as_os_str().len() + LINKED_BYTES;
        }
        Ok(true)
    }

    /// The file of `stat` has been copied to `name` in the directory.
    fn remember(&mut self, name: &CStr, stat: &Stat) {
        let path = self.dir.join(OsStr::from_bytes(name.to_bytes()));
        let bytes = path.as_os_str().len() + LINKED_BYTES;
        if self.bytes + bytes > MAX_LINKED_BYTES || self.copies.contains_key(&file(stat)) {
            return;
        }
        self.bytes += bytes;
        self.copies.insert(file(stat), Linked { path, left: usize::try_from(stat.st_nlink).unwrap_or(usize::MAX) - 1 });
    }
}

/// What stands for a file, whatever its name.
fn file(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, links: &mut Links<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("directories are nested deeper than {MAX_DEPTH}")));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(from, to, name, links, depth)?;
    }
    Ok(())
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    links: &mut Links<'_>,
    depth: usize,
) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let has_names = stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
    if has_names && links.link(to, name, &stat)? {
        return Ok(());
    }
    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let source = openat(from, name, OFlags::RDONLY | OFlags::DIRECTORY | nofollow, Mode::empty())?;
            let copy = openat(to, name, OFlags::RDONLY | OFlags::DIRECTORY | nofollow, Mode::empty())?;
            links.dir.push(OsStr::from_bytes(name.to_bytes()));
            copy_entries(source.as_fd(), copy.as_fd(), links, depth + 1)?;
            links.dir.pop();
            copy_attributes(source.as_fd(), copy.as_fd(), &stat)?;
        }
        FileType::RegularFile => {
            let source = openat(from, name, OFlags::RDONLY | nofollow, Mode::empty())?;
            let copy =
                openat(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | nofollow, Mode::RUSR | Mode::WUSR)?;
            let (source, copy) = (fs::File::from(source), fs::File::from(copy));
            copy_data(&source, &copy)?;
            copy_attributes(source.as_fd(), copy.as_fd(), &stat)?;
        }
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
            chown_entry(to, name, &stat)?;
        }
        kind => {
            mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777), stat.st_rdev)?;
            chown_entry(to, name, &stat)?;
            // The umask took some away, and a change of the owner others. It is no link.
            let mode = Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777);
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
    }
    if has_names {
        links.remember(name, &stat);
    }
    Ok(())
}

/// Copies what `from` has data for, to the same places.
fn copy_data(from: &fs::File, mut to: &fs::File) -> io::Result<()> {
    let len = from.metadata()?.len();
    let mut at = 0;
    while at < len {
        let data = match seek(from, SeekFrom::Data(at)) {
            // No more, up to the end.
            Err(Errno::NXIO) => break,
            // A filesystem that does not tell.
            Err(Errno::INVAL) => at,
            data => data?,
        };
        let hole = match seek(from, SeekFrom::Hole(data)) {
            Err(Errno::INVAL) => len,
            hole => hole?,
        };
        seek(from, SeekFrom::Start(data))?;
        seek(to, SeekFrom::Start(data))?;
        io::copy(&mut from.take(hole - data), &mut to)?;
        at = hole;
    }
    to.set_len(len)
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
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

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
    fn names_of_one_file_stay_that_and_holes_take_no_room() {
        const LEN: u64 = 16 << 20;
        let image = tempfile::tempdir().unwrap();
        let (data, outside) = (image.path().join("data"), image.path().join("outside"));
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(&outside, b"one").unwrap();
        symlink("nowhere", data.join("link")).unwrap();
        for name in ["a", "sub/b", "c"] {
            fs::hard_link(&outside, data.join(name)).unwrap();
            fs::hard_link(data.join("link"), data.join(format!("{name}-link"))).unwrap();
        }
        let sparse = fs::File::create(data.join("sparse")).unwrap();
        for (at, byte) in [(4 << 20, b"x"), (12 << 20, b"y")] {
            sparse.write_all_at(byte, at).unwrap();
        }
        sparse.set_len(LEN).unwrap();
        fs::File::create(data.join("hole")).unwrap().set_len(LEN).unwrap();
        fs::write(data.join("empty"), b"").unwrap();
        let volume = tempfile::tempdir().unwrap();
        let root = openat(CWD, image.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        fill(&root, "/data", volume.path()).unwrap();
        let of = |name: &str| fs::symlink_metadata(volume.path().join(name)).unwrap();
        assert_eq!((of("a").ino(), of("a").ino(), of("a").nlink()), (of("sub/b").ino(), of("c").ino(), 3));
        assert_eq!((of("link").ino(), of("link").nlink()), (of("sub/b-link").ino(), 4));
        for (name, most) in [("sparse", 1 << 20), ("hole", 0)] {
            assert!(of(name).len() == LEN && of(name).blocks() * 512 <= most, "{name}: {:?}", of(name));
        }
        assert!(fs::read(volume.path().join("sparse")).unwrap() == fs::read(data.join("sparse")).unwrap());
        assert_eq!(of("empty").len(), 0);
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
