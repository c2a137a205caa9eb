//! Restarts: the pause after an attempt that ended by itself, and the next one's begin.
//!
//! The mount and network namespaces are this process's, so root filesystem and address are there still. Only the init
//! is made anew, by a helper that is executed for it: the one that libcontainer is linked with, by the plan of the
//! first attempt.

use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use runtime_core::spec::RestartPolicy;
use runtime_core::{Event, EventKind};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::config::FIRST_HELD_FD;
use super::super::events::Source;
use super::super::exec;
use super::super::output::PIPE_BYTES;
use super::Attempt;
use super::schedule::Schedule;
use crate::attempts::{ATTEMPTS_FILE, Attempts};
use crate::supervisor::launch;
use crate::supervisor::stage::again::{self, AGAIN_ARGUMENT};
use crate::supervisor::wire::{Phase, Reply};

/// Pause after which it is tried again to put the next attempt on record, while the disk does not take that.
const RECORD_PAUSE: Duration = Duration::from_secs(1);

/// Whether and when there is a next attempt.
#[derive(Debug)]
pub(super) struct Restarts {
    pub schedule: Schedule,
    /// When the next attempt is due; `None` if none is.
    pub due: Option<Instant>,
    /// It was told to stop: whatever the policy says, there is no next attempt.
    pub stopped: bool,
    /// Somebody waits for the start of this attempt, and is told if it fails: that is no case for the policy.
    pub by_hand: bool,
    /// When the program of this attempt was started.
    pub started: Option<Instant>,
    /// The executable that builds the container again, by its plan.
    stage: Option<OwnedFd>,
}

impl Restarts {
    pub fn new(policy: &RestartPolicy, stage: Option<OwnedFd>) -> Self {
        Self { schedule: Schedule::new(policy), due: None, stopped: false, by_hand: false, started: None, stage }
    }

    /// The pause before the next attempt, after one that ended with `exit_code`; `failed_to_start` if its program was
    /// not executed.
    pub fn pause(&mut self, exit_code: i32, failed_to_start: bool) -> Option<Duration> {
        if self.stopped || self.stage.is_none() || (self.by_hand && failed_to_start) {
            return None;
        }
        let ran = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        self.schedule.after(exit_code, ran)
    }
}

impl Attempt {
    /// Waits until the next attempt is due and on record. False when there is none to be.
    pub(super) fn await_restart(&mut self) -> bool {
        while let Some(due) = self.restarts.due {
            if due <= Instant::now() {
                match self.put_next_on_record() {
                    Ok(()) => return true,
                    Err(error) => {
                        say!("putting the next attempt on record: {error}");
                        self.restarts.due = Some(Instant::now() + RECORD_PAUSE);
                    }
                }
                continue;
            }
            let deadline = self.next_deadline().map_or(due, |other| other.min(due));
            if let Err(error) = self.turn(Some(deadline)) {
                say!("waiting for events failed: {error}");
                return false;
            }
        }
        false
    }

    /// The time has come; so nothing of this attempt may be lost from now on, whatever dies.
    fn put_next_on_record(&mut self) -> Result<(), String> {
        let Some(last) = &self.last else { return Ok(()) };
        let restarts = if self.restarts.by_hand { 0 } else { self.restarts.schedule.next() };
        let path = self.config.container_dir.join(ATTEMPTS_FILE);
        let next = self.config.attempt.saturating_add(1);
        Attempts::begin(&path, next, restarts, &last.record).map_err(|error| error.chain())?;
        self.tell_who_syncs();
        self.config.attempt = next;
        if !self.restarts.by_hand {
            self.restarts.schedule.begin();
            let said = format!("restart {restarts}, after exit code {}", last.exit.code);
            self.tell(Event { attempt: Some(next), ..Event::now(EventKind::Restart).saying(said) });
        }
        Ok(())
    }

    /// Begins the next attempt: forgets the last one and starts the helper.
    pub(super) fn begin_again(&mut self) {
        self.restarts.due = None;
        self.restarts.started = None;
        self.ended = None;
        self.exec_errno = None;
        self.started_at_nanos = 0;
        self.killed_by_us = false;
        self.built = false;
        self.result_text.clear();
        self.terminal = None;
        self.stdin = None;
        for pipe in [self.result.take(), self.errno.take()].into_iter().flatten() {
            self.events.remove(&pipe);
        }
        if let Err(error) = self.start_helper() {
            self.build_failure = Some(format!("starting its helper: {error}"));
            self.answer_starters(&Reply::Error(format!("starting its helper: {error}")));
            self.ended = Some(0);
        }
    }

    /// Follows another policy from now on. One by which no attempt would follow ends the pause before that.
    pub(super) fn set_restart_policy(&mut self, policy: RestartPolicy) -> Reply {
        if self.restarts.stage.is_none() {
            return Reply::Error("it is removed with its end, or its supervisor is older than this request".to_owned());
        }
        self.restarts.schedule.set_policy(policy);
        let waits = self.phase == Phase::Restarting && self.restarts.due.is_some() && !self.restarts.by_hand;
        let wanted = self.last.as_ref().is_some_and(|last| self.restarts.schedule.wants_another(last.exit.code));
        if waits && !wanted {
            self.give_up_restart("its restart policy was changed while it waited to be restarted");
        }
        Reply::Ok
    }

    /// No next attempt, whatever was planned. What is being built of one is killed.
    pub(super) fn give_up_restart(&mut self, why: &str) {
        self.restarts.stopped = true;
        self.restarts.due = None;
        if self.ended.is_none() {
            self.abandon(why);
        } else if let Some(last) = &mut self.last {
            last.record.restarting = false;
            last.recorded = false;
            self.phase = Phase::Exited;
        }
        self.answer_starters(&Reply::Error(why.to_owned()));
    }

    fn start_helper(&mut self) -> io::Result<()> {
        let (Some(plan), Some(stage)) = (&self.plan, &self.restarts.stage) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (result, result_write) = exec::pipe()?;
        let (errno, errno_write) = exec::pipe()?;
        let (stdout, stdout_write) = if self.config.terminal {
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?
        } else {
            exec::pipe()?
        };
        let (stderr, stderr_write) = exec::pipe()?;
        for end in [&stdout_write, &stderr_write] {
            // Beyond the user's share of pipe memory it stays at 64 KiB, which is only slower.
            let _ = rustix::pipe::fcntl_setpipe_size(end, PIPE_BYTES as usize);
        }
        let (stdin_read, stdin) = if self.config.stdin {
            let (read, write) = exec::pipe()?;
            (read, Some(write))
        } else {
            (std::fs::File::open("/dev/null")?.into(), None)
        };
        let helper = Helper::new(
            stage,
            [
                (plan.as_fd().try_clone_to_owned()?, again::PLAN_FD),
                (result_write, again::RESULT_FD),
                (errno_write, again::ERRNO_FD),
                (stdin_read, again::STDIN_FD),
                (stdout_write, again::STDOUT_FD),
                (stderr_write, again::STDERR_FD),
            ],
        )?;
        for fd in [&result, &errno, &stdout, &stderr].into_iter().chain(&stdin) {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        self.events.add(&result, Source::Result)?;
        self.events.add(&stdout, Source::Output(0))?;
        self.events.add(&stderr, Source::Output(1))?;
        for (output, pipe) in self.outputs.iter_mut().zip([stdout, stderr]) {
            output.pipe = Some(pipe);
        }
        (self.result, self.errno, self.stdin) = (Some(result), Some(errno), stdin);
        self.helper_pid = Some(helper.fork()?);
        Ok(())
    }
}

/// The helper, about to be executed.
struct Helper {
    executable: CString,
    supervisor: CString,
    descriptors: [(OwnedFd, i32); 6],
}

impl Helper {
    /// Moves all descriptors out of the way of their places, so that none is overwritten before it is copied.
    fn new(executable: &OwnedFd, mut descriptors: [(OwnedFd, i32); 6]) -> io::Result<Self> {
        for (fd, _) in &mut descriptors {
            *fd = rustix::io::fcntl_dupfd_cloexec(&*fd, FIRST_HELD_FD)?;
        }
        let mut path = String::new();
        let _ = write!(path, "/proc/self/fd/{}", executable.as_raw_fd());
        let text = |text: String| CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        Ok(Self { executable: text(path)?, supervisor: text(std::process::id().to_string())?, descriptors })
    }

    /// Its own ends of the pipes are closed in this process when this returns.
    fn fork(self) -> io::Result<i32> {
        // SAFETY: this process is single-threaded, so the child may do whatever it could.
        match unsafe { libc::fork() } {
            0 => self.become_helper(),
            pid => exec::check(pid),
        }
    }

    fn become_helper(&self) -> ! {
        let placed = launch::die_with_parent().is_ok()
            && self.descriptors.iter().all(|(fd, place)| {
                // SAFETY: takes two integers; what is at the places is this child's copy.
                unsafe { libc::dup2(fd.as_raw_fd(), *place) >= 0 }
            });
        launch::reset_signals();
        let argv = [c"berth-create".as_ptr(), AGAIN_ARGUMENT.as_ptr(), self.supervisor.as_ptr(), std::ptr::null()];
        let env: [*const libc::c_char; 1] = [std::ptr::null()];
        // SAFETY: path and arguments are C strings that outlive the call, and both arrays end in NULL; _exit ends this
        // process without running anything of its parent's.
        unsafe {
            if placed {
                libc::execve(self.executable.as_ptr(), argv.as_ptr(), env.as_ptr());
            }
            libc::_exit(126)
        }
    }
}
