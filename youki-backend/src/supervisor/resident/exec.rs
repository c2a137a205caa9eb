//! Further processes in the container: forked here, so that this process reaps them.
//!
//! One fork, no helper: this process enters the container's PID namespace for its children, forks, and leaves it again;
//! the child joins the cgroup and the other namespaces and becomes the program. Never vfork or CLONE_VM: into a frozen
//! container that would hang for as long as the freeze, while a fork answers at once.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::bundle::{CapabilitySets, Rlimit};
use crate::cgroup::{self, CgroupPaths};
use crate::supervisor::launch::{self, Launch, Program};
use crate::supervisor::wire::{ExecRequest, ExecStep};

/// The kernel's limit (BPF_MAXINSNS) times the size of an instruction.
const MAX_FILTER_BYTES: u64 = 4096 * 8;

/// A running exec.
#[derive(Debug)]
pub(crate) struct Exec {
    pub pid: i32,
    /// The connection that asked for it; `None` once that is gone.
    pub connection: Option<usize>,
    /// It belongs to the container, not to that connection.
    pub detached: bool,
    /// A cgroup of its own within the container's, by which all that it started is found.
    pub cgroup: Option<PathBuf>,
    /// Read end of the pipe that tells of a failed `execve`; taken once it told.
    pub errno_pipe: Option<OwnedFd>,
}

/// The standard streams and the filter that came with the request.
#[derive(Debug)]
pub(crate) struct ExecDescriptors {
    pub stdio: [OwnedFd; 3],
    pub filter: Option<OwnedFd>,
}

/// Starts `request` beside the init `init_pid`. The errno pipe of the result tells whether `execve` succeeded.
pub(crate) fn start(
    request: &ExecRequest,
    descriptors: ExecDescriptors,
    init_pid: i32,
    cgroup: &CgroupPaths,
    number: u64,
) -> io::Result<Exec> {
    let filter = descriptors.filter.map(read_filter).transpose()?;
    let [bounding, effective, permitted, inheritable, ambient] = request.capabilities;
    let capabilities = CapabilitySets { bounding, effective, permitted, inheritable, ambient };
    let launch = Launch::prepare(Program {
        args: &request.args,
        env: &request.env,
        capabilities,
        no_new_privileges: request.no_new_privileges,
        filter,
        rlimits: request
            .rlimits
            .iter()
            .map(|(resource, soft, hard)| Rlimit { resource: *resource, soft: *soft, hard: *hard })
            .collect(),
    })?;
    let cwd = CString::new(request.cwd.as_slice()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let pidfd = pidfd_open(init_pid)?;
    let (errno_read, errno_write) = pipe()?;
    // After all else that may fail.
    let own_cgroup = cgroup.make_exec_dir(number)?;
    let join = cgroup.join_files(own_cgroup.as_deref());

    let child = Child { request, launch, cwd, join, pidfd, stdio: descriptors.stdio, errno: errno_write };
    match child.fork() {
        Ok(pid) => Ok(Exec {
            pid,
            connection: None,
            detached: request.detached,
            cgroup: own_cgroup,
            errno_pipe: Some(errno_read),
        }),
        Err(error) => {
            if let Some(dir) = own_cgroup {
                let _ = fs::remove_dir(dir);
            }
            Err(error)
        }
    }
}

/// Reads what a failed `execve`, or what came before it, left in the pipe: an errno and, from an exec, the step. `None`
/// after a successful one.
pub(crate) fn read_errno(pipe: OwnedFd) -> Option<(i32, ExecStep)> {
    let mut pipe = File::from(pipe);
    let (mut errno, mut step) = ([0; 4], [ExecStep::Program as u8]);
    pipe.read_exact(&mut errno).ok()?;
    // An init tells no step.
    let _ = pipe.read_exact(&mut step);
    Some((i32::from_le_bytes(errno), ExecStep::from_number(step[0])))
}

struct Child<'a> {
    request: &'a ExecRequest,
    launch: Launch,
    cwd: CString,
    join: Vec<PathBuf>,
    pidfd: OwnedFd,
    stdio: [OwnedFd; 3],
    errno: OwnedFd,
}

impl Child<'_> {
    fn fork(self) -> io::Result<i32> {
        let own_namespace = File::open("/proc/self/ns/pid")?;
        setns(self.pidfd.as_raw_fd(), libc::CLONE_NEWPID)?;
        // SAFETY: this process is single-threaded, so the child may do whatever it could.
        let pid = unsafe { libc::fork() };
        let error = io::Error::last_os_error();
        if pid == 0 {
            let (step, error) = self.become_program();
            let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes();
            let _ = File::from(self.errno).write_all(&[a, b, c, d, step as u8]);
            // SAFETY: ends this process without running anything of its parent's.
            unsafe { libc::_exit(127) };
        }
        // Back, or the next helper would be born inside the container.
        setns(own_namespace.as_raw_fd(), libc::CLONE_NEWPID)?;
        if pid < 0 { Err(error) } else { Ok(pid) }
    }

    /// In the child. Returns only with the reason why it could not.
    fn become_program(&self) -> (ExecStep, io::Error) {
        let entered = self.enter().map_err(|error| (ExecStep::Preparation, error));
        // SAFETY: the string lives; chdir takes nothing else.
        let at_home =
            || check(unsafe { libc::chdir(self.cwd.as_ptr()) }).map_err(|error| (ExecStep::WorkingDirectory, error));
        let identified = || self.take_identity().map_err(|error| (ExecStep::Preparation, error));
        match entered.and_then(|()| at_home()).and_then(|_| identified()) {
            Ok(()) => (ExecStep::Program, self.launch.run()),
            Err(failed) => failed,
        }
    }

    /// The container's cgroup and namespaces, and nothing of ours but the three streams.
    fn enter(&self) -> io::Result<()> {
        launch::die_with_parent()?;
        fs::write("/proc/self/oom_score_adj", self.request.oom_score_adj.to_string()).or_else(permitted)?;
        for tasks in &self.join {
            fs::write(tasks, "0")?;
        }
        let namespaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;
        setns(self.pidfd.as_raw_fd(), namespaces)?;
        // SAFETY: setsid, dup2, this ioctl, close_range and umask take integers.
        unsafe {
            libc::setsid();
            for (target, source) in self.stdio.iter().enumerate() {
                check(libc::dup2(source.as_raw_fd(), target as i32))?;
            }
            if self.request.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            // Before chdir, so that no directory of the host's is at hand any more. All but the errno pipe, which goes
            // with execve: until then the container could look at what is open.
            let errno = self.errno.as_raw_fd() as u32;
            if errno > 3 {
                check(libc::syscall(libc::SYS_close_range, 3, errno - 1, 0) as i32)?;
            }
            check(libc::syscall(libc::SYS_close_range, errno + 1, u32::MAX, 0) as i32)?;
            libc::umask(0o022);
        }
        Ok(())
    }

    fn take_identity(&self) -> io::Result<()> {
        // SAFETY: the set*id calls take integers and an array that lives.
        unsafe {
            // Raw system calls: glibc's wrappers would do the same, through its thread machinery.
            let groups = &self.request.groups;
            check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) as i32)?;
            let (uid, gid) = (self.request.uid, self.request.gid);
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as i32)?;
            launch::prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as i32)?;
            launch::prctl(libc::PR_SET_KEEPCAPS, 0, 0)?;
        }
        launch::raise_effective()
    }
}

/// Lowering `oom_score_adj` takes CAP_SYS_RESOURCE, which the host may not have: then it stays as it is.
fn permitted(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) }
}

fn read_filter(descriptor: OwnedFd) -> io::Result<Vec<u8>> {
    let mut filter = Vec::new();
    File::from(descriptor).take(MAX_FILTER_BYTES + 1).read_to_end(&mut filter)?;
    if filter.len() as u64 > MAX_FILTER_BYTES || filter.is_empty() || !filter.len().is_multiple_of(8) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(filter)
}

/// Kills an exec and all that it started, and removes its cgroup where that is empty then.
pub(crate) fn kill(exec: &Exec) {
    // SAFETY: the process is our child and not reaped while it is listed, so the number is still its own.
    unsafe { libc::kill(exec.pid, libc::SIGKILL) };
    if let Some(dir) = &exec.cgroup {
        cgroup::kill_dir(dir);
    }
}

/// Removes the cgroup of an exec that is over; whether it is gone. What the exec left running keeps it, and for a moment
/// what was killed with it: that is the container's init's to reap.
pub(crate) fn remove_cgroup(dir: &Path) -> bool {
    !matches!(fs::remove_dir(dir), Err(error) if error.raw_os_error() == Some(libc::EBUSY))
}

pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both were just made and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
    check(fd)?;
    // SAFETY: just made, and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn setns(fd: i32, namespaces: i32) -> io::Result<()> {
    // SAFETY: takes two integers.
    check(unsafe { libc::setns(fd, namespaces) }).map(|_| ())
}

pub(crate) fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
