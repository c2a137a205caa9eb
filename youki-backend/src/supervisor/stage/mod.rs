//! The first of a supervisor's life, linked with libcontainer: from spawn to the exec of the resident.
//!
//! It reads the plan from the agent, takes namespaces of its own, mounts the root filesystem, opens the pipes and the
//! socket, forks the helper that builds the container ([`build`]), and while that works leaves the agent's cgroup and
//! becomes the resident by exec. Process id, children and their pending ends survive the exec; so one exec is
//! on the way, and nothing that is linked with libcontainer stays in memory.

pub(crate) mod again;
mod build;
mod console;
mod executor;
mod fill;
mod mounts;
mod plan;
mod root_path;
mod rootfs;

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::MAX_PLAN_DESCRIPTORS;
use super::failure::Failure;
use super::resident::{
    self, ERRNO_FD, FIRST_HELD_FD, HOST_NETWORK_FD, LISTENER_FD, OUTPUT_FDS, PIPE_BYTES, PLAN_FD, RESULT_FD, STAGE_FD,
    STDIN_FD,
};
use super::wire::{MAX_FRAME_BYTES, Reply};
use crate::error::{Error, Result};
use crate::memfd;
pub(crate) use build::LIBCONTAINER_ID;
pub(crate) use plan::{CreatePlan, FillPlan, RESIDENT_ARGUMENT};
pub(crate) use rootfs::Overlay;

/// What the kernel should take before a supervisor, where we may say so: its container's processes.
const SUPERVISOR_OOM_SCORE_ADJ: &str = "-998";

/// The pipes and the socket, all close-on-exec until they are put in their places.
#[derive(Debug)]
struct Descriptors {
    listener: OwnedFd,
    result: (OwnedFd, OwnedFd),
    errno: (OwnedFd, OwnedFd),
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
    /// The read end, and the write end where it is kept open.
    stdin: (OwnedFd, Option<OwnedFd>),
    /// At the published ports, for the resident.
    held: Vec<OwnedFd>,
}

/// Runs the stage on the connection at standard input. Returns only if it failed.
pub(crate) fn main() -> i32 {
    let read = || close_inherited().and_then(|()| read_plan()).map_err(Error::io("reading", "the plan"));
    let outcome = read().and_then(|(plan, beside)| set_up(plan, beside));
    let Err(error) = outcome;
    eprintln!("berth-create: {}", error.chain());
    // SAFETY: standard input is the connection, open for as long as this process lives.
    let mut connection = std::mem::ManuallyDrop::new(unsafe { fs::File::from_raw_fd(resident::CONTROL_FD) });
    let _ = connection.write_all(&Reply::Failed(Failure::of(&error)).encode());
    1
}

/// What the agent had open without close-on-exec came along: it is not ours to hold.
fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing of this process uses a descriptor above standard error yet.
    super::resident::check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } as i32).map(drop)
}

/// The session keyring of whoever started the agent holds his secrets, and goes with his session: the supervisor, its init
/// and execs get an empty one. A kernel without keyrings, or whose quota is used up, leaves what there is.
fn leave_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: without a name it takes nothing else.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// What comes beside the plan.
struct Beside {
    /// The container's run directory: this one, which goes if this create is cut off, and not what has its path by then.
    run_dir: OwnedFd,
    /// Sockets to be held.
    held: Vec<OwnedFd>,
}

/// The plan: a length and JSON, the only thing on the connection that is not a frame; beside the length come descriptors.
fn read_plan() -> io::Result<(CreatePlan, Beside)> {
    // SAFETY: standard input is the connection, open for as long as this process lives.
    let mut connection = std::mem::ManuallyDrop::new(unsafe { fs::File::from_raw_fd(resident::CONTROL_FD) });
    let mut length = [0; 4];
    let (count, mut held) = receive(&connection, &mut length)?;
    if held.is_empty() {
        return Err(io::Error::other("it came without its directory"));
    }
    let run_dir = held.remove(0);
    connection.read_exact(&mut length[count..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other("it is too long"));
    }
    let mut bytes = vec![0; length];
    connection.read_exact(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, Beside { run_dir, held }))
}

/// The first bytes, and the descriptors beside them.
fn receive(connection: &fs::File, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PLAN_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(bytes)];
    let message = rustix::net::recvmsg(connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut held = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            held.extend(descriptors);
        }
    }
    Ok((message.bytes, held))
}

fn set_up(mut plan: CreatePlan, mut beside: Beside) -> Result<std::convert::Infallible> {
    rustix::process::setsid().map_err(|error| Error::io("leaving", "the agent's session")(error.into()))?;
    leave_keyring();
    super::launch::reset_scheduling();
    super::launch::lift_limits();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    std::env::set_current_dir("/").map_err(Error::io("entering", "/"))?;
    for name in std::env::vars_os().map(|(name, _)| name).collect::<Vec<_>>() {
        // SAFETY: this process is single-threaded.
        unsafe { std::env::remove_var(name) };
    }
    let host_network = match plan.resident.needs_host_network() {
        true => Some(fs::File::open("/proc/self/ns/net").map_err(Error::io("opening", "/proc/self/ns/net"))?.into()),
        false => None,
    };
    let own_network = if plan.own_network { UnshareFlags::NEWNET } else { UnshareFlags::empty() };
    // SAFETY: this process is single-threaded and holds nothing that depends on its namespaces.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | own_network) }
        .map_err(|error| Error::io("leaving", "the host's namespaces")(error.into()))?;
    if plan.own_network {
        raise_loopback().map_err(Error::io("raising", "the loopback interface"))?;
        say(&Reply::NamespacesReady)?;
    }
    if plan.joins_network {
        join_network(&mut beside).map_err(Error::io("entering", "the network of the other container"))?;
    }
    // Unmounts of the host reach us, so that we keep no device busy; our mounts stay ours.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|error| Error::io("privatising", "the mount table")(error.into()))?;
    plan.overlay().mount()?;

    plan.resident.held_sockets = beside.held.len() as i32;
    let descriptors = open_descriptors(&plan, beside)?;
    let supervisor = Some(rustix::process::getpid());
    // SAFETY: this process is single-threaded, so the child may do whatever it could.
    let helper = unsafe { libc::fork() };
    match helper {
        0 => {
            let Descriptors { listener, result, errno, stdout, stderr, stdin, held } = descriptors;
            // So that each pipe has one reader and ends when it should, ports are given back with the resident, and
            // nothing of the host's is near what becomes a container's process.
            drop((listener, result.0, errno.0, stdout.0, stderr.0, stdin.1, held, host_network));
            let streams = build::Streams { stdin: stdin.0, stdout: stdout.1, stderr: stderr.1, errno: errno.1 };
            build::main(plan, streams, result.1, supervisor, build::Which::First)
        }
        -1 => Err(Error::io("forking", "the helper")(io::Error::last_os_error())),
        pid => {
            leave_agent(&plan)?;
            plan.resident.helper_pid = pid;
            become_resident(plan, descriptors, host_network)
        }
    }
}

/// The agent's service may be stopped or killed as a whole; this process is not part of it. Neither is the helper, which
/// joins the container's cgroup meanwhile.
fn leave_agent(plan: &CreatePlan) -> Result<()> {
    let cgroup = plan.supervisors_cgroup();
    // Another process may have dismantled the root since the agent opened it.
    cgroup.join().or_else(|_| cgroup.create().and_then(|()| cgroup.join()))?;
    // Without CAP_SYS_RESOURCE it stays as it is.
    let _ = fs::write("/proc/self/oom_score_adj", SUPERVISOR_OOM_SCORE_ADJ);
    Ok(())
}

/// The namespace stands where sockets at published ports would: those are the other container's.
fn join_network(beside: &mut Beside) -> io::Result<()> {
    let namespace = beside.held.pop().ok_or_else(|| io::Error::other("it did not come along"))?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// `ip link set lo up` in this process's network namespace: all that network `none` has.
fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is live.
    super::resident::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

fn open_descriptors(plan: &CreatePlan, Beside { run_dir, held }: Beside) -> Result<Descriptors> {
    let pipe = || resident_pipe().map_err(Error::io("making", "a pipe"));
    let socket = &plan.resident.socket;
    let listener = bind(socket).map_err(Error::io("binding", socket))?;
    // Who cleans up after a create removes the directory, then looks for a socket: one of us sees the other.
    if rustix::fs::fstat(&run_dir).is_ok_and(|stat| stat.st_nlink == 0) {
        return Err(Error::io("building in", &plan.bundle)(io::Error::other("the create was given up")));
    }
    let stdout = if plan.resident.terminal { socket_pair().map_err(Error::io("making", "a socket"))? } else { pipe()? };
    let stderr = pipe()?;
    for (_, end) in [&stdout, &stderr] {
        // Beyond the user's share of pipe memory it stays at 64 KiB, which is only slower.
        let _ = rustix::pipe::fcntl_setpipe_size(end, PIPE_BYTES as usize);
    }
    let stdin = if plan.resident.stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (fs::File::open("/dev/null").map_err(Error::io("opening", "/dev/null"))?.into(), None)
    };
    Ok(Descriptors { listener: listener.into(), result: pipe()?, errno: pipe()?, stdout, stderr, stdin, held })
}

/// From within the directory: the path may be longer than a socket address holds.
fn bind(socket: &std::path::Path) -> io::Result<UnixListener> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    std::env::set_current_dir(socket.parent().ok_or_else(missing)?)?;
    let listener = UnixListener::bind(socket.file_name().ok_or_else(missing)?);
    std::env::set_current_dir("/")?;
    listener
}

fn resident_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// The init's end is the second, as with a pipe.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

fn become_resident(
    mut plan: CreatePlan,
    descriptors: Descriptors,
    host_network: Option<OwnedFd>,
) -> Result<std::convert::Infallible> {
    let executable = super::sealed::open(&plan.resident_executable)?;
    let config = serde_json::to_string(&plan.resident)
        .map_err(|error| Error::io("writing", "the configuration")(error.into()))?;
    let Descriptors { listener, result, errno, stdout, stderr, stdin, held } = descriptors;
    // Out of the way of the places first, so that none is overwritten before it is copied.
    let mut kept: Vec<(OwnedFd, RawFd)> = vec![
        (listener, LISTENER_FD),
        (result.0, RESULT_FD),
        (errno.0, ERRNO_FD),
        (stdout.0, OUTPUT_FDS[0]),
        (stderr.0, OUTPUT_FDS[1]),
    ];
    kept.extend(stdin.1.map(|stdin| (stdin, STDIN_FD)));
    if plan.resident.keeps_plan() {
        // Volumes are filled once.
        plan.fill.clear();
        kept.push((keep(&plan).map_err(Error::io("keeping", "the plan"))?, PLAN_FD));
    }
    if plan.resident.may_restart() {
        let own = fs::File::open("/proc/self/exe").map_err(Error::io("opening", "/proc/self/exe"))?;
        kept.push((own.into(), STAGE_FD));
    }
    kept.extend(host_network.map(|namespace| (namespace, HOST_NETWORK_FD)));
    kept.extend(held.into_iter().zip(FIRST_HELD_FD..));
    let first_unused = FIRST_HELD_FD + plan.resident.held_sockets;
    let executable = above_places(&executable, first_unused)?;
    for (fd, _) in &mut kept {
        *fd = above_places(fd, first_unused)?;
    }
    for (fd, place) in &kept {
        // SAFETY: `place` is none of the descriptors still needed: those all lie above.
        super::resident::check(unsafe { libc::dup2(fd.as_raw_fd(), *place) })
            .map_err(Error::io("placing", "a descriptor"))?;
    }
    let path = CString::new(format!("/proc/self/fd/{}", executable.as_raw_fd())).unwrap_or_default();
    let config = CString::new(config).map_err(|error| Error::io("writing", "the configuration")(error.into()))?;
    let argv = [c"berth-supervisor".as_ptr(), RESIDENT_ARGUMENT.as_ptr(), config.as_ptr(), std::ptr::null()];
    let env: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: the path and all of argv are C strings that outlive the call; both arrays end in NULL.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Err(Error::io("executing", &plan.resident_executable)(io::Error::last_os_error()))
}

/// The plan in a file that has no name, dies with the supervisor, and cannot be changed: others get it to read.
fn keep(plan: &CreatePlan) -> io::Result<OwnedFd> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    let mut file = fs::File::from(memfd::create(c"berth-plan")?);
    file.write_all(&serde_json::to_vec(plan)?)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

fn above_places(fd: &OwnedFd, first_unused: RawFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, first_unused)
        .map_err(|error| Error::io("placing", "a descriptor")(error.into()))
}

fn say(reply: &Reply) -> Result<()> {
    // SAFETY: standard input is the connection, open for as long as this process lives.
    let mut connection = std::mem::ManuallyDrop::new(unsafe { fs::File::from_raw_fd(resident::CONTROL_FD) });
    connection.write_all(&reply.encode()).map_err(Error::io("answering", "the agent"))
}
