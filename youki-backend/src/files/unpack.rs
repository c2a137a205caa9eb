//! A tar stream into a tree.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use runtime_core::Owner;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, Statx, StatxFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, statx,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::{LEASE_PATIENCE, MAX_DEPTH, XATTR_PREFIX, open_regular, open_within};

/// Puts what is in `tar` into the directory `dir` of `root`; its first name component becomes `rename`. Files that are in
/// the way are replaced; a directory and anything else are not put in each other's place.
///
/// # Errors
/// The kernel's, with the entry's name; an entry that leaves the directory, or nothing that is a tar.
pub(crate) fn unpack(
    root: BorrowedFd<'_>,
    dir: &Path,
    rename: Option<&Path>,
    tar: impl Read,
    owner: Owner,
) -> io::Result<()> {
    Target { root, dir, rename, owner, links: None, directories: Vec::new() }.unpack(tar)
}

/// The same for a tar whose author must not choose what it writes to: nothing is put behind a link that it has itself.
///
/// # Errors
/// As [`unpack`]; an entry behind such a link.
pub(crate) fn unpack_untrusted(
    root: BorrowedFd<'_>,
    dir: &Path,
    rename: Option<&Path>,
    tar: impl Read,
    owner: Owner,
) -> io::Result<()> {
    let links = Some(BTreeSet::new());
    Target { root, dir, rename, owner, links, directories: Vec::new() }.unpack(tar)
}

struct Target<'a> {
    root: BorrowedFd<'a>,
    dir: &'a Path,
    rename: Option<&'a Path>,
    owner: Owner,
    /// Those that the tar had, where nothing is to be put behind one.
    links: Option<BTreeSet<PathBuf>>,
    /// Made or met, with what they are to be in the end: files put into them change their times.
    directories: Vec<(PathBuf, Attributes)>,
}

/// What a tar tells of an entry beside its content.
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Target<'_> {
    fn unpack(mut self, tar: impl Read) -> io::Result<()> {
        // It must be one before anything is made.
        open_within(self.root, self.dir, OFlags::PATH | OFlags::DIRECTORY)?;
        let put = self.put_all(tar);
        // Also what an error cut off: until then a directory is root's alone.
        let finished = self.finish();
        put.and(finished)
    }

    /// An error if a link that the tar had leads to `path`, or to what it lies in.
    fn refuse_behind_links(&self, path: Option<&Path>) -> io::Result<()> {
        let Some(links) = &self.links else { return Ok(()) };
        match path.into_iter().flat_map(Path::ancestors).find(|above| links.contains(*above)) {
            Some(link) => Err(io::Error::other(format!("{} was a link before, in the same copy", link.display()))),
            None => Ok(()),
        }
    }

    /// Where an entry goes, within `dir`.
    fn path(&self, name: &Path) -> io::Result<PathBuf> {
        let mut path = PathBuf::new();
        let mut rename = self.rename;
        for component in name.components() {
            match component {
                Component::Normal(part) => match rename.take() {
                    // What is in the first directory comes where that would have.
                    Some(rename) if rename == Path::new(".") => {}
                    Some(rename) => path.push(rename),
                    None => path.push(part),
                },
                Component::CurDir | Component::RootDir => {}
                _ => return Err(io::Error::other(format!("{}: it leaves its directory", name.display()))),
            }
        }
        if path.components().count() > MAX_DEPTH {
            return Err(io::Error::other(format!("{}: nested deeper than {MAX_DEPTH}", name.display())));
        }
        Ok(path)
    }

    fn put_all(&mut self, tar: impl Read) -> io::Result<()> {
        let mut archive = Archive::new(tar);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = self.path(&entry.path()?)?;
            let put = self.put(&mut entry, &path);
            put.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }

    fn put(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let Some(name) = path.file_name().map(OsStr::to_owned) else { return Ok(()) };
        let attributes = self.attributes(entry)?;
        self.refuse_behind_links(path.parent())?;
        let parent = self.parent(path)?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => {
                self.refuse_behind_links(Some(path))?;
                match mkdirat(&parent, &*name, Mode::RWXU) {
                    Err(Errno::EXIST) => {
                        // One that a link leads to serves as well.
                        open_within(self.root, &self.dir.join(path), OFlags::PATH | OFlags::DIRECTORY)?;
                    }
                    other => other?,
                }
                self.directories.push((path.to_owned(), attributes));
                Ok(())
            }
            EntryType::Link => {
                let link = entry.link_name()?.ok_or_else(|| io::Error::other("a hard link without a target"))?;
                let link = self.path(&link)?;
                // Another name of a link is that link, too.
                self.refuse_behind_links(Some(&link))?;
                let from = self.parent(&link)?;
                let old = link.file_name().unwrap_or_default();
                clear(&parent, &name)?;
                Ok(linkat(&from, old, &parent, &*name, AtFlags::empty())?)
            }
            EntryType::Symlink => {
                let link = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?;
                clear(&parent, &name)?;
                symlinkat(&*link, &parent, &*name)?;
                if let Some(links) = &mut self.links {
                    links.insert(path.to_owned());
                }
                attributes.set_on_link(&parent, &name)
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let device = rustix::fs::makedev(
                    header.device_major()?.unwrap_or_default(),
                    header.device_minor()?.unwrap_or_default(),
                );
                let kind = match kind {
                    EntryType::Fifo => FileType::Fifo,
                    EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                clear(&parent, &name)?;
                mknodat(&parent, &*name, kind, Mode::RUSR | Mode::WUSR, device)?;
                attributes.set_on_node(&parent, &name, kind)
            }
            kind if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() => {
                let mut file = create(&parent, &name)?;
                io::copy(entry, &mut file)?;
                attributes.set_on(file.as_fd())
            }
            other => Err(io::Error::other(format!("an entry of kind {:?}", char::from(other.as_byte())))),
        }
    }

    /// The directory that `path` lies in; what leads to it is made where it is missing.
    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        let parent = self.dir.join(path.parent().unwrap_or(Path::new("")));
        match open_within(self.root, &parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        let mut done = self.dir.to_owned();
        for part in path.parent().into_iter().flat_map(Path::components) {
            let above = open_within(self.root, &done, OFlags::PATH | OFlags::DIRECTORY)?;
            match mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => done.push(part),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(open_within(self.root, &parent, OFlags::PATH | OFlags::DIRECTORY)?)
    }

    fn attributes(&self, entry: &mut Entry<'_, impl Read>) -> io::Result<Attributes> {
        let mut mtime = Timespec { tv_sec: i64::try_from(entry.header().mtime()?).unwrap_or(0), tv_nsec: 0 };
        let mut xattrs = Vec::new();
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            let Ok(key) = extension.key() else { continue };
            if key == "mtime" {
                mtime = extension.value().ok().and_then(parse_time).unwrap_or(mtime);
            } else if let Some(name) = key.strip_prefix(XATTR_PREFIX)
                && !name.starts_with("trusted.")
            {
                xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
            }
        }
        let header = entry.header();
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other(format!("the owner {id} is none")));
        let (uid, gid) = match self.owner {
            Owner::Kept => (id(header.uid()?)?, id(header.gid()?)?),
            Owner::Always { uid, gid } => (uid, gid),
        };
        Ok(Attributes { mode: header.mode()? & 0o7777, uid, gid, mtime, xattrs })
    }

    /// Directories get their attributes last, the deepest first. One that cannot have them keeps no other from its own.
    fn finish(self) -> io::Result<()> {
        let mut finished = Ok(());
        for (path, attributes) in self.directories.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let dir = open_within(self.root, &self.dir.join(path), flags).map_err(io::Error::from);
            finished = finished.and(dir.and_then(|dir| attributes.set_on(dir.as_fd())));
        }
        finished
    }
}

impl Attributes {
    /// Owner first: changing it takes set-user-ID bits and capabilities away.
    fn set_on(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(fd, Mode::from_raw_mode(self.mode as RawMode))?;
        for (name, value) in &self.xattrs {
            match fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) => {}
                other => other?,
            }
        }
        Ok(futimens(fd, &self.times())?)
    }

    fn set_on_link(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(utimensat(parent, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// For what has just been made as such a node. Whoever is in the tree may have put something else in its place: a link
    /// would be followed on the host.
    fn set_on_node(&self, parent: &OwnedFd, name: &OsStr, kind: FileType) -> io::Result<()> {
        let node = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&node)?.st_mode) != kind {
            return Err(io::Error::other("something else has taken its place"));
        }
        let node = format!("/proc/self/fd/{}", node.as_raw_fd());
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        chownat(CWD, &node, Some(uid), Some(gid), AtFlags::empty())?;
        chmodat(CWD, &node, Mode::from_raw_mode(self.mode as RawMode), AtFlags::empty())?;
        Ok(utimensat(CWD, &node, &self.times(), AtFlags::empty())?)
    }

    fn times(&self) -> Timestamps {
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: self.mtime }
    }
}

/// A new file under `name`, in place of one that is there.
fn create(parent: &OwnedFd, name: &OsStr) -> io::Result<File> {
    match clear(parent, name) {
        // Something is mounted on it, as on /etc/hosts: its content is what can be replaced.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let there = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let Some((mounted, _)) = open_regular(there, OFlags::WRONLY, LEASE_PATIENCE)? else { return Err(error) };
            mounted.set_len(0)?;
            return Ok(mounted);
        }
        other => other?,
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let new = openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(new.into())
}

/// Removes what has `name`, unless that is a directory, or something is mounted on it: the kernel refuses the latter only
/// to who is in the mount namespace that has the mount, and takes a running container's mount away for anybody else.
fn clear(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let found = match openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let (above, found) = (look_at(parent.as_fd())?, look_at(found.as_fd())?);
    if FileType::from_raw_mode(RawMode::from(found.stx_mode)) == FileType::Directory {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if found.stx_mnt_id != above.stx_mnt_id {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn look_at(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    Ok(statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::MNT_ID)?)
}

/// `1700000000.000000001`, as pax writes times.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    Some(match seconds.starts_with('-') && nanos > 0 {
        // The kernel's nanoseconds count up, also before 1970.
        true => Timespec { tv_sec: whole.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos },
        false => Timespec { tv_sec: whole, tv_nsec: nanos },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::pack::pax_time;

    #[test]
    fn a_link_in_the_place_of_a_node_is_not_followed() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let (file, parent) = (dir.path().join("file"), File::open(dir.path()).unwrap().into());
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        let before = std::fs::metadata(&file).unwrap();
        let (uid, gid) = (before.uid(), before.gid());
        let mtime = Timespec { tv_sec: 1, tv_nsec: 0 };
        let attributes = Attributes { mode: 0o4777, uid, gid, mtime, xattrs: Vec::new() };
        for name in ["link", "file"] {
            attributes.set_on_node(&parent, OsStr::new(name), FileType::Fifo).unwrap_err();
        }
        let after = std::fs::metadata(&file).unwrap();
        assert_eq!((after.mode(), after.mtime()), (before.mode(), before.mtime()));
        mknodat(&parent, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        attributes.set_on_node(&parent, OsStr::new("fifo"), FileType::Fifo).unwrap();
        let fifo = std::fs::metadata(dir.path().join("fifo")).unwrap();
        assert_eq!((fifo.mode() & 0o7777, fifo.mtime()), (0o4777, 1));
    }

    #[test]
    fn times_before_1970_are_written_and_read_as_they_are() {
        for (seconds, nanos, text) in [
            (1_700_000_000, 1, "1700000000.000000001"),
            (0, 0, "0.000000000"),
            (-6, 500_000_000, "-5.500000000"),
            (-1, 999_999_999, "-0.000000001"),
            (-5, 0, "-5.000000000"),
        ] {
            assert_eq!(pax_time(seconds, nanos), text);
            assert_eq!(parse_time(text), Some(Timespec { tv_sec: seconds, tv_nsec: nanos }), "{text}");
        }
        assert_eq!(parse_time("-5.5"), Some(Timespec { tv_sec: -6, tv_nsec: 500_000_000 }));
        assert_eq!(parse_time("12"), Some(Timespec { tv_sec: 12, tv_nsec: 0 }));
    }
}
