//! mount_setattr(2), which neither rustix nor nix has.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Sets `attributes` (`MOUNT_ATTR_*`) on a detached mount, and its propagation (`MS_PRIVATE`; 0 leaves it). Linux 5.12.
pub(crate) fn set(mount: &OwnedFd, attributes: u64, propagation: u64) -> io::Result<()> {
    let request = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path is a C string, `request` is live and its size is passed; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
