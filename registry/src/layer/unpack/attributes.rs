//! Owner, mode, times and extended attributes of what an archive lists.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, XattrFlags};
use rustix::io::Errno;

use super::super::dir;
use super::super::tar::{Entry, shown};
use super::{Completion, OsContext as _, Result, Unpacker};

impl Unpacker<'_> {
    pub(super) fn directory_attributes(&mut self, handle: BorrowedFd<'_>, real: &[u8], entry: &Entry) -> Result<()> {
        let known = self.directories.contains_key(real) || real.is_empty();
        let (uid, gid) = dir::owner(entry.uid, entry.gid);
        rustix::fs::fchown(handle, uid, gid).on(real)?;
        rustix::fs::fchmod(handle, Mode::from_raw_mode(entry.mode & 0o1777)).on(real)?;
        if known {
            for (name, _) in dir::xattrs(handle).on(real)? {
                if !name.to_bytes().starts_with(b"security.selinux") {
                    rustix::fs::fremovexattr(handle, name.as_c_str()).on(real)?;
                }
            }
        }
        let mut default_acl = None;
        for (name, value) in taken_over(&entry.xattrs) {
            if name == dir::DEFAULT_ACL_XATTR {
                default_acl = Some(value.clone());
                continue;
            }
            set_fd_xattr(handle, name, value, real)?;
        }
        let mode = (entry.mode & 0o6000 != 0).then_some(entry.mode);
        self.note(real)?;
        self.directories.insert(real.to_vec(), Completion { mtime: entry.mtime, mode, default_acl });
        Ok(())
    }

    /// Owner, mode, extended attributes and times of what cannot be opened: links, devices, FIFOs.
    pub(super) fn attributes_at(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        real: &[u8],
        entry: &Entry,
        has_mode: bool,
    ) -> Result<()> {
        let c_name = dir::c(name).on(real)?;
        let (uid, gid) = dir::owner(entry.uid, entry.gid);
        rustix::fs::chownat(parent, c_name.as_c_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW).on(real)?;
        if has_mode && entry.mode & 0o7000 != 0 {
            let mode = Mode::from_raw_mode(entry.mode & 0o7777);
            rustix::fs::chmodat(parent, c_name.as_c_str(), mode, AtFlags::empty()).on(real)?;
        }
        for (xattr, value) in taken_over(&entry.xattrs) {
            let path = dir::proc_path(parent, name).on(real)?;
            let xattr_name = dir::c(xattr).on(real)?;
            let set = rustix::fs::lsetxattr(path.as_c_str(), xattr_name.as_c_str(), value, XattrFlags::empty());
            xattr_result(set, xattr, real)?;
        }
        let times = dir::timestamps(entry.mtime);
        rustix::fs::utimensat(parent, c_name.as_c_str(), &times, AtFlags::SYMLINK_NOFOLLOW).on(real)
    }
}

/// The extended attributes that an image may set: not overlayfs' own, which would change what other layers show, and
/// not a label of the machine it was built on.
pub(super) fn taken_over(xattrs: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&[u8], &Vec<u8>)> {
    xattrs.iter().map(|(name, value)| (name.as_slice(), value)).filter(|(name, _)| {
        !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") && *name != b"security.selinux"
    })
}

pub(super) fn set_fd_xattr(file: BorrowedFd<'_>, name: &[u8], value: &[u8], real: &[u8]) -> Result<()> {
    let c_name = dir::c(name).on(real)?;
    xattr_result(rustix::fs::fsetxattr(file, c_name.as_c_str(), value, XattrFlags::empty()), name, real)
}

/// Attributes that this kernel or file system has no place for are left out, as every other unpacker does.
fn xattr_result(result: rustix::io::Result<()>, name: &[u8], real: &[u8]) -> Result<()> {
    match result {
        Err(error @ (Errno::NOTSUP | Errno::PERM | Errno::INVAL)) => {
            tracing::debug!(path = %shown(real), xattr = %shown(name), %error, "extended attribute left out");
            Ok(())
        }
        other => other.on(real),
    }
}
