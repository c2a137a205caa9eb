//! Extended attributes, of anything and without following links.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The kernel's limit for one value, and for the list of names.
const XATTR_LIMIT: usize = 64 << 10;
/// Mark the root of a volume's tree; the value is the volume's name. The second is for who may not set the first.
/// They say something of this host, not of the tree: they are not taken into a generation.
const MARKERS: [&CStr; 2] = [c"trusted.berth.volume", c"user.berth.volume"];
/// On the root of a new tree until it holds all that it is to be filled with. Not one of `user.*`: a container could
/// set those, and what bears this mark is nobody's data.
const UNFILLED: &CStr = c"trusted.berth.unfilled";

/// Begins the names of ACLs.
const ACLS: &[u8] = b"system.posix_acl_";

/// Names and values.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// All attributes of `name` in `directory`, in the order of their names. None where the filesystem has none.
pub(crate) fn read(directory: BorrowedFd<'_>, name: &CStr) -> Result<Attributes, Errno> {
    let path = through_proc(directory, name);
    let mut buffer = [0u8; 4096];
    let mut large = Vec::new();
    let names = match rustix::fs::llistxattr(&path, &mut buffer[..]) {
        Ok(length) => &buffer[..length],
        Err(Errno::OPNOTSUPP) => &[],
        Err(Errno::RANGE) => {
            large.resize(XATTR_LIMIT, 0);
            let length = rustix::fs::llistxattr(&path, &mut large[..])?;
            &large[..length]
        }
        Err(error) => return Err(error),
    };
    let mut attributes = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if is_own(name.to_bytes()) {
            continue;
        }
        let mut value = vec![0; XATTR_LIMIT];
        match rustix::fs::lgetxattr(&path, name, &mut value[..]) {
            Ok(length) => value.truncate(length),
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error),
        }
        attributes.push((name.to_bytes().to_vec(), value));
    }
    attributes.sort_unstable();
    Ok(attributes)
}

/// Sets attributes of `name` in `directory`, and returns the name of one that this filesystem does not know, if there is any: a
/// tree may come from another one. Without its ACL a file would be open to more than before: that is an error.
pub(crate) fn write<'a>(
    directory: BorrowedFd<'_>,
    name: &CStr,
    attributes: &'a [(Vec<u8>, Vec<u8>)],
) -> Result<Option<&'a [u8]>, Errno> {
    if attributes.is_empty() {
        return Ok(None);
    }
    let path = through_proc(directory, name);
    let mut unknown = None;
    for (name, value) in attributes.iter().filter(|(name, _)| !is_own(name)) {
        match rustix::fs::lsetxattr(&path, name.as_slice(), value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) if !name.starts_with(ACLS) => unknown = Some(name.as_slice()),
            set => set?,
        }
    }
    Ok(unknown)
}

/// Marks the root of a tree as the volume's.
pub(crate) fn mark(root: impl AsFd, volume: &str) -> Result<(), Errno> {
    let set = |marker| rustix::fs::fsetxattr(&root, marker, volume.as_bytes(), XattrFlags::empty());
    match set(MARKERS[0]) {
        Err(Errno::PERM | Errno::OPNOTSUPP) => set(MARKERS[1]),
        done => done,
    }
}

/// Whether the root of a tree bears the volume's mark.
pub(crate) fn is_marked(root: impl AsFd, volume: &str) -> bool {
    let mut value = [0u8; 256];
    MARKERS.iter().any(|marker| {
        let length = rustix::fs::fgetxattr(&root, *marker, &mut value[..]);
        length.is_ok_and(|length| &value[..length] == volume.as_bytes())
    })
}

/// Marks the root of a new tree as one that is still to be filled.
pub(crate) fn mark_unfilled(root: impl AsFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(root, UNFILLED, b"", XattrFlags::empty())
}

/// Whether a new volume, of whose tree `root` is the root, is still to be filled.
///
/// # Errors
/// Those of reading its attributes.
pub fn is_unfilled(root: impl AsFd) -> std::io::Result<bool> {
    match rustix::fs::fgetxattr(root, UNFILLED, &mut [0u8; 0][..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Says that a new volume holds all that it is to be filled with: from here on it is data. What was written must be on
/// disk.
///
/// # Errors
/// Those of writing its attributes.
pub fn mark_filled(root: impl AsFd) -> std::io::Result<()> {
    match rustix::fs::fremovexattr(root, UNFILLED) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Of this host's, and not of the tree.
fn is_own(name: &[u8]) -> bool {
    MARKERS.iter().chain([&UNFILLED]).any(|own| own.to_bytes() == name)
}

/// There are no calls for attributes that take a directory and a name on kernels before 6.13.
fn through_proc(directory: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_filesystem_does_not_know_keeps_no_other_attribute_away() {
        let base = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(base.path()).unwrap();
        let of = |name: &str| (name.as_bytes().to_vec(), b"x".to_vec());
        let attributes = [of("nobodys.attribute"), of("user.known")];
        assert_eq!(write(root.as_fd(), c".", &attributes).unwrap(), Some(&b"nobodys.attribute"[..]));
        assert_eq!(read(root.as_fd(), c".").unwrap(), [of("user.known")]);
        write(root.as_fd(), c".", &[of("system.posix_acl_nobodys")]).unwrap_err();
    }
}
