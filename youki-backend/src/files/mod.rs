//! Trees of a container as tar: out of it ([`pack`]) and into it ([`unpack`]).
//!
//! A running container may change its tree while it is read or written, and on purpose. So every name is resolved by
//! `openat2` within the tree's root, and what is walked is walked by descriptors that follow no link.

pub(crate) mod pack;
mod regular;
pub(crate) mod unpack;
mod within;

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_core::Owner;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;
use serde::Serialize;

#[cfg(test)]
pub(crate) use regular::tests::lease;
pub(crate) use regular::{open_regular, reopen};
pub(crate) use within::open_within;

/// Directories nested deeper than this are refused: each level holds a descriptor, and an agent may have 1,024. As many as the
/// paths of an image's layers have.
const MAX_DEPTH: usize = 256;
/// Links that are followed at the end of a path, as many as the kernel's.
const MAX_LINKS: usize = 40;
/// Time for who holds a lease on a file, as file servers do, to give it up.
const LEASE_PATIENCE: Duration = Duration::from_secs(5);
/// The attribute of a tar's entry that holds the extended attribute of that name.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A device, FIFO or socket.
    Other,
}

impl From<FileType> for PathKind {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// Writes what is at `path` on the host as a tar, under `name`; a link at its end is followed if `follow`. What
/// `YoukiRuntime::copy_in` takes.
///
/// # Errors
/// The kernel's.
pub fn pack_path(path: &Path, follow: bool, name: &Path, out: impl Write) -> io::Result<()> {
    let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let source = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC | last, Mode::empty())?;
    pack::pack(source.as_fd(), Some(name), out)
}

/// Puts what is in `tar`, as `YoukiRuntime::copy_out` writes it, into the directory `dir` of the host. Its first name
/// component becomes `rename`; where that is `.`, what is in it comes into `dir` itself. Nothing is written outside of
/// `dir`, whatever links there are, and nothing behind one that the tar has itself: who wrote it does not choose what in `dir`
/// is written to.
///
/// # Errors
/// The kernel's, with the entry's name.
pub fn unpack_into(dir: &Path, rename: Option<&Path>, tar: impl Read, owner: Owner) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, dir, flags, Mode::empty())?;
    unpack::unpack_untrusted(root.as_fd(), Path::new("/"), rename, tar, owner)
}

/// What is at `path` within `root`; a link at its end is followed if `follow`.
pub(crate) fn look(root: BorrowedFd<'_>, path: &Path, follow: bool) -> io::Result<(OwnedFd, PathKind)> {
    let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let fd = open_within(root, path, OFlags::PATH | last)?;
    let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode).into();
    Ok((fd, kind))
}

/// Where links at the end of `path` lead within `root`, as a path of it, whether something is there or not.
pub(crate) fn follow(root: BorrowedFd<'_>, path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match look(root, &path, false) {
            Ok((link, PathKind::Symlink)) => {
                let to = readlinkat(&link, c"", Vec::new())?;
                path = path.parent().unwrap_or(Path::new("/")).join(OsStr::from_bytes(to.as_bytes()));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(path),
        }
    }
    Err(Errno::LOOP.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, PoisonError};

    use super::pack::pack;
    use super::unpack::unpack;
    use super::*;

    fn open(dir: &Path) -> OwnedFd {
        fs::File::open(dir).unwrap().into()
    }

    #[test]
    fn a_tree_comes_through_with_its_attributes() {
        let from = tempfile::tempdir().unwrap();
        let tree = from.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        let long = "n".repeat(200);
        fs::write(tree.join("sub").join(&long), b"content").unwrap();
        fs::hard_link(tree.join("sub").join(&long), tree.join("same")).unwrap();
        fs::set_permissions(tree.join("same"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(tree.join("sub"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/no/where", tree.join("link")).unwrap();
        rustix::fs::mknodat(open(&tree), "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let set = rustix::fs::setxattr(tree.join("same"), "user.note", b"\x00\xff", rustix::fs::XattrFlags::empty());

        let mut tar = Vec::new();
        pack(open(&tree).as_fd(), Some(Path::new("tree")), &mut tar).unwrap();
        let to = tempfile::tempdir().unwrap();
        unpack(open(to.path()).as_fd(), Path::new("/"), None, &tar[..], Owner::Kept).unwrap();

        let copy = to.path().join("tree");
        let (one, other) =
            (fs::metadata(copy.join("same")).unwrap(), fs::metadata(copy.join("sub").join(&long)).unwrap());
        assert_eq!((one.ino(), one.mode() & 0o7777), (other.ino(), 0o4750));
        assert_eq!(fs::read(copy.join("same")).unwrap(), b"content");
        let original = fs::metadata(tree.join("same")).unwrap();
        assert_eq!((one.mtime(), one.mtime_nsec()), (original.mtime(), original.mtime_nsec()));
        let (sub, copied) = (fs::metadata(tree.join("sub")).unwrap(), fs::metadata(copy.join("sub")).unwrap());
        assert_eq!((copied.mode(), copied.mtime_nsec()), (sub.mode(), sub.mtime_nsec()));
        assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("/no/where"));
        assert_eq!(FileType::from_raw_mode(fs::symlink_metadata(copy.join("fifo")).unwrap().mode()), FileType::Fifo);
        if set.is_ok() {
            let mut value = [0; 8];
            assert_eq!(rustix::fs::getxattr(copy.join("same"), "user.note", &mut value), Ok(2));
        }
    }

    #[test]
    fn a_link_in_the_way_never_leads_out_of_the_root() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("root");
        fs::create_dir_all(root.join("real")).unwrap();
        symlink("../../outside", root.join("up")).unwrap();
        symlink("/real", root.join("inside")).unwrap();
        fs::create_dir(host.path().join("outside")).unwrap();
        let one = |name: &str| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_entry_type(tar::EntryType::Regular);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, &b"x"[..]).unwrap();
            builder.into_inner().unwrap()
        };
        let fd = open(&root);
        let put = |name: &str, dir: &str| unpack(fd.as_fd(), Path::new(dir), None, &one(name)[..], Owner::Kept);
        put("inside/file", "/").unwrap();
        assert!(root.join("real/file").exists());
        // Within the root there is no such directory, or it is made there.
        let _ = put("up/file", "/");
        let _ = put("file", "/up");
        assert!(put("../file", "/").is_err() && put("a/../../file", "/real").is_err());
        assert_eq!(fs::read_dir(host.path().join("outside")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(host.path()).unwrap().count(), 2);
    }

    /// A container that changes while it is copied gives one name twice, or means to: first as a link.
    #[test]
    fn nothing_is_put_behind_a_link_of_the_same_copy() {
        let entry = |builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, link: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_mtime(1);
            header.set_size(0);
            header.set_entry_type(kind);
            match link {
                "" => builder.append_data(&mut header, name, &b""[..]).unwrap(),
                link => builder.append_link(&mut header, name, link).unwrap(),
            }
        };
        let (dir, file, hard) = (tar::EntryType::Directory, tar::EntryType::Regular, tar::EntryType::Link);
        for (second, link) in [((dir, "t/a"), ""), ((file, "t/a/x"), ""), ((dir, "t/a/x"), ""), ((hard, "t/b"), "t/a")]
        {
            let to = tempfile::tempdir().unwrap();
            let mut builder = tar::Builder::new(Vec::new());
            entry(&mut builder, dir, "t", "");
            entry(&mut builder, tar::EntryType::Symlink, "t/a", "/");
            entry(&mut builder, second.0, second.1, link);
            entry(&mut builder, file, "t/b/x", "");
            let tar = builder.into_inner().unwrap();
            let owner = Owner::Always { uid: 0, gid: 0 };
            let error = super::unpack_into(to.path(), Some(Path::new("data")), &tar[..], owner).unwrap_err();
            assert!(error.to_string().contains("data/a was a link before"), "{second:?}: {error}");
            let names: Vec<_> = fs::read_dir(to.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["data"], "{second:?}");
        }
    }

    #[test]
    fn a_link_at_the_end_is_followed_within_the_root() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("root");
        fs::create_dir_all(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), "").unwrap();
        for (to, link) in
            [("/dir/file", "one"), ("../one", "dir/two"), ("new", "dir/dangling"), ("loop", "loop"), ("../../x", "up")]
        {
            symlink(to, root.join(link)).unwrap();
        }
        let fd = open(&root);
        for (path, end) in [
            ("/dir/file", "/dir/file"),
            ("/one", "/dir/file"),
            ("/dir/two", "/dir/file"),
            ("/dir/dangling", "/dir/new"),
            ("/none", "/none"),
        ] {
            let found = follow(fd.as_fd(), Path::new(path)).unwrap();
            assert!(look(fd.as_fd(), &found, false).map(|(_, kind)| kind).ok() != Some(PathKind::Symlink), "{path}");
            let same = |path: &Path| look(fd.as_fd(), path, false).ok().map(|(fd, _)| fstat(fd).unwrap().st_ino);
            assert!(found == Path::new(end) || same(&found) == same(Path::new(end)), "{path}: {found:?}");
        }
        assert_eq!(follow(fd.as_fd(), Path::new("/up")).unwrap(), Path::new("/../../x"));
        assert!(follow(fd.as_fd(), Path::new("/loop")).is_err() && follow(fd.as_fd(), Path::new("/one/x")).is_err());
    }

    #[test]
    fn the_first_name_can_be_another_and_the_owner_too() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("a"), "1").unwrap();
        fs::hard_link(from.path().join("a"), from.path().join("b")).unwrap();
        let mut tar = Vec::new();
        pack(open(from.path()).as_fd(), Some(Path::new("old")), &mut tar).unwrap();
        let to = tempfile::tempdir().unwrap();
        fs::create_dir(to.path().join("dir")).unwrap();
        let rename = Some(Path::new("new"));
        unpack(open(to.path()).as_fd(), Path::new("dir"), rename, &tar[..], Owner::Always { uid: 0, gid: 0 }).unwrap();
        let contents = Some(Path::new("."));
        unpack(open(to.path()).as_fd(), Path::new("dir"), contents, &tar[..], Owner::Kept).unwrap();
        assert!(to.path().join("dir/a").exists() && !to.path().join("dir/old").exists());
        let new = to.path().join("dir/new");
        assert_eq!(fs::metadata(new.join("a")).unwrap().ino(), fs::metadata(new.join("b")).unwrap().ino());
    }

    #[test]
    fn directories_of_a_copy_that_is_cut_off_are_as_the_tar_says() {
        let from = tempfile::tempdir().unwrap();
        let tree = from.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("sub/file"), [1; 4096]).unwrap();
        for dir in [&tree, &tree.join("sub")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut tar = Vec::new();
        pack(open(&tree).as_fd(), Some(Path::new("tree")), &mut tar).unwrap();
        let to = tempfile::tempdir().unwrap();
        // In the middle of the file, which is the last entry.
        let cut = tar.iter().rposition(|byte| *byte == 1).unwrap() - 2048;
        unpack(open(to.path()).as_fd(), Path::new("/"), None, &tar[..cut], Owner::Kept).unwrap_err();
        for dir in ["tree", "tree/sub"] {
            assert_eq!(fs::metadata(to.path().join(dir)).unwrap().mode() & 0o7777, 0o755, "{dir}");
        }
    }

    /// For tests that rename without a pause: two at once would be more than a walk is begun again for.
    pub(super) static RENAMING: Mutex<()> = Mutex::new(());

    /// The device is one that no driver has: to open it fails.
    #[test]
    fn a_device_that_takes_a_files_place_is_not_opened() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not root: not checked");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let _alone = RENAMING.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, device) = (open(dir.path()), rustix::fs::makedev(120, 7));
        fs::write(dir.path().join("a"), "content").unwrap();
        rustix::fs::mknodat(&from, "b", FileType::CharacterDevice, Mode::RUSR, device).unwrap();
        assert!(fs::File::open(dir.path().join("b")).is_err(), "120:7 can be opened: nothing is tested");
        let (done, exchanged) = (AtomicBool::new(false), rustix::fs::RenameFlags::EXCHANGE);
        let mut files_named = [0; 2];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(&from, "a", &from, "b", exchanged).unwrap();
                }
            });
            let packed: io::Result<()> = (0..2000).try_for_each(|_| {
                let mut tar = Vec::new();
                pack(from.as_fd(), None, &mut tar)?;
                for entry in tar::Archive::new(&tar[..]).entries()? {
                    let entry = entry?;
                    let is_file = entry.header().entry_type().is_file();
                    files_named[usize::from(entry.path()?.ends_with("a"))] += usize::from(is_file);
                }
                Ok(())
            });
            done.store(true, Ordering::Relaxed);
            packed.unwrap();
        });
        assert!(files_named.iter().all(|count| *count > 0), "nobody exchanged them meanwhile: {files_named:?}");
    }

    #[test]
    fn what_is_no_tar_is_an_error_and_never_a_panic() {
        let to = tempfile::tempdir().unwrap();
        let mut bytes = vec![b'x'; 2048];
        assert!(unpack(open(to.path()).as_fd(), Path::new("/"), None, &bytes[..], Owner::Kept).is_err());
        let mut tar = Vec::new();
        pack(open(to.path()).as_fd(), Some(Path::new("t")), &mut tar).unwrap();
        for at in 0..tar.len().min(512) {
            bytes.clone_from(&tar);
            bytes[at] ^= 0xff;
            let _ = unpack(open(to.path()).as_fd(), Path::new("/"), None, &bytes[..], Owner::Kept);
        }
    }
}
