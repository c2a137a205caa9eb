//! What the init does in place of libcontainer's default: our own checks, and our own last steps.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

use super::build::CGROUP_MOUNT;
use super::console;
use super::mounts::RootMounts;
use crate::bundle::cgroup_view::CgroupView;
use crate::error::{Error, Result};
use crate::supervisor::failure::Failure;
use crate::supervisor::launch::{self, Launch};

/// Runs in the init, in the container's namespaces and root.
#[derive(Debug, Clone)]
pub(super) struct Init {
    pub launch: Rc<Launch>,
    pub mounts: Rc<RootMounts>,
    /// The user and the group that the program runs as.
    pub owner: (u32, u32),
    /// What the container sees of its cgroups, on v1.
    pub cgroup_view: Option<Rc<CgroupView>>,
    /// The executable of the tiny init, where one is asked for.
    pub init: Option<Rc<OwnedFd>>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Where the helper tells its supervisor what failed.
    pub report: RawFd,
    /// Write end of the pipe that tells the supervisor of a failed `execve`.
    pub errno: RawFd,
}

impl Executor for Init {
    /// libcontainer would look for the program here, and lose the reason why it cannot be executed later: that is told
    /// through the pipe. What must be done in the container's root with all capabilities is done instead.
    fn validate(&self, _: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        self.prepare().map_err(|error| {
            // libcontainer would pass on the text alone, wrapped in its own.
            let _ = writeln!(&*self.file(self.report), "error {}", Failure::of(&error).to_line());
            ExecutorValidationError::ArgValidationError(error.chain())
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> std::result::Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, _: &Spec) -> std::result::Result<(), ExecutorError> {
        let error = match &self.init {
            Some(executable) => self.launch.run_beneath_init(executable, self.errno),
            None => self.launch.run(),
        };
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = rustix::io::write(&*self.file(self.errno), &errno.to_le_bytes());
        // SAFETY: ends this process without running anything of its parent's.
        unsafe { libc::_exit(127) }
    }
}

impl Init {
    fn prepare(&self) -> Result<()> {
        launch::die_with_parent().map_err(Error::io("sharing the fate of", "the supervisor"))?;
        self.refuse_if_orphaned().map_err(Error::io("looking for", "the supervisor"))?;
        // What is made on the way is root's, as everything the image brings is.
        set_filesystem_ids(0, 0);
        self.mounts.attach()?;
        if let Some(view) = &self.cgroup_view {
            view.attach(Path::new(CGROUP_MOUNT)).map_err(Error::io("mounting", CGROUP_MOUNT))?;
        }
        if self.terminal {
            console::take(self.owner.0).map_err(Error::io("making", "its terminal"))?;
        }
        set_filesystem_ids(self.owner.0, self.owner.1);
        // The change of id took some of them away.
        launch::raise_effective().map_err(Error::io("taking back", "all capabilities"))
    }

    /// One of the descriptors that stay open until execve; it is not closed here.
    fn file(&self, descriptor: RawFd) -> ManuallyDrop<File> {
        // SAFETY: see above.
        ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) })
    }

    /// A supervisor that died before the death signal was asked for can no longer send it. Its process id is not to be
    /// seen from inside the PID namespace; but it alone holds the pipe's read end.
    fn refuse_if_orphaned(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let errno = self.file(self.errno);
        let mut poll_fd = [PollFd::from_borrowed_fd(errno.as_fd(), PollFlags::OUT)];
        poll(&mut poll_fd, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if poll_fd[0].revents().contains(PollFlags::ERR) {
            return Err(io::Error::other("it is gone"));
        }
        Ok(())
    }
}

/// Whose the files are that this process makes.
fn set_filesystem_ids(uid: u32, gid: u32) {
    // SAFETY: both take an integer and cannot fail for a process with all capabilities.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}
