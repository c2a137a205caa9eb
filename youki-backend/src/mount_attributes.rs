//! mount_setattr(2), which neither rustix nor nix has.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets `attributes` (`MOUNT_ATTR_*`) on the mount whose root a descriptor is, and its propagation (`MS_PRIVATE`; 0
/// leaves it). Linux 5.12.
pub(crate) fn set(mount: impl AsFd, attributes: u64, propagation: u64) -> io::Result<()> {
    apply(mount, attributes, propagation, 0)
}

/// The same for it and every mount beneath it.
pub(crate) fn set_recursively(mount: impl AsFd, attributes: u64, propagation: u64) -> io::Result<()> {
    apply(mount, attributes, propagation, libc::AT_RECURSIVE)
}

fn apply(mount: impl AsFd, attributes: u64, propagation: u64, flags: i32) -> io::Result<()> {
    let request = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path is a C string, `request` is live and its size is passed; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
