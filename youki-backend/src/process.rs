//! [`ProcessName`]: a process id that is not mistaken for a later process's.

use std::fmt;
use std::fs;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process of this boot: its id, and when it was started. Written as `1234 567890`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessName {
    pid: i32,
    /// Clock ticks since boot, the 22nd field of `/proc/<pid>/stat` (proc(5)).
    started: u64,
}

impl ProcessName {
    /// Of the process that has `pid` now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field may hold anything, also parentheses and spaces; the 22nd is the 20th after it.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started })
    }

    /// Sends SIGKILL to the process, if it is still that one.
    pub fn kill(self) {
        if let Some(pid) = Pid::from_raw(self.pid)
            && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            && Self::of(self.pid) == Some(self)
        {
            // It fails for one that is dead already, which is what is wanted.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    /// The same as [`wait_for_end`](Self::wait_for_end), without a thread that waits. Must be called within a tokio runtime.
    pub async fn ended_within(self, patience: Duration) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return true };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        if Self::of(self.pid) != Some(self) {
            return true;
        }
        // SAFETY: an `OwnedFd` stays open, with one number, until it is dropped, which is after its registration.
        let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
        let Ok(process) = process else { return false };
        tokio::time::timeout(patience, process.readable()).await.is_ok_and(|ready| ready.is_ok())
    }

    /// Waits until the process is dead, reaped or not; at once if it is. False if it is not within `patience`. Blocks.
    pub fn wait_for_end(self, patience: Duration) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return true };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        if Self::of(self.pid) != Some(self) {
            return true;
        }
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return ready > 0,
                // A signal, such as that of any child's end, says nothing of this process.
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
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

    #[test]
    fn a_signal_does_not_end_the_wait() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let name = ProcessName::of(child.id() as i32).unwrap();
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

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_and_a_later_one_of_its_number_is_not_waited_for() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let name = ProcessName::of(child.id() as i32).unwrap();
        assert_eq!(name.to_string().parse(), Ok(name));
        assert!(!name.wait_for_end(Duration::from_millis(10)));
        assert!(!name.ended_within(Duration::from_millis(10)).await);
        let later = ProcessName { started: name.started + 1, ..name };
        assert!(later.wait_for_end(Duration::from_secs(5)) && later.ended_within(Duration::from_secs(5)).await);
        later.kill();
        assert!(!name.wait_for_end(Duration::from_millis(10)));
        name.kill();
        assert!(name.wait_for_end(Duration::from_secs(5)) && name.ended_within(Duration::from_secs(5)).await);
        child.wait().unwrap();
        assert!(name.wait_for_end(Duration::from_secs(5)) && name.ended_within(Duration::from_secs(5)).await);
    }
}
