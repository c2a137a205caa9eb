//! Paths within a container's root: found as the container would find them, made where they are missing, never outside.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, mkdirat, openat, readlinkat};
use rustix::io::{Errno, Result};

use crate::files::open_within;

/// Links followed before a path is taken for a loop; the kernel's own limit.
const MAX_LINKS: usize = 40;

/// What is made where there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    /// 0755.
    Directory,
    /// Empty, 0644; directories on the way.
    File,
}

/// Opens (`O_PATH`) what is at `path` within `root`, whatever it is; if there is nothing, makes it and the directories
/// that lead to it. Symbolic links are followed, also one that leads to nothing yet, but never out of `root`.
///
/// # Errors
/// The kernel's; `EINVAL` for a path with `..` after what does not exist.
pub(super) fn open_or_make(root: impl AsFd, path: &Path, make: Make) -> Result<OwnedFd> {
    open_or_make_beneath(root.as_fd(), path, make, MAX_LINKS)
}

fn open_or_make_beneath(root: impl AsFd + Copy, path: &Path, make: Make, links: usize) -> Result<OwnedFd> {
    match open_within(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let dir = open_or_make_beneath(root, parent, Make::Directory, links)?;
    let made = match make {
        Make::Directory => mkdirat(&dir, name, Mode::from_raw_mode(0o755)),
        Make::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) => openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()),
        // It is a link to what does not exist: that is what shall be made.
        Err(Errno::EXIST) if links > 0 => {
            let link = readlinkat(&dir, name, Vec::new())?;
            let target = parent.join(OsStr::from_bytes(link.as_bytes()));
            open_or_make_beneath(root, &target, make, links - 1)
        }
        Err(Errno::EXIST) => Err(Errno::LOOP),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_is_made_within_the_root_and_never_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("/real", root.join("link")).unwrap();
        symlink("../../../outside", root.join("out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("../run/resolve/stub.conf", root.join("file.conf")).unwrap();
        let fd = fs::File::open(&root).unwrap();
        let make = |path: &str, make| open_or_make(&fd, Path::new(path), make);

        for _ in 0..2 {
            make("/a/b/c", Make::Directory).unwrap();
            assert!(root.join("a/b/c").is_dir());
        }
        make("/link/x", Make::Directory).unwrap();
        assert!(root.join("real/x").is_dir(), "made through a link that led to nothing");
        make("/file.conf", Make::File).unwrap();
        assert!(root.join("run/resolve/stub.conf").is_file());
        make("/out/y", Make::File).unwrap();
        assert!(root.join("outside/y").is_file() && !dir.path().join("outside").exists());
        assert_eq!(make("/file/x", Make::Directory).unwrap_err(), Errno::NOTDIR);
        assert_eq!(make("/nope/../x", Make::Directory).unwrap_err(), Errno::INVAL);
        assert_eq!(make("/loop/x", Make::Directory).unwrap_err(), Errno::LOOP);
    }
}
