//! The working directory is made where the image lacks it, as docker does.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Makes `path` and what leads to it within the merged root `root`, mode 0755 and owned by root, where it does not
/// exist. Symbolic links are followed, but never out of `root`. Blocks on the filesystem.
///
/// # Errors
/// [`Error::InvalidSpec`] when something that is not a directory is in the way; [`Error::Io`] otherwise.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &str) -> Result<()> {
    match open(root, Path::new(path)) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno, path)),
    }
    let mut done = Path::new("/").to_path_buf();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            Component::ParentDir => {
                return Err(Error::invalid("command.workdir", format!("{path:?} does not exist and contains `..`")));
            }
            Component::Normal(name) => step(root, &mut done, name, path)?,
        }
    }
    Ok(())
}

/// Makes `name` beneath `done`, and appends it.
fn step(root: BorrowedFd<'_>, done: &mut std::path::PathBuf, name: &OsStr, path: &str) -> Result<()> {
    let parent = open(root, done).map_err(|errno| failed(errno, path))?;
    match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno, path)),
    }
    done.push(name);
    Ok(())
}

fn open(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn failed(errno: Errno, path: &str) -> Error {
    match errno {
        Errno::NOTDIR | Errno::LOOP => Error::invalid("command.workdir", format!("{path:?} is not a directory")),
        _ => Error::io("making the working directory", path)(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn it_is_made_within_the_root_and_never_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("/real", root.join("link")).unwrap();
        symlink("../../../outside", root.join("out")).unwrap();
        let fd = fs::File::open(&root).unwrap();

        ensure(fd.as_fd(), "/a/b/c").unwrap();
        ensure(fd.as_fd(), "/a/b/c").unwrap();
        assert!(root.join("a/b/c").is_dir());
        assert_eq!(ensure(fd.as_fd(), "/file/x").unwrap_err().code(), "spec.invalid");
        assert_eq!(ensure(fd.as_fd(), "/nope/../x").unwrap_err().code(), "spec.invalid");
        fs::create_dir(root.join("real")).unwrap();
        ensure(fd.as_fd(), "/link/x").unwrap();
        assert!(root.join("real/x").is_dir());
        fs::create_dir(root.join("outside")).unwrap();
        ensure(fd.as_fd(), "/out/y").unwrap();
        assert!(root.join("outside/y").is_dir());
        assert!(!dir.path().join("outside").exists());
    }
}
