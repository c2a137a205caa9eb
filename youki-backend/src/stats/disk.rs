//! Disk that a directory tree takes.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, statat};

/// Bytes allocated to all files beneath `dir`, a file with several names counted once. `None` if it cannot be
/// listed; files that vanish meanwhile do not count, nor what has a longer path than the kernel takes. Symlinks are not
/// followed, other file systems not entered, also where a container puts them in a directory's place meanwhile. Blocks, for
/// as long as a walk over the tree takes.
pub(crate) fn disk_usage(dir: &Path) -> Option<u64> {
    let root = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let device = fstat(&root).ok()?.st_dev;
    open_beneath(&root, Path::new("."))?;
    let mut linked = HashSet::new();
    let mut bytes = 0u64;
    // One directory is open at a time: a container may have nested them deeper than there are descriptors.
    // What is above it is kept once: how many there are, and how deep they lie, is the container's to say.
    let mut pending: Vec<(Rc<Path>, Box<OsStr>)> = vec![(Rc::from(Path::new("")), OsStr::new(".").into())];
    while let Some((parent, name)) = pending.pop() {
        let path: Rc<Path> = parent.join(&*name).into();
        let Some(mut dir) = open_beneath(&root, &path) else { continue };
        while let Some(Ok(entry)) = dir.read() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(stat) = dir.fd().and_then(|dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) else { continue };
            if stat.st_dev != device {
                continue;
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                pending.push((path.clone(), OsStr::from_bytes(name.to_bytes()).into()));
            } else if stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                continue;
            }
            // st_blocks counts 512-byte units whatever the file system's block size.
            bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        }
    }
    Some(bytes)
}

fn open_beneath(root: &OwnedFd, path: &Path) -> Option<Dir> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Dir::new(openat2(root, path, flags, Mode::empty(), resolve).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_hard_link_and_a_hole_take_no_space() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/data"), vec![1; 1 << 20]).unwrap();
        let one = disk_usage(dir.path()).unwrap();
        assert!((1 << 20..1 << 21).contains(&one), "{one}");
        fs::hard_link(dir.path().join("sub/data"), dir.path().join("again")).unwrap();
        fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        assert!(disk_usage(dir.path()).unwrap() < one + (64 << 10));
        assert_eq!(disk_usage(&dir.path().join("none")), None);
    }

    #[test]
    fn a_link_in_a_directorys_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let fd = openat(CWD, &root, OFlags::PATH, Mode::empty()).unwrap();
        assert!(open_beneath(&fd, Path::new("./a/b")).is_some());
        fs::rename(root.join("a"), dir.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("a")).unwrap();
        assert!(open_beneath(&fd, Path::new("./a/b")).is_none() && open_beneath(&fd, Path::new("./a")).is_none());
    }
}
