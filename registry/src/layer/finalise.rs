//! What a layer takes from the layers below, settled once they are there: a directory that it only implies keeps the
//! attributes it has below, and marks of removed files go where there is nothing for them to hide.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, Stat, XattrFlags};
use rustix::io::Result;

use super::below::{Below, Found};
use super::dir;
use super::tar::Time;
use super::unpack::Unpacked;

/// Whether a layer is the same whatever lies below it, but for its whiteouts.
pub(crate) fn is_self_contained(unpacked: &Unpacked) -> bool {
    unpacked.implied.is_empty() && unpacked.passed.is_empty() && !unpacked.unsettled
}

/// Whether each whiteout has something to act on: in a directory that no layer below has, overlayfs would show the
/// mark itself in listings.
pub(crate) fn whiteouts_fit<'a>(whiteouts: impl Iterator<Item = &'a [u8]>, below: &Below) -> Result<bool> {
    let mut parents: Vec<&[u8]> = whiteouts.map(|path| dir::split(path).0).collect();
    parents.dedup();
    for parent in parents {
        if !parent.is_empty() && !below.lookup(parent)?.is_some_and(|found| dir::is_dir(&found.stat)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a layer that was unpacked for itself must be unpacked again over `below`, because what its entries mean
/// depends on it.
pub(crate) fn depends_on(unpacked: &Unpacked, below: &Below) -> Result<bool> {
    if unpacked.unsettled {
        return Ok(true);
    }
    for path in unpacked.implied.iter().chain(&unpacked.passed) {
        if below.lookup(path)?.is_some_and(|found| dir::file_type(&found.stat) == FileType::Symlink) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Settles a layer unpacked at `root` over `below`.
pub(crate) fn finalise(root: OwnedFd, unpacked: Unpacked, below: &Below) -> Result<Unpacked> {
    let empty = Below::default();
    let below = if unpacked.root_opaque { &empty } else { below };
    let mut layer = Finaliser { root, below, out: unpacked };
    for path in &layer.out.implied {
        layer.inherit(path)?;
    }
    layer.drop_idle_whiteouts()?;
    Ok(layer.out)
}

struct Finaliser<'a> {
    root: OwnedFd,
    below: &'a Below,
    out: Unpacked,
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

    fn remove_here(&self, path: &[u8]) -> Result<()> {
        let (parent, name) = dir::split(path);
        let parent = dir::open_dir(self.root.as_fd(), parent)?;
        dir::keeping_times(parent.as_fd(), || dir::remove(parent.as_fd(), name))
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
    rustix::fs::futimens(to, &dir::timestamps(dir::mtime_of(&stat)))
}

pub(super) fn copy_attributes_at(
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
    rustix::fs::utimensat(to, name.as_c_str(), &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Labels are the machine's, overlayfs' marks are each layer's own.
fn is_copied(xattr: &[u8]) -> bool {
    !xattr.starts_with(b"trusted.") && xattr != b"security.selinux"
}

/// Gives one layer's root the attributes of another's.
pub(crate) fn copy_root_attributes(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    copy_attributes(from.as_fd(), to.as_fd())
}
