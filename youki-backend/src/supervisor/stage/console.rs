//! The terminal of a container, made by its init: in its own devpts, so that its name is true inside.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, Uid, fchown, openat};
use rustix::mount::mount_bind;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};

use crate::supervisor::resident::check;

/// Makes it, sends the supervisor its end through standard output, which is a socket until then, and takes the other
/// as controlling terminal and standard streams, owned by `uid`. Needs a session of its own and CAP_SYS_ADMIN.
pub(super) fn take(uid: u32) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fchown(&slave, Some(Uid::from_raw(uid)), None)?;
    let name = ptsname(&master, Vec::new())?;
    drop(File::create("/dev/console")?);
    mount_bind(name.as_c_str(), "/dev/console")?;
    send(&master)?;
    ioctl_tiocsctty(&slave)?;
    for stream in 0..3 {
        // SAFETY: takes two integers; the standard streams are nobody's to close.
        check(unsafe { libc::dup2(slave.as_raw_fd(), stream) })?;
    }
    Ok(())
}

fn send(master: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(io::stdout(), &[IoSlice::new(b"t")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
