//! Files that are looked at before they are opened: whoever has the tree may put a device in a file's place, and to open one
//! may do something to the host.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::{Errno, Result};

/// Between two looks whether a lease was given up, of which the kernel tells nobody.
const PAUSE: Duration = Duration::from_millis(5);

/// Opens what `there`, an `O_PATH` descriptor, is of, whatever has its name by now. Close-on-exec. By the `/proc` that
/// the thread sees, which must be its own: not within a container's mount namespace.
///
/// # Errors
/// The kernel's.
pub(crate) fn reopen(there: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", there.as_fd().as_raw_fd());
    openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// The same for a regular file, without waiting for anybody but who holds a lease on it (fcntl(2), `F_SETLEASE`): for him for
/// `patience`, blocking. `None` if it is none, which then was not opened.
///
/// # Errors
/// The kernel's; `EAGAIN` where the lease is not given up in time.
pub(crate) fn open_regular(there: impl AsFd, flags: OFlags, patience: Duration) -> Result<Option<(File, Stat)>> {
    let stat = fstat(&there)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let deadline = Instant::now() + patience;
    loop {
        // The first has its holder told.
        match reopen(&there, flags | OFlags::NONBLOCK) {
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(PAUSE),
            file => {
                // Its holder may have written to it until now.
                let file = file?;
                let stat = fstat(&file)?;
                return Ok(Some((file.into(), stat)));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::BorrowedFd;
    use std::path::Path;

    use super::*;

    /// Takes a lease on a file that nobody else has open, which is broken by whoever opens it. Its holder is told by a signal
    /// that is ignored.
    pub(crate) fn lease(path: &Path) -> File {
        let file = File::open(path).unwrap();
        set_lease(file.as_fd(), libc::F_WRLCK);
        file
    }

    fn set_lease(file: BorrowedFd<'_>, kind: libc::c_int) {
        const F_SETSIG: libc::c_int = 10;
        // SAFETY: these calls take integers.
        unsafe {
            assert_eq!(libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG), 0);
            // What another test forks has the file open, too, until it is executed.
            let deadline = Instant::now() + Duration::from_secs(20);
            while libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) != 0 {
                let error = std::io::Error::last_os_error();
                assert!(error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline, "{error}");
                thread::sleep(PAUSE);
            }
        }
    }

    #[test]
    fn who_holds_a_lease_is_waited_for_and_no_longer_than_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let lease = lease(&path);
        let there = openat(CWD, &path, OFlags::PATH, Mode::empty()).unwrap();
        let patience = Duration::from_millis(50);
        assert_eq!(open_regular(&there, OFlags::RDONLY, patience).unwrap_err(), Errno::AGAIN);
        thread::scope(|scope| {
            scope.spawn(|| set_lease(lease.as_fd(), libc::F_UNLCK));
            assert!(open_regular(&there, OFlags::RDONLY, Duration::from_secs(60)).unwrap().is_some());
        });
    }
}
