//! Deletes trees of any depth. What a container made may be deeper than a stack has frames, or a process descriptors.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, openat, openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;

/// Directories within directories that are entered. What is deeper is moved to the top first, and met again there.
const MAX_DEPTH: u32 = 64;

/// Deletes the directory `path` with all that is in it, following no link; one that is not there is deleted already.
/// Blocks. Nobody else may put anything into it.
///
/// # Errors
/// The first of the system's; what is left then can be deleted later. [`io::ErrorKind::CrossesDevices`] where something is
/// mounted in it: that is not entered.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match rustix::fs::open(path, FLAGS, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut removal = Removal { top: &top, moved: 0 };
    loop {
        let before = removal.moved;
        removal.empty(openat(&top, c".", FLAGS, Mode::empty())?, MAX_DEPTH)?;
        if removal.moved == before {
            break;
        }
    }
    std::fs::remove_dir(path)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Removal<'a> {
    top: &'a OwnedFd,
    /// Directories that were moved to the top.
    moved: u64,
}

impl Removal<'_> {
    fn empty(&mut self, directory: OwnedFd, depth: u32) -> io::Result<()> {
        let mut entries = Dir::new(directory)?;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() != FileType::Directory {
                match unlinkat(entries.fd()?, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    // A filesystem that does not tell what its entries are.
                    Err(Errno::ISDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if depth == 0 {
                self.lift(&entries, name)?;
                continue;
            }
            let child = match openat2(entries.fd()?, name, FLAGS, Mode::empty(), ResolveFlags::NO_XDEV) {
                Err(Errno::XDEV) => return Err(is_mounted(name)),
                child => child?,
            };
            self.empty(child, depth - 1)?;
            unlinkat(entries.fd()?, name, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }

    fn lift(&mut self, from: &Dir, name: &CStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            let to = format!(".berth-removed-{}", self.moved);
            match renameat_with(from.fd()?, name, self.top.as_fd(), to, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Somebody has mounted what is not the tree's.
fn is_mounted(name: &CStr) -> io::Error {
    let text = format!("{} in it is a mount point: what is mounted there stays", name.to_string_lossy());
    io::Error::new(io::ErrorKind::CrossesDevices, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;
    use rustix::mount::MountPropagationFlags;

    use super::*;

    /// Many more than a stack of 2 MiB has frames for, and than descriptors may be open.
    const DEPTH: usize = 30_000;

    #[test]
    fn a_tree_of_any_depth_goes_and_what_links_lead_to_stays() {
        let base = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).unwrap();
        let (tree, beside) = (base.path().join("tree"), base.path().join("beside"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::fs::write(beside.join("kept"), "").unwrap();
        symlink(&beside, tree.join("link")).unwrap();
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/b/file"), "").unwrap();
        // Its own names may be there already.
        std::fs::write(tree.join(".berth-removed-1"), "").unwrap();
        let mut directory: OwnedFd = std::fs::File::open(&tree).unwrap().into();
        for _ in 0..DEPTH {
            mkdirat(&directory, c"d", Mode::RWXU).unwrap();
            directory = openat(&directory, c"d", FLAGS, Mode::empty()).unwrap();
        }
        openat(&directory, c"deepest", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        drop(directory);
        let small = std::thread::Builder::new().stack_size(256 << 10);
        let removed = tree.clone();
        small.spawn(move || remove_tree(&removed)).unwrap().join().unwrap().unwrap();
        assert!(!tree.exists() && beside.join("kept").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&beside.join("kept")).unwrap_err();
    }

    /// In a mount namespace of its own, which only root may make.
    #[test]
    fn what_is_mounted_in_it_stays() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (tree, beside) = (base.path().join("tree"), base.path().join("beside"));
        std::fs::create_dir_all(tree.join("a/mounted")).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::fs::write(beside.join("kept"), "").unwrap();
        let (removed, source) = (tree.clone(), beside.clone());
        let removing = std::thread::spawn(move || {
            // SAFETY: it changes only what this thread sees; no memory is touched.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", io::Error::last_os_error());
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            rustix::mount::mount_bind(&source, removed.join("a/mounted")).unwrap();
            remove_tree(&removed)
        });
        let error = removing.join().unwrap().unwrap_err();
        assert!(error.kind() == io::ErrorKind::CrossesDevices && error.to_string().contains("mounted"), "{error}");
        assert!(beside.join("kept").exists() && tree.join("a/mounted").exists());
        // The mount went with its namespace.
        remove_tree(&tree).unwrap();
    }
}
