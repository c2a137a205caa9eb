//! What the init does in place of libcontainer's default: our own checks, and our own last steps.

use std::collections::HashMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

use super::console;
use crate::bundle::cgroup_view::CgroupView;
use crate::supervisor::launch::{self, Launch};

/// Runs in the init, in the container's namespaces and root.
#[derive(Debug, Clone)]
pub(super) struct Init {
    pub launch: Rc<Launch>,
    /// What the container sees of its cgroups, on v1.
    pub cgroup_view: Option<Rc<CgroupView>>,
    /// The executable of the tiny init, where one is asked for.
    pub init: Option<Rc<OwnedFd>>,
    /// Whom its terminal belongs to, where it has one.
    pub terminal: Option<u32>,
    /// Write end of the pipe that tells the supervisor of a failed `execve`.
    pub errno: RawFd,
}

impl Executor for Init {
    /// libcontainer would look for the program here, and lose the reason why it cannot be executed later: that is told
    /// through the pipe. What must be done in the container's root with all capabilities is done instead.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let failed =
            |what: &str, error: io::Error| ExecutorValidationError::ArgValidationError(format!("{what}: {error}"));
        launch::die_with_parent().map_err(|error| failed("joining the supervisor's fate", error))?;
        self.refuse_if_orphaned().map_err(|error| failed("looking for the supervisor", error))?;
        if let Some(view) = &self.cgroup_view {
            view.attach(Path::new("/sys/fs/cgroup")).map_err(|error| failed("mounting /sys/fs/cgroup", error))?;
        }
        if let Some(uid) = self.terminal {
            console::take(uid).map_err(|error| failed("making its terminal", error))?;
        }
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let error = match &self.init {
            Some(executable) => self.launch.run_beneath_init(executable, self.errno),
            None => self.launch.run(),
        };
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = rustix::io::write(&*self.errno(), &errno.to_le_bytes());
        // SAFETY: ends this process without running anything of its parent's.
        unsafe { libc::_exit(127) }
    }
}

impl Init {
    fn errno(&self) -> ManuallyDrop<OwnedFd> {
        // SAFETY: the descriptor is open until execve, and is not closed here.
        ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.errno) })
    }

    /// A supervisor that died before the death signal was asked for can no longer send it. Its process id is not to be
    /// seen from inside the PID namespace; but it alone holds the pipe's read end.
    fn refuse_if_orphaned(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let errno = self.errno();
        let mut poll_fd = [PollFd::from_borrowed_fd(errno.as_fd(), PollFlags::OUT)];
        poll(&mut poll_fd, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if poll_fd[0].revents().contains(PollFlags::ERR) {
            return Err(io::Error::other("it is gone"));
        }
        Ok(())
    }
}
