//! Further processes in the container: forked here, so that this process reaps them.
//!
//! One fork, no helper: this process enters the container's PID namespace for its children, forks, and leaves it again;
//! the child joins the cgroup and the other namespaces and becomes the program. Never vfork or CLONE_VM: into a frozen
//! container that would hang for as long as the freeze, while a fork answers at once.
//!
//! Not dumpable, the child cannot be looked into from the container, unless by who has CAP_SYS_PTRACE. Where that may be, the
//! first fork stays outside until it is what the program is to be, filter and capabilities included, and what it forks into
//! the container's PID namespace has nothing more to do than to be executed. Such a container can read in it what this
//! process knows of it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::bundle::{CapabilitySets, Rlimit};
use crate::cgroup::{self, CgroupPaths};
use crate::memfd;
use crate::supervisor::launch::{self, Launch, Program};
use crate::supervisor::wire::{ExecRequest, ExecStep};

/// The kernel's limit (BPF_MAXINSNS) times the size of an instruction.
const MAX_FILTER_BYTES: u64 = 4096 * 8;

/// For the first of two forks to end: the container decides what it opens.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether it is frozen.
const LOOK_AROUND: Duration = Duration::from_millis(50);
/// For one that is killed.
const TIME_TO_DIE: Duration = Duration::from_millis(100);
/// Between two looks at what cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

const NULL_DEVICE: u64 = libc::makedev(1, 3);

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

/// Where an exec goes.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub init_pid: i32,
    pub cgroup: &'a CgroupPaths,
    /// Its processes may trace those that are not dumpable.
    pub may_trace: bool,
}

/// Starts `request` in `container`, beside its init. The errno pipe of the result tells whether `execve` succeeded.
pub(crate) fn start(
    request: &ExecRequest,
    descriptors: ExecDescriptors,
    container: &Place<'_>,
    number: u64,
) -> io::Result<Exec> {
    let filter = descriptors.filter.map(read_filter).transpose()?;
    let [bounding, effective, permitted, inheritable, ambient] = request.capabilities;
    let capabilities = CapabilitySets { bounding, effective, permitted, inheritable, ambient };
    // Forks that wait for a thaw would hold up this process, one after another.
    if container.may_trace && container.cgroup.is_to_freeze() {
        return Err(io::Error::other("the container is paused"));
    }
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
    let pidfd = pidfd_open(container.init_pid)?;
    let (errno_read, errno_write) = pipe()?;
    // After all else that may fail.
    let own_cgroup = container.cgroup.make_exec_dir(number)?;
    let join = container.cgroup.join_files(own_cgroup.as_deref());

    let child = Child {
        request,
        cgroup: container.cgroup,
        launch,
        cwd,
        join,
        pidfd,
        stdio: descriptors.stdio,
        errno: errno_write,
    };
    match if container.may_trace { child.fork_outside() } else { child.fork() } {
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
    cgroup: &'a CgroupPaths,
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
            let failed = match self.enter() {
                Ok(()) => self.become_program(),
                Err(error) => (ExecStep::Preparation, error),
            };
            self.fail(failed);
        }
        // Back, or the next helper would be born inside the container.
        setns(own_namespace.as_raw_fd(), libc::CLONE_NEWPID)?;
        if pid < 0 { Err(error) } else { Ok(pid) }
    }

    /// Two forks: the first joins the container but for its PID namespace, where it would be seen, takes on all that the
    /// program is to have, and makes the second a child of this process in its stead.
    fn fork_outside(self) -> io::Result<i32> {
        let second = shared_number()?;
        second.store(0, Ordering::SeqCst);
        // SAFETY: as above.
        let first = check(unsafe { libc::fork() })?;
        if first == 0 {
            let entered = self.enter().and_then(|()| setns(self.pidfd.as_raw_fd(), libc::CLONE_NEWPID));
            let ready = entered.and_then(|()| keep_to_this_process(second));
            let ready = ready.map_err(|error| (ExecStep::Preparation, error)).and_then(|()| self.take_place());
            let ready = ready.and_then(|()| self.launch.take_on().map_err(|error| (ExecStep::Program, error)));
            if let Err(failed) = ready {
                self.fail(failed);
            }
            // Its number is known before either of them goes on.
            let flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
            // SAFETY: a fork, of a single-threaded process; the number is in memory that is shared with the parent.
            match check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, second.as_ptr(), 0, 0) } as i32) {
                Ok(0) => {
                    let failed = match launch::die_with_parent().and_then(|()| self.begin_session()) {
                        Ok(()) => (ExecStep::Program, self.launch.execute()),
                        Err(error) => (ExecStep::Preparation, error),
                    };
                    self.fail(failed)
                }
                // SAFETY: ends this process without running anything of its parent's.
                Ok(_) => unsafe { libc::_exit(0) },
                Err(error) => self.fail((ExecStep::Preparation, error)),
            }
        }
        if !has_ended(first, PATIENCE, || self.cgroup.is_to_freeze()) {
            // SAFETY: takes integers; it has not been reaped.
            unsafe { libc::kill(first, libc::SIGKILL) };
            // One that is frozen ends with the freeze, and makes no other: a fork heeds what is to kill it.
            has_ended(first, TIME_TO_DIE, || false);
            let second = second.load(Ordering::SeqCst);
            if second > 0 {
                // SAFETY: as above.
                unsafe { libc::kill(second, libc::SIGKILL) };
            }
            self.tell((ExecStep::Preparation, io::Error::from_raw_os_error(libc::ETIMEDOUT)));
            return Ok(first);
        }
        match second.load(Ordering::SeqCst) {
            // Its failure is told by the pipe, and its end like that of the program.
            0 => Ok(first),
            second => {
                // SAFETY: it is our child, and no status is asked for.
                unsafe { libc::waitpid(first, std::ptr::null_mut(), 0) };
                Ok(second)
            }
        }
    }

    fn tell(&self, (step, error): (ExecStep, io::Error)) {
        let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes();
        let _ = rustix::io::write(&self.errno, &[a, b, c, d, step as u8]);
    }

    /// In a child: tells why it is not the program, and ends.
    fn fail(&self, failed: (ExecStep, io::Error)) -> ! {
        self.tell(failed);
        // SAFETY: ends this process without running anything of its parent's.
        unsafe { libc::_exit(127) }
    }

    /// In the child that is in the container. Returns only with the reason why it could not.
    fn become_program(&self) -> (ExecStep, io::Error) {
        let ready = self.begin_session().map_err(|error| (ExecStep::Preparation, error));
        match ready.and_then(|()| self.take_place()) {
            Ok(()) => (ExecStep::Program, self.launch.run()),
            Err(failed) => failed,
        }
    }

    /// The working directory and the user.
    fn take_place(&self) -> std::result::Result<(), (ExecStep, io::Error)> {
        // SAFETY: the string lives; chdir takes nothing else.
        check(unsafe { libc::chdir(self.cwd.as_ptr()) }).map_err(|error| (ExecStep::WorkingDirectory, error))?;
        self.take_identity().map_err(|error| (ExecStep::Preparation, error))
    }

    /// The container's cgroup and namespaces but that of PIDs, and nothing of ours but the three streams.
    fn enter(&self) -> io::Result<()> {
        launch::die_with_parent()?;
        fs::write("/proc/self/oom_score_adj", self.request.oom_score_adj.to_string()).or_else(permitted)?;
        for tasks in &self.join {
            fs::write(tasks, "0")?;
        }
        let namespaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;
        setns(self.pidfd.as_raw_fd(), namespaces)?;
        let are_null = self.stdio.each_ref().map(is_null_device);
        let null = if are_null.contains(&true) { Some(null_device()?) } else { None };
        // SAFETY: dup2 and close_range take integers.
        unsafe {
            for (target, source) in self.stdio.iter().enumerate() {
                let source = null.as_ref().filter(|_| are_null[target]).unwrap_or(source);
                check(libc::dup2(source.as_raw_fd(), target as i32))?;
            }
            drop(null);
            // Before chdir, so that no directory of the host's is at hand any more. All but the errno pipe, which goes
            // with execve, and the init's pidfd: until then the container could look at what is open.
            let (errno, pidfd) = (self.errno.as_raw_fd() as u32, self.pidfd.as_raw_fd() as u32);
            let mut from = 3;
            for kept in [errno.min(pidfd), errno.max(pidfd)] {
                if kept > from {
                    check(libc::syscall(libc::SYS_close_range, from, kept - 1, 0) as i32)?;
                }
                from = kept + 1;
            }
            check(libc::syscall(libc::SYS_close_range, from, u32::MAX, 0) as i32)?;
        }
        Ok(())
    }

    fn begin_session(&self) -> io::Result<()> {
        // SAFETY: setsid, this ioctl and umask take integers.
        unsafe {
            libc::setsid();
            if self.request.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
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

/// Whether child `pid` ends within `patience`, and before it is `in_vain` to wait; it is not reaped.
fn has_ended(pid: i32, patience: Duration, in_vain: impl Fn() -> bool) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return true };
    let begin = Instant::now();
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        // One that is no child any more has ended.
        if !matches!(waitid(WaitId::Pid(pid), options), Ok(None) | Err(Errno::INTR)) {
            return true;
        }
        let Some(left) = patience.checked_sub(begin.elapsed()) else { return false };
        // Where no descriptor is free, it is looked for again and again.
        let Ok(pidfd) = pidfd_open(pid.as_raw_nonzero().get()) else {
            std::thread::sleep(LOOK_AGAIN.min(left));
            continue;
        };
        let slice = LOOK_AROUND.min(left);
        let slice = Timespec { tv_sec: slice.as_secs() as i64, tv_nsec: slice.subsec_nanos().into() };
        if matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&slice)), Ok(0)) && in_vain() {
            return false;
        }
    }
}

/// A number that this process shares with its children.
fn shared_number() -> io::Result<&'static AtomicI32> {
    static SHARED: OnceLock<&AtomicI32> = OnceLock::new();
    if let Some(shared) = SHARED.get() {
        return Ok(shared);
    }
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, of which the kernel chooses the place.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<AtomicI32>(), access, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, of the right size and alignment, and never unmapped.
    Ok(SHARED.get_or_init(|| unsafe { &*page.cast::<AtomicI32>() }))
}

/// No child of this process, which the container may look into, gets the number's page.
fn keep_to_this_process(shared: &AtomicI32) -> io::Result<()> {
    let page = shared.as_ptr().cast();
    // SAFETY: the page is a mapping of its own, and stays.
    check(unsafe { libc::madvise(page, size_of::<AtomicI32>(), libc::MADV_DONTFORK) }).map(drop)
}

fn is_null_device(descriptor: &OwnedFd) -> bool {
    fstat(descriptor).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == NULL_DEVICE
    })
}

/// The container's own `/dev/null`: the host's would be the container's to change the mode and owner of. Where that is
/// something else by now, a file that is empty, and stays so.
fn null_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let own = openat(CWD, c"/dev/null", flags, Mode::empty());
    if let Some(own) = own.ok().filter(is_null_device) {
        fcntl_setfl(&own, OFlags::RDWR)?;
        return Ok(own);
    }
    let empty = memfd::create(c"null")?;
    fcntl_add_seals(&empty, SealFlags::GROW | SealFlags::SEAL)?;
    Ok(empty)
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
