//! The one epoll, and what its events are about.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A child ended.
    Children,
    /// Somebody connects.
    Listener,
    /// The helper reports.
    Result,
    /// The init's `execve` failed or succeeded.
    Errno,
    /// Output, by stream.
    Output(usize),
    /// A connection, by slot.
    Connection(usize),
    /// An attached client takes more output, by attachment.
    Attachment(usize),
    /// An exec's `execve` failed or succeeded, by slot.
    ExecErrno(usize),
    /// The log has room again.
    Log,
}

impl Source {
    fn encode(self) -> u64 {
        let (kind, index) = match self {
            Self::Children => (0, 0),
            Self::Listener => (1, 0),
            Self::Result => (2, 0),
            Self::Errno => (3, 0),
            Self::Output(index) => (4, index),
            Self::Connection(index) => (5, index),
            Self::Attachment(index) => (6, index),
            Self::ExecErrno(index) => (7, index),
            Self::Log => (8, 0),
        };
        kind << 32 | index as u64
    }

    fn decode(data: u64) -> Option<Self> {
        let index = (data & 0xffff_ffff) as usize;
        Some(match data >> 32 {
            0 => Self::Children,
            1 => Self::Listener,
            2 => Self::Result,
            3 => Self::Errno,
            4 => Self::Output(index),
            5 => Self::Connection(index),
            6 => Self::Attachment(index),
            7 => Self::ExecErrno(index),
            8 => Self::Log,
            _ => return None,
        })
    }
}

/// The epoll. A descriptor must be removed before it is closed: a forked child holds a copy, and close alone would
/// leave events that hit whatever gets its number next.
#[derive(Debug)]
pub(super) struct Events(OwnedFd);

impl Events {
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    pub fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(source.encode()), EventFlags::IN)?)
    }

    pub fn add_for_writing(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(source.encode()), EventFlags::OUT)?)
    }

    /// Asks for room to write as well, or no longer.
    pub fn set_writing(&self, fd: impl AsFd, source: Source, writing: bool) -> io::Result<()> {
        let flags = if writing { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(source.encode()), flags)?)
    }

    /// One that is not there is removed already.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits for events, at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Source>> {
        let mut room = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 16];
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match epoll::wait(&self.0, &mut room, timeout.as_ref()) {
            Ok(count) => Ok(room[..count].iter().filter_map(|event| Source::decode(event.data.u64())).collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A descriptor that is readable when a child ended. SIGCHLD is blocked from now on; programs that are executed get
/// their signals reset.
pub(super) fn children() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use and outlives the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        super::exec::check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        let fd = super::exec::check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes the pending notices of [`children`]; what they say is asked of `waitpid`.
pub(super) fn drain(fd: &OwnedFd) {
    let mut notice = [0u8; size_of::<libc::signalfd_siginfo>() * 4];
    // SAFETY: the buffer is writable for its length.
    while unsafe { libc::read(fd.as_raw_fd(), notice.as_mut_ptr().cast(), notice.len()) } > 0 {}
}

/// Whether `pid` is that of a child that was not reaped.
pub(super) fn is_child(pid: i32) -> bool {
    // SAFETY: an all-zero siginfo_t is a valid one, and is written to.
    unsafe {
        let mut about: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(
            libc::P_PID,
            pid as libc::id_t,
            &raw mut about,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL,
        ) == 0
    }
}

/// A child that ended: its pid and wait status.
pub(super) fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}
