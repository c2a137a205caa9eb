//! What a layer takes from the layers below, settled once they are there.
//!
//! The result is that of applying the layers one after the other: a directory that the layer only implies keeps the
//! attributes it has below; one that is a symbolic link below is not hidden, but what lies in it goes where the link
//! points; a hard link to a file below shares that file with all its names.
//!
//! One thing is not kept: the order between two entries of one layer that reach the same path by two ways, directly and
//! through a link of a layer below. The one through the link wins, or the layer is refused. Likewise a layer that puts
//! something else in the place of such a link takes along what it had put behind it before.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, Stat, XattrFlags};
use rustix::io::Errno;

use super::below::{Below, Found};
use super::dir;
use super::tar::{Time, shown};
use super::unpack::{Unpacked, parts_reversed};
use crate::limits::MAX_PATH_BYTES;

/// Symbolic links followed on one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// Why a layer does not fit on the ones below.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FinaliseError {
    #[error("{0}")]
    Invalid(String),
    #[error("the file system refused a step")]
    Os(#[from] Errno),
}

type Result<T> = std::result::Result<T, FinaliseError>;

/// Whether a layer is the same whatever lies below it, but for its whiteouts.
pub(crate) fn is_self_contained(unpacked: &Unpacked) -> bool {
    unpacked.implied.is_empty() && unpacked.links.is_empty()
}

/// Whether each whiteout has something to act on: in a directory that no layer below has, overlayfs would show the
/// mark itself in listings.
pub(crate) fn whiteouts_fit<'a>(whiteouts: impl Iterator<Item = &'a [u8]>, below: &Below) -> rustix::io::Result<bool> {
    let mut parents: Vec<&[u8]> = whiteouts.map(|path| dir::split(path).0).collect();
    parents.dedup();
    for parent in parents {
        if !parent.is_empty() && !below.lookup(parent)?.is_some_and(|found| dir::is_dir(&found.stat)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Settles a layer unpacked at `root` over `below`.
pub(crate) fn finalise(root: OwnedFd, unpacked: Unpacked, below: &Below) -> Result<Unpacked> {
    let empty = Below::default();
    let below = if unpacked.root_opaque { &empty } else { below };
    let mut layer = Finaliser { root, below, out: unpacked };
    layer.relocate_all()?;
    for path in layer.out.implied.clone() {
        layer.inherit(&path)?;
    }
    layer.links()?;
    layer.drop_idle_whiteouts()?;
    Ok(layer.out)
}

struct Finaliser<'a> {
    root: OwnedFd,
    below: &'a Below,
    out: Unpacked,
}

/// What is at a path whose parents are real directories.
enum Effective {
    Absent,
    Directory,
    Symlink(Vec<u8>),
    /// Another kind of file.
    Other,
}

impl Finaliser<'_> {
    /// Whether the layers below show through at `path`: nothing above it is opaque, or no directory here.
    fn shows(&self, path: &[u8]) -> Result<bool> {
        for ancestor in dir::ancestors(path) {
            if self.out.opaque.contains(ancestor) {
                return Ok(false);
            }
            match dir::stat_path(self.root.as_fd(), ancestor)? {
                Some(stat) if !dir::is_dir(&stat) => return Ok(false),
                Some(_) => {}
                None => break,
            }
        }
        Ok(true)
    }

    fn lookup_below(&self, path: &[u8]) -> Result<Option<Found>> {
        if !self.out.replaced.contains(path) && self.shows(path)? { Ok(self.below.lookup(path)?) } else { Ok(None) }
    }

    /// Moves what lies in implied directories that are symbolic links below, until there are none.
    fn relocate_all(&mut self) -> Result<()> {
        loop {
            let mut found = None;
            for path in &self.out.implied {
                if let Some(below) = self.lookup_below(path)?
                    && dir::file_type(&below.stat) == FileType::Symlink
                {
                    found = Some(path.clone());
                    break;
                }
            }
            let Some(path) = found else { return Ok(()) };
            let target = self.resolve(&path)?;
            if target == path || dir::is_beneath(&target, &path) {
                return Err(FinaliseError::Invalid(format!("{}: a link below that leads into itself", shown(&path))));
            }
            self.make_directory(&target)?;
            self.move_contents(&path, &target)?;
        }
    }

    /// Moves all in `from` to `to` and removes `from`.
    fn move_contents(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let root = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        let (source, target) = (dir::open_dir(root.as_fd(), from)?, dir::open_dir(root.as_fd(), to)?);
        if self.out.opaque.remove(from) {
            dir::set_opaque(target.as_fd())?;
            self.out.opaque.insert(to.to_vec());
        }
        let times = rustix::fs::fstat(&target)?;
        for name in dir::names(source.as_fd())? {
            let (old, new) = (dir::join(from, &name), dir::join(to, &name));
            let moving = dir::stat(source.as_fd(), &name)?;
            let existing = dir::stat(target.as_fd(), &name)?;
            let c_name = dir::c(&name)?;
            match (moving, existing) {
                (Some(moving), Some(existing)) if dir::is_dir(&moving) && dir::is_dir(&existing) => {
                    if !self.out.implied.contains(&old) {
                        // The entry lists the directory: its attributes are the ones that count.
                        copy_attributes(
                            dir::open_dir(source.as_fd(), &name)?.as_fd(),
                            dir::open_dir(target.as_fd(), &name)?.as_fd(),
                        )?;
                        self.out.implied.remove(&new);
                    }
                    self.move_contents(&old, &new)?;
                    continue;
                }
                (Some(moving), Some(existing)) if dir::is_whiteout(&moving) => {
                    if dir::is_dir(&existing) {
                        dir::set_opaque(dir::open_dir(target.as_fd(), &name)?.as_fd())?;
                        self.out.opaque.insert(new.clone());
                        self.out.replaced.insert(new);
                    }
                    rustix::fs::unlinkat(&source, c_name.as_c_str(), AtFlags::empty())?;
                    self.out.whiteouts.retain(|path| *path != old);
                    continue;
                }
                (Some(_), Some(_)) => dir::remove(target.as_fd(), &name)?,
                _ => {}
            }
            rustix::fs::renameat_with(&source, c_name.as_c_str(), &target, c_name.as_c_str(), RenameFlags::NOREPLACE)?;
            self.rename_known(&old, &new);
        }
        rustix::fs::futimens(&target, &dir::timestamps(dir::mtime_of(&times)))?;
        let (parent, name) = dir::split(from);
        let parent = dir::open_dir(root.as_fd(), parent)?;
        dir::keeping_times(parent.as_fd(), || {
            rustix::fs::unlinkat(&parent, dir::c(name)?.as_c_str(), AtFlags::REMOVEDIR)
        })?;
        // What lay in it was renamed piece by piece; hard links still to be made are no files yet.
        rename_links(&mut self.out.links, from, to);
        self.out.implied.remove(from);
        if self.out.replaced.remove(from) {
            self.out.replaced.insert(to.to_vec());
        }
        Ok(())
    }

    /// Renames what is known of paths at and beneath `old`.
    fn rename_known(&mut self, old: &[u8], new: &[u8]) {
        for set in [&mut self.out.implied, &mut self.out.opaque, &mut self.out.replaced] {
            let known = std::mem::take(set);
            *set = known.into_iter().map(|path| renamed(&path, old, new).unwrap_or(path)).collect::<BTreeSet<_>>();
        }
        for path in &mut self.out.whiteouts {
            if let Some(renamed) = renamed(path, old, new) {
                *path = renamed;
            }
        }
        rename_links(&mut self.out.links, old, new);
    }

    /// The real path of `path` as the merged layers show it, links followed within the root also in last place. What is
    /// missing is taken as it is named.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>> {
        let mut todo = parts_reversed(path);
        let mut real: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                real = dir::split(&real).0.to_vec();
                continue;
            }
            let next = dir::join(&real, &name);
            if next.len() >= MAX_PATH_BYTES {
                return Err(FinaliseError::Invalid(format!("{}: its real path is too long", shown(path))));
            }
            match self.effective(&next)? {
                Effective::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(FinaliseError::Invalid(format!("{}: too many symbolic links", shown(path))));
                    }
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    todo.extend(parts_reversed(&target));
                }
                // A file on the way: `make_directory` says whether a directory may take its place.
                _ => real = next,
            }
        }
        Ok(real)
    }

    fn effective(&self, path: &[u8]) -> Result<Effective> {
        if let Some(stat) = dir::stat_path(self.root.as_fd(), path)? {
            if dir::is_whiteout(&stat) {
                return Ok(Effective::Absent);
            }
            if dir::is_dir(&stat) && self.out.implied.contains(path) {
                // It is here only for what lies in it: below decides what it is.
                return Ok(match self.lookup_below(path)? {
                    Some(found) if dir::file_type(&found.stat) == FileType::Symlink => {
                        Effective::Symlink(self.read_link(self.below.root(found.layer), path)?)
                    }
                    _ => Effective::Directory,
                });
            }
            return Ok(match dir::file_type(&stat) {
                FileType::Directory => Effective::Directory,
                FileType::Symlink => Effective::Symlink(self.read_link(self.root.as_fd(), path)?),
                _ => Effective::Other,
            });
        }
        Ok(match self.lookup_below(path)? {
            None => Effective::Absent,
            Some(found) => match dir::file_type(&found.stat) {
                FileType::Directory => Effective::Directory,
                FileType::Symlink => Effective::Symlink(self.read_link(self.below.root(found.layer), path)?),
                _ => Effective::Other,
            },
        })
    }

    fn read_link(&self, root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>> {
        let (parent, name) = dir::split(path);
        let parent = dir::open_dir(root, parent)?;
        Ok(rustix::fs::readlinkat(&parent, dir::c(name)?.as_c_str(), Vec::new())?.into_bytes())
    }

    /// Makes the directory `path`, a real path, and what is missing on the way, each as it is below.
    fn make_directory(&mut self, path: &[u8]) -> Result<()> {
        let root = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        let steps: Vec<Vec<u8>> = dir::ancestors(path).chain([path]).map(<[u8]>::to_vec).collect();
        for step in steps.iter().filter(|step| !step.is_empty()) {
            match dir::stat_path(root.as_fd(), step)? {
                Some(stat) if dir::is_dir(&stat) => continue,
                Some(stat) if dir::is_whiteout(&stat) => {
                    // Removed, and now there again: nothing of what was there may show.
                    self.remove_here(step)?;
                    self.out.whiteouts.retain(|path| path != step);
                    self.out.opaque.insert(step.clone());
                    self.out.replaced.insert(step.clone());
                }
                Some(_) => return Err(FinaliseError::Invalid(format!("{}: is no directory", shown(step)))),
                None => {}
            }
            let (parent, name) = dir::split(step);
            let parent = dir::open_dir(root.as_fd(), parent)?;
            dir::keeping_times(parent.as_fd(), || {
                rustix::fs::mkdirat(&parent, dir::c(name)?.as_c_str(), Mode::from_raw_mode(0o755))
            })?;
            if self.out.opaque.contains(step) {
                dir::set_opaque(dir::open_dir(root.as_fd(), step)?.as_fd())?;
            }
            self.out.implied.insert(step.clone());
            self.inherit(step)?;
        }
        Ok(())
    }

    fn remove_here(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = dir::split(path);
        let parent = dir::open_dir(self.root.as_fd(), parent)?;
        Ok(dir::keeping_times(parent.as_fd(), || dir::remove(parent.as_fd(), name))?)
    }

    /// Gives an implied directory the attributes it has below, or those of one that nobody lists.
    fn inherit(&self, path: &[u8]) -> Result<()> {
        let directory = dir::open_dir(self.root.as_fd(), path)?;
        match self.lookup_below(path)? {
            Some(found) if dir::is_dir(&found.stat) => {
                let original = dir::open_dir(self.below.root(found.layer), path)?;
                copy_attributes(original.as_fd(), directory.as_fd())
            }
            _ => {
                let (uid, gid) = dir::owner(0, 0);
                rustix::fs::fchown(&directory, uid, gid)?;
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755))?;
                Ok(rustix::fs::futimens(&directory, &dir::timestamps(Time::default()))?)
            }
        }
    }

    /// Makes the hard links whose targets lie below.
    fn links(&mut self) -> Result<()> {
        for (name, target) in std::mem::take(&mut self.out.links) {
            let (target_parent, target_name) = dir::split(&target);
            let real_target = dir::join(&self.resolve(target_parent)?, target_name);
            if real_target == name {
                continue;
            }
            let missing = || {
                FinaliseError::Invalid(format!(
                    "{}: a hard link to {}, which does not exist",
                    shown(&name),
                    shown(&target)
                ))
            };
            if !self.is_here(&real_target)? {
                // A link's target that is removed by the same layer is still what the link names.
                let found = self.below.lookup(&real_target)?.ok_or_else(missing)?;
                if dir::is_dir(&found.stat) {
                    return Err(FinaliseError::Invalid(format!("{}: a hard link to a directory", shown(&name))));
                }
                self.bring_up(&found, &real_target, &name)?;
                continue;
            }
            self.link(&real_target, &name)?;
        }
        Ok(())
    }

    /// Whether this layer holds something at `path` that a link can share.
    fn is_here(&self, path: &[u8]) -> Result<bool> {
        let stat = dir::stat_path(self.root.as_fd(), path)?;
        Ok(stat.is_some_and(|stat| !dir::is_dir(&stat) && !dir::is_whiteout(&stat)))
    }

    /// Copies a file from below to `name`, and lets every name it has below, where nothing hides it, be the same file.
    fn bring_up(&mut self, found: &Found, path: &[u8], name: &[u8]) -> Result<()> {
        self.make_directory(dir::split(name).0)?;
        if dir::stat_path(self.root.as_fd(), name)?.is_some() {
            self.remove_here(name)?;
        }
        self.copy_file(found, path, name)?;
        let mut names = self.below.links_of(found)?;
        if !names.iter().any(|other| other == path) {
            names.push(path.to_vec());
        }
        for other in names {
            let same = self
                .lookup_below(&other)?
                .is_some_and(|below| (below.stat.st_dev, below.stat.st_ino) == (found.stat.st_dev, found.stat.st_ino));
            if same && dir::stat_path(self.root.as_fd(), &other)?.is_none() {
                self.make_directory(dir::split(&other).0)?;
                self.link(name, &other)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        self.make_directory(dir::split(to).0)?;
        let ((from_parent, from_name), (to_parent, to_name)) = (dir::split(from), dir::split(to));
        let from_parent = dir::open_dir(self.root.as_fd(), from_parent)?;
        let to_parent = dir::open_dir(self.root.as_fd(), to_parent)?;
        if let Some(standing) = dir::stat(to_parent.as_fd(), to_name)? {
            // It came up with another name of its file.
            if dir::stat(from_parent.as_fd(), from_name)?.is_some_and(|stat| stat.st_ino == standing.st_ino) {
                return Ok(());
            }
            self.remove_here(to)?;
        }
        let (from_name, to_name) = (dir::c(from_name)?, dir::c(to_name)?);
        Ok(dir::keeping_times(to_parent.as_fd(), || {
            rustix::fs::linkat(&from_parent, from_name.as_c_str(), &to_parent, to_name.as_c_str(), AtFlags::empty())
        })?)
    }

    /// Copies what is no directory, with every attribute.
    fn copy_file(&self, found: &Found, path: &[u8], name: &[u8]) -> Result<()> {
        let (parent, last) = dir::split(name);
        let parent = dir::open_dir(self.root.as_fd(), parent)?;
        let last_c = dir::c(last)?;
        let (source_parent, source_name) = dir::split(path);
        let source_parent = dir::open_dir(self.below.root(found.layer), source_parent)?;
        let stat = &found.stat;
        dir::keeping_times(parent.as_fd(), || -> Result<()> {
            match dir::file_type(stat) {
                FileType::RegularFile => {
                    let source = self.below.open(found, path, OFlags::RDONLY)?;
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let file = rustix::fs::openat(&parent, last_c.as_c_str(), flags, Mode::from_raw_mode(0o600))?;
                    copy_data(&source, &file, stat.st_size as u64)?;
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&source_parent, dir::c(source_name)?.as_c_str(), Vec::new())?;
                    rustix::fs::symlinkat(target.as_c_str(), &parent, last_c.as_c_str())?;
                }
                kind => {
                    rustix::fs::mknodat(&parent, last_c.as_c_str(), kind, Mode::from_raw_mode(0o600), stat.st_rdev)?;
                }
            }
            copy_attributes_at(source_parent.as_fd(), source_name, parent.as_fd(), last, stat)
        })
    }

    /// Removes the marks of removed files where no layer below has the directory they stand in.
    fn drop_idle_whiteouts(&mut self) -> Result<()> {
        for path in std::mem::take(&mut self.out.whiteouts) {
            let parent = dir::split(&path).0;
            let acts = parent.is_empty()
                || (!self.out.opaque.contains(parent)
                    && self.lookup_below(parent)?.is_some_and(|found| dir::is_dir(&found.stat)));
            if acts {
                self.out.whiteouts.push(path);
            } else if dir::stat_path(self.root.as_fd(), &path)?.is_some_and(|stat| dir::is_whiteout(&stat)) {
                self.remove_here(&path)?;
            }
        }
        Ok(())
    }
}

fn renamed(path: &[u8], old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    (path == old || dir::is_beneath(path, old)).then(|| [new, &path[old.len()..]].concat())
}

fn rename_links(links: &mut [(Vec<u8>, Vec<u8>)], old: &[u8], new: &[u8]) {
    for (name, _) in links {
        if let Some(renamed) = renamed(name, old, new) {
            *name = renamed;
        }
    }
}

/// Owner, mode, extended attributes and times of a directory.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let stat = rustix::fs::fstat(from)?;
    let (uid, gid) = dir::owner(stat.st_uid, stat.st_gid);
    rustix::fs::fchown(to, uid, gid)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let wanted: Vec<_> = dir::xattrs(from)?.into_iter().filter(|(name, _)| is_copied(name.to_bytes())).collect();
    for (name, _) in dir::xattrs(to)? {
        if is_copied(name.to_bytes()) && !wanted.iter().any(|(other, _)| *other == name) {
            rustix::fs::fremovexattr(to, name.as_c_str())?;
        }
    }
    for (name, value) in wanted {
        rustix::fs::fsetxattr(to, name.as_c_str(), &value, XattrFlags::empty())?;
    }
    Ok(rustix::fs::futimens(to, &dir::timestamps(dir::mtime_of(&stat)))?)
}

fn copy_attributes_at(
    from: BorrowedFd<'_>,
    from_name: &[u8],
    to: BorrowedFd<'_>,
    to_name: &[u8],
    stat: &Stat,
) -> Result<()> {
    let name = dir::c(to_name)?;
    let (uid, gid) = dir::owner(stat.st_uid, stat.st_gid);
    rustix::fs::chownat(to, name.as_c_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if dir::file_type(stat) != FileType::Symlink {
        rustix::fs::chmodat(to, name.as_c_str(), Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let path = dir::proc_path(to, to_name)?;
    for (xattr, value) in dir::xattrs_at(from, from_name)? {
        if is_copied(xattr.to_bytes()) {
            rustix::fs::lsetxattr(path.as_c_str(), xattr.as_c_str(), &value, XattrFlags::empty())?;
        }
    }
    let times = dir::timestamps(dir::mtime_of(stat));
    Ok(rustix::fs::utimensat(to, name.as_c_str(), &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Labels are the machine's, overlayfs' marks are each layer's own.
fn is_copied(xattr: &[u8]) -> bool {
    !xattr.starts_with(b"trusted.") && xattr != b"security.selinux"
}

/// Copies a file's data and leaves its holes.
fn copy_data(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<()> {
    let mut at = 0u64;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        let mut position = start;
        while position < end {
            let (mut input, mut output) = (position, position);
            let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(1 << 30);
            let count = rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), length)?;
            if count == 0 {
                break;
            }
            position += count as u64;
        }
        at = end.max(start + 1);
    }
    Ok(rustix::fs::ftruncate(to, size)?)
}

/// Gives one layer's root the attributes of another's.
pub(crate) fn copy_root_attributes(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    copy_attributes(from.as_fd(), to.as_fd())
}
