//! The last steps of a process that becomes a user's program, for an init and for an exec alike.
//!
//! They run between fork and `execve` in a single-threaded process. [`Launch::prepare`] does all that allocates;
//! [`Launch::run`] only makes system calls.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use super::init;
use crate::bundle::seccomp::load;
use crate::bundle::{CapabilitySets, Rlimit};

/// The kernel's NAME_MAX: a program looked for in `PATH` is one name of a directory.
const MAX_NAME_BYTES: usize = 255;
/// The kernel's PATH_MAX, with the NUL at the end.
const MAX_PATH_BYTES: usize = libc::PATH_MAX as usize;

/// What is to be executed, and as what.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub args: &'a [Vec<u8>],
    /// `NAME=value` each.
    pub env: &'a [Vec<u8>],
    /// As they shall be afterwards.
    pub capabilities: CapabilitySets,
    pub no_new_privileges: bool,
    /// A compiled system call filter.
    pub filter: Option<Vec<u8>>,
    pub rlimits: Vec<Rlimit>,
}

/// A program ready to be executed.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The program's name first; never empty.
    args: Vec<CString>,
    env: Vec<CString>,
    capabilities: CapabilitySets,
    no_new_privileges: bool,
    filter: Option<Vec<u8>>,
    rlimits: Vec<Rlimit>,
}

impl Launch {
    /// Copies everything into the form the kernel takes. An empty command, or a NUL byte in any text, is `EINVAL`.
    pub fn prepare(program: Program<'_>) -> io::Result<Self> {
        let Program { args, env, capabilities, no_new_privileges, filter, rlimits } = program;
        args.first().filter(|name| !name.is_empty()).ok_or(invalid())?;
        Ok(Self { args: strings(args)?, env: strings(env)?, capabilities, no_new_privileges, filter, rlimits })
    }

    /// Takes on the filter and the capabilities, resets signals, and executes. Returns only with the reason why not.
    ///
    /// The filter comes first: without `no_new_privs` loading it takes CAP_SYS_ADMIN.
    pub fn run(&self) -> io::Error {
        match self.take_on() {
            Ok(()) => self.execute(),
            Err(error) => error,
        }
    }

    /// The same with `executable`, the tiny init, in between: that executes the program, and tells through `errno` if it
    /// cannot.
    pub fn run_beneath_init(&self, executable: &OwnedFd, errno: RawFd) -> io::Error {
        match self.take_on() {
            Ok(()) => init::execute(executable, errno, &self.args, &self.env),
            Err(error) => error,
        }
    }

    /// All of [`run`](Self::run) but the program itself.
    pub fn take_on(&self) -> io::Result<()> {
        for Rlimit { resource, soft, hard } in &self.rlimits {
            let limit = libc::rlimit64 { rlim_cur: *soft, rlim_max: *hard };
            // SAFETY: the struct is live; no old limit is asked for.
            let result = unsafe { libc::prlimit64(0, *resource, &raw const limit, std::ptr::null_mut()) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if self.no_new_privileges {
            prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
        }
        // With a filter loaded, every call below must be one that it allows; Docker's allows them all. So that a
        // stricter one works as well, only what must come after is left for after.
        for capability in 0..64 {
            if self.capabilities.bounding & (1 << capability) == 0 {
                match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                    other => other?,
                }
            }
        }
        reset_signals();
        die_with_parent()?;
        if let Some(filter) = &self.filter {
            load::load(filter)?;
        }
        set_capabilities(&self.capabilities)?;
        for capability in 0..64 {
            if self.capabilities.ambient & (1 << capability) != 0 {
                prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability)?;
            }
        }
        Ok(())
    }

    /// `execvp` with an environment of its own and no fallback to a shell.
    pub fn execute(&self) -> io::Error {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        let Some(program) = self.args.first() else { return invalid() };
        let path = self.env.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        search(program, path.unwrap_or_default(), |candidate| {
            // SAFETY: all three are NUL-terminated, the two arrays NULL-terminated, and they outlive the call.
            unsafe { libc::execve(candidate.as_ptr(), args.as_ptr(), env.as_ptr()) };
            io::Error::last_os_error()
        })
    }
}

/// Calls `attempt`, which returns only with the reason why not, where `execvp` would look for `program`: at the path itself if
/// it holds a slash, else in each directory of `path`. Nothing is allocated: both texts may be an image's, and in a
/// supervisor their product is the host's memory.
fn search(program: &CStr, path: &[u8], mut attempt: impl FnMut(&CStr) -> io::Error) -> io::Error {
    let name = program.to_bytes_with_nul();
    if name.contains(&b'/') {
        return attempt(program);
    }
    if name.len() > MAX_NAME_BYTES + 1 {
        return io::Error::from_raw_os_error(libc::ENAMETOOLONG);
    }
    let mut room = [0; MAX_PATH_BYTES];
    let mut reason = io::Error::from_raw_os_error(libc::ENOENT);
    for dir in path.split(|byte| *byte == b':') {
        let dir = if dir.is_empty() { b"." } else { dir };
        // As execvp: what is longer than any path is passed over.
        let Some(candidate) = room.get_mut(..dir.len() + 1 + name.len()) else { continue };
        candidate[..dir.len()].copy_from_slice(dir);
        candidate[dir.len()] = b'/';
        candidate[dir.len() + 1..].copy_from_slice(name);
        let Ok(candidate) = CStr::from_bytes_with_nul(candidate) else { return invalid() };
        let error = attempt(candidate);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            // As execvp: the search goes on, but if nothing else is found, this is the answer.
            Some(libc::EACCES) => reason = error,
            _ => return error,
        }
    }
    reason
}

/// Exit code of a program that is not there, as a shell's.
pub(crate) const NOT_FOUND: i32 = 127;
/// Exit code of one that cannot be executed.
pub(crate) const CANNOT_EXECUTE: i32 = 126;

/// As a shell tells it.
pub(crate) fn exec_failure_code(errno: i32) -> i32 {
    if matches!(errno, libc::ENOENT | libc::ENOTDIR) { NOT_FOUND } else { CANNOT_EXECUTE }
}

/// Joins a process's own death to its parent's. Must follow the last change of user id, which clears it.
pub(crate) fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)
}

/// Makes all permitted capabilities effective again, which a change of user id took away: loading a filter without
/// `no_new_privs` needs CAP_SYS_ADMIN. [`Launch::run`] then leaves only what the program shall have.
pub(crate) fn raise_effective() -> io::Result<()> {
    let all = current_capabilities()?;
    set_capabilities(&CapabilitySets { effective: all.permitted, ..all })
}

/// Sets every signal to its default and unblocks all: Rust ignores SIGPIPE and glibc's posix_spawn leaves 32 and 33
/// ignored, and a program would inherit that.
pub(crate) fn reset_signals() {
    /// The kernel's own struct: glibc's wrapper refuses 32 and 33.
    #[repr(C)]
    struct KernelSigaction {
        handler: usize,
        flags: u64,
        restorer: usize,
        mask: u64,
    }
    let default = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for signal in 1..=64 {
        // SAFETY: the struct has the kernel's layout and outlives the call; no old action is asked for.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, std::ptr::null::<KernelSigaction>(), 8);
        }
    }
    let empty: u64 = 0;
    // SAFETY: a mask of 8 bytes that outlives the call.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, std::ptr::null::<u64>(), 8);
    }
}

/// Sets what the scheduler has of this process to what a process of the host has: a container is not to depend on who made
/// it. What is not permitted stays as it is.
pub(crate) fn reset_scheduling() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes integers, and structs that outlive the calls; all bits set is a valid set of CPUs.
    unsafe {
        let all = [u8::MAX; size_of::<libc::cpu_set_t>()];
        libc::sched_setaffinity(0, all.len(), all.as_ptr().cast());
        let normal: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const normal);
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        // 0: none of its own, so that it follows from the nice value.
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0);
        libc::personality(0);
    }
}

/// Gives this process the limits that one of the host has, as far as that is permitted: whoever creates a container may have
/// others, and they would end it, or its supervisor, in the middle of their work. The number of files is another matter.
pub(crate) fn lift_limits() {
    /// The kernel's default (_STK_LIM).
    const STACK_BYTES: u64 = 8 << 20;
    const NONE: u64 = libc::RLIM_INFINITY;
    let limit = |rlim_cur| libc::rlimit { rlim_cur, rlim_max: NONE };
    let unlimited = [libc::RLIMIT_FSIZE, libc::RLIMIT_CPU, libc::RLIMIT_AS, libc::RLIMIT_DATA, libc::RLIMIT_RSS];
    // The kernel has numbers for these by the host's memory, and an administrator his own: the first process has them.
    let of_host = [
        libc::RLIMIT_NPROC,
        libc::RLIMIT_MEMLOCK,
        libc::RLIMIT_SIGPENDING,
        libc::RLIMIT_MSGQUEUE,
        libc::RLIMIT_NICE,
        libc::RLIMIT_RTPRIO,
        libc::RLIMIT_RTTIME,
        libc::RLIMIT_LOCKS,
    ];
    let unlimited = unlimited.into_iter().map(|resource| (resource, limit(NONE)));
    let of_host = of_host.into_iter().filter_map(|resource| Some((resource, limit_of_first_process(resource)?)));
    for (resource, wanted) in unlimited.chain([(libc::RLIMIT_STACK, limit(STACK_BYTES))]).chain(of_host) {
        let mut own = wanted;
        // SAFETY: both structs outlive the calls.
        unsafe {
            if libc::setrlimit(resource, &raw const wanted) != 0 && libc::getrlimit(resource, &raw mut own) == 0 {
                own.rlim_cur = wanted.rlim_cur.min(own.rlim_max);
                libc::setrlimit(resource, &raw const own);
            }
        }
    }
    // Where a file may not grow further that is an error of the write, not the end of a supervisor.
    // SAFETY: takes integers; this process is single-threaded.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn limit_of_first_process(resource: libc::__rlimit_resource_t) -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct outlives the call; no new limit is given.
    let result = unsafe { libc::prlimit(1, resource, std::ptr::null(), &raw mut limit) };
    (result == 0).then_some(limit)
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: the low halves in the first of two, the high ones in the second.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, of this process.
static CAPABILITIES_OF_SELF: CapabilityHeader = CapabilityHeader { version: 0x2008_0522, pid: 0 };

fn set_capabilities(capabilities: &CapabilitySets) -> io::Result<()> {
    let half = |shift: u32| CapabilityData {
        effective: (capabilities.effective >> shift) as u32,
        permitted: (capabilities.permitted >> shift) as u32,
        inheritable: (capabilities.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes exactly two data elements; both structs have the kernel's layout.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const CAPABILITIES_OF_SELF, data.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The effective, permitted and inheritable sets of this process.
fn current_capabilities() -> io::Result<CapabilitySets> {
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: version 3 fills exactly two data elements; both structs have the kernel's layout.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const CAPABILITIES_OF_SELF, data.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let whole = |part: fn(&CapabilityData) -> u32| u64::from(part(&data[0])) | u64::from(part(&data[1])) << 32;
    Ok(CapabilitySets {
        effective: whole(|data| data.effective),
        permitted: whole(|data| data.permitted),
        inheritable: whole(|data| data.inheritable),
        ..CapabilitySets::default()
    })
}

pub(crate) fn prctl(option: i32, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: the options used here take integers only.
    let result = unsafe { libc::prctl(option, a, b, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn strings(texts: &[Vec<u8>]) -> io::Result<Vec<CString>> {
    texts.iter().map(|text| CString::new(text.as_slice()).map_err(|_| invalid())).collect()
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where it is looked for, while there is nothing.
    fn looked_for(program: &[u8], path: &[u8]) -> (Vec<CString>, Option<i32>) {
        let mut tried = Vec::new();
        let reason = search(&CString::new(program).unwrap(), path, |candidate| {
            tried.push(candidate.to_owned());
            io::Error::from_raw_os_error(libc::ENOENT)
        });
        (tried, reason.raw_os_error())
    }

    #[test]
    fn a_program_is_looked_for_as_execvp_does() {
        let (found, reason) = looked_for(b"sh", b"/bin::/usr/bin");
        assert_eq!(found, [c"/bin/sh".to_owned(), c"./sh".to_owned(), c"/usr/bin/sh".to_owned()]);
        assert_eq!(reason, Some(libc::ENOENT));
        assert_eq!(looked_for(b"./a", b"/bin").0, [c"./a".to_owned()]);
        assert_eq!(looked_for(b"sh", b"").0, [c"./sh".to_owned()]);
    }

    #[test]
    fn what_is_found_and_cannot_be_executed_is_the_answer_if_nothing_else_is() {
        for (errnos, calls, answer) in [
            ([libc::EACCES, libc::ENOENT, libc::ENOTDIR], 3, libc::EACCES),
            ([libc::ENOENT, libc::E2BIG, libc::EACCES], 2, libc::E2BIG),
        ] {
            let mut left = errnos.iter();
            let reason = search(c"a", b"/1:/2:/3", |_| io::Error::from_raw_os_error(*left.next().unwrap()));
            assert_eq!((errnos.len() - left.len(), reason.raw_os_error()), (calls, Some(answer)));
        }
    }

    #[test]
    fn a_name_or_a_directory_longer_than_any_is_not_tried() {
        let name = [b'x'; 256];
        assert_eq!(looked_for(&name, &[b':'; 1 << 20]), (vec![], Some(libc::ENAMETOOLONG)));
        assert_eq!(looked_for(&name[1..], b"/a:/b").0.len(), 2);
        let long = |bytes: usize| [&vec![b'd'; bytes], &b":/bin"[..]].concat();
        assert_eq!(looked_for(b"sh", &long(4092)).0.len(), 2);
        assert_eq!(looked_for(b"sh", &long(4093)).0, [c"/bin/sh".to_owned()]);
    }

    #[test]
    fn an_empty_command_or_a_nul_byte_is_refused() {
        let prepare = |args: &[Vec<u8>]| {
            let (capabilities, no_new_privileges) = (CapabilitySets::default(), false);
            Launch::prepare(Program { args, env: &[], capabilities, no_new_privileges, filter: None, rlimits: vec![] })
        };
        assert!(prepare(&[]).is_err());
        assert!(prepare(&[vec![]]).is_err());
        assert!(prepare(&[b"a\0b".to_vec()]).is_err());
    }
}
