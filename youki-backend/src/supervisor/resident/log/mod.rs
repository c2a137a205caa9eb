//! The container's log: its files, and who writes them.
//!
//! A blocking log is written where its output is read, by the supervisor: a disk that is slow holds the container back.
//! A non-blocking one is written by a process of its own ([`writer`]), for a write to a file can stay in the kernel as
//! long as the disk likes. Between the two lies a ring of bounded size in shared memory; what it does not take is dropped,
//! whole lines at a time, counted, and said in the log. It is no thread, because the supervisor forks execs and helpers,
//! which takes a process with one thread, and because a process with a thread in the kernel cannot be killed.

mod files;
mod queue;
mod ring;
mod writer;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

pub(super) use files::LogFiles;
use writer::Buffered;

/// Where the lines of one container go.
#[derive(Debug)]
pub(super) enum Log {
    /// To the files, at once.
    Blocking(LogFiles),
    /// To the ring.
    NonBlocking(Box<Buffered>),
}

impl Log {
    /// Blocks where `files` do.
    pub fn blocking(files: files::Settings) -> Self {
        Self::Blocking(LogFiles::open(files))
    }

    /// A log that never waits for its disk, with a ring of `buffer_bytes`.
    pub fn non_blocking(files: files::Settings, buffer_bytes: u64) -> io::Result<Self> {
        Buffered::new(files, buffer_bytes).map(|buffered| Self::NonBlocking(Box::new(buffered)))
    }

    /// Appends whole lines.
    pub fn write(&mut self, lines: &[u8]) {
        match self {
            Self::Blocking(files) => files.write(lines),
            Self::NonBlocking(buffered) => buffered.write(lines),
        }
    }

    /// Readable when there is cause to call [`Log::attend`]; the same for as long as this log is.
    pub fn notices(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Blocking(_) => None,
            Self::NonBlocking(buffered) => Some(buffered.notices()),
        }
    }

    /// The ring has room again.
    pub fn attend(&mut self) {
        if let Self::NonBlocking(buffered) = self {
            buffered.attend();
        }
    }

    /// A child of this process has ended: the writer, perhaps.
    pub fn child_ended(&mut self, pid: i32) {
        if let Self::NonBlocking(buffered) = self {
            buffered.child_ended(pid);
        }
    }

    /// From now until `until` there is no container to be held back: what comes waits for room. `None`: there is one.
    pub fn may_wait(&mut self, until: Option<Instant>) {
        if let Self::NonBlocking(buffered) = self {
            buffered.may_wait(until);
        }
    }

    /// Waits until everything is in the files, as long as [`Log::may_wait`] allows. False if some of it is not.
    pub fn settle(&mut self) -> bool {
        match self {
            Self::Blocking(_) => true,
            Self::NonBlocking(buffered) => buffered.settle(),
        }
    }

    /// Ends the writer, which first writes what there is, if it is done with that by `until`. Nothing may be written any
    /// more.
    pub fn close(&mut self, until: Instant) {
        if let Self::NonBlocking(buffered) = self {
            buffered.close(until);
        }
    }

    /// Gives memory back, after some time without output.
    pub fn release(&mut self) {
        if let Self::NonBlocking(buffered) = self {
            buffered.release();
        }
    }
}

/// A line that stands for `bytes` of the container's output.
fn notice(bytes: u64) -> String {
    format!("{} stdout F:dropped={bytes} \n", String::from_utf8_lossy(&super::clock::now_text()))
}

pub(super) use files::Settings as LogSettings;
