//! Files that are looked at before they are opened: whoever has the tree may put a device in a file's place, and to open one
//! may do something to the host.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Result;

/// Opens what `there`, an `O_PATH` descriptor, is of, whatever has its name by now. Close-on-exec. By the `/proc` that
/// the thread sees, which must be its own: not within a container's mount namespace.
///
/// # Errors
/// The kernel's.
pub(crate) fn reopen(there: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", there.as_fd().as_raw_fd());
    openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// The same for a regular file, without waiting for anybody; `None` if it is none, which then was not opened.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_regular(there: impl AsFd, flags: OFlags) -> Result<Option<(File, Stat)>> {
    let stat = fstat(&there)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some((reopen(there, flags | OFlags::NONBLOCK)?.into(), stat)))
}
