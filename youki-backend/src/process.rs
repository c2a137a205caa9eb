//! [`ProcessName`]: a process id that is not mistaken for a later process's.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Between two looks at a process that the kernel has no descriptor for at the moment.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A process of this boot: its id, and when it was started. Written as `1234 567890`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessName {
    pid: i32,
    /// Clock ticks since boot, the 22nd field of `/proc/<pid>/stat` (proc(5)).
    started: u64,
}

impl ProcessName {
    /// Of the process that has `pid` now, if one has.
    ///
    /// # Errors
    /// The kernel's, such as for want of descriptors: they tell nothing of the process.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                return Ok(None);
            }
            read => read?,
        };
        // The second field may hold anything, also parentheses and spaces; the 22nd is the 20th after it.
        let started = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(19)?.parse().ok());
        Ok(started.map(|started| Self { pid, started }))
    }

    /// Of the caller. None where its own entry in `/proc` cannot be read.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id().cast_signed()).ok().flatten()
    }

    /// Sends SIGKILL to the process, if it is still that one.
    ///
    /// # Errors
    /// The kernel's, where nothing was sent to a process that may live.
    pub fn kill(self) -> io::Result<()> {
        match self.open()?.map(|process| pidfd_send_signal(process, Signal::KILL)) {
            Some(Err(error)) if error != Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The same as [`wait_for_end`](Self::wait_for_end), without a thread that waits. Must be called within a tokio runtime.
    pub async fn ended_within(self, patience: Duration) -> bool {
        let begun = Instant::now();
        loop {
            match self.open() {
                Ok(None) => return true,
                Ok(Some(process)) => {
                    // SAFETY: an `OwnedFd` stays open, with one number, until it is dropped, which is after its registration.
                    let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
                    let Ok(process) = process else { return false };
                    let left = patience.saturating_sub(begun.elapsed());
                    return tokio::time::timeout(left, process.readable()).await.is_ok_and(|ready| ready.is_ok());
                }
                Err(_) if begun.elapsed() >= patience => return false,
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Waits until the process is dead, reaped or not; at once if it is. False if it is not within `patience`, or if that
    /// is not to be known. Blocks.
    pub fn wait_for_end(self, patience: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            let ended = match self.open() {
                Ok(None) => return true,
                Ok(Some(process)) => {
                    let timeout = Timespec {
                        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                        tv_nsec: left.subsec_nanos().into(),
                    };
                    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).map(|ready| ready > 0)
                }
                Err(_) if left.is_zero() => return false,
                Err(_) => {
                    std::thread::sleep(LOOK_AGAIN);
                    continue;
                }
            };
            match ended {
                Ok(ended) => return ended,
                // A signal, such as that of any child's end, says nothing of this process.
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// A descriptor of the process, which may be dead and not reaped; none once it is gone.
    fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            // Its number is nobody's, or a thread's.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            opened => opened?,
        };
        Ok((Self::of(self.pid)? == Some(self)).then_some(process))
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for ProcessName {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pid, started) = text.trim().split_once(' ').unwrap_or(("", ""));
        Ok(Self { pid: pid.parse()?, started: started.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    #[test]
    fn a_signal_does_not_end_the_wait() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let name = ProcessName::of(child.id() as i32).unwrap().unwrap();
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: the handler does nothing, and is installed without SA_RESTART for a signal that nobody else uses.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut());
        }
        // SAFETY: takes nothing.
        let waiter = unsafe { libc::pthread_self() };
        let interrupt = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            // SAFETY: the thread waits until this one is joined.
            unsafe { libc::pthread_kill(waiter, libc::SIGUSR2) };
            std::thread::sleep(Duration::from_millis(100));
            child.kill().unwrap();
            child.wait().unwrap();
        });
        assert!(name.wait_for_end(Duration::from_secs(30)));
        interrupt.join().unwrap();
    }

    #[test]
    fn want_of_descriptors_is_no_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let name = ProcessName::of(child.id() as i32).unwrap().unwrap();
        let short = std::thread::spawn(move || {
            // SAFETY: this thread uses no descriptor of the others'.
            unsafe { unshare_unsafe(UnshareFlags::FILES) }.unwrap();
            // The others have fewer, of their own.
            let limit = getrlimit(Resource::Nofile);
            let few = limit.current.map_or(4096, |current| current.min(4096));
            setrlimit(Resource::Nofile, Rlimit { current: Some(few), ..limit }).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let null = fs::File::open("/dev/null").unwrap();
            let held: Vec<_> = std::iter::from_fn(|| null.try_clone().ok()).collect();
            assert!(ProcessName::of(name.pid).is_err() && name.kill().is_err());
            assert!(!name.wait_for_end(Duration::from_millis(50)));
            assert!(!runtime.block_on(name.ended_within(Duration::from_millis(50))));
            drop(held);
            name.kill().unwrap();
            assert!(name.wait_for_end(Duration::from_secs(5)));
        });
        short.join().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_and_a_later_one_of_its_number_is_not_waited_for() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let name = ProcessName::of(child.id() as i32).unwrap().unwrap();
        assert_eq!(name.to_string().parse(), Ok(name));
        assert!(!name.wait_for_end(Duration::from_millis(10)));
        assert!(!name.ended_within(Duration::from_millis(10)).await);
        let later = ProcessName { started: name.started + 1, ..name };
        assert!(later.wait_for_end(Duration::from_secs(5)) && later.ended_within(Duration::from_secs(5)).await);
        later.kill().unwrap();
        assert!(!name.wait_for_end(Duration::from_millis(10)));
        name.kill().unwrap();
        assert!(name.wait_for_end(Duration::from_secs(5)) && name.ended_within(Duration::from_secs(5)).await);
        child.wait().unwrap();
        assert!(name.wait_for_end(Duration::from_secs(5)) && name.ended_within(Duration::from_secs(5)).await);
    }
}
