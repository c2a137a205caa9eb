//! The tiny init of a container whose spec asks for one: PID 1, which starts the program, passes signals on to it, reaps
//! what is orphaned, and ends as it ends.
//!
//! It is the supervisor's own executable, small and static, through a descriptor that refuses to be written: the image
//! need not have one. It begins with the container's filter, capabilities and user already taken on.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use super::launch::{self, Launch, Program};
use crate::bundle::CapabilitySets;

/// Tells a process that it is to be one; the errno pipe's number and the program's arguments follow.
pub(crate) const INIT_ARGUMENT: &CStr = c"--berth-init";
/// Its name in the container's process list.
const NAME: &CStr = c"berth-init";

/// Executes the init of `executable`, which tells through `errno` of a program that cannot be executed. Returns only
/// with the reason why not.
pub(super) fn execute(executable: &OwnedFd, errno: RawFd, args: &[CString], env: &[CString]) -> io::Error {
    let number = match CString::new(errno.to_string()) {
        Ok(number) => number,
        Err(_) => return io::Error::from_raw_os_error(libc::EINVAL),
    };
    let own = [NAME.as_ptr(), INIT_ARGUMENT.as_ptr(), number.as_ptr()];
    let argv: Vec<_> = own.into_iter().chain(args.iter().map(|arg| arg.as_ptr())).chain([std::ptr::null()]).collect();
    let envp: Vec<_> = env.iter().map(|entry| entry.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: the descriptors are open; all strings are NUL-terminated, both arrays NULL-terminated, and all outlive the
    // calls.
    unsafe {
        if libc::fcntl(errno, libc::F_SETFD, 0) < 0 {
            return io::Error::last_os_error();
        }
        let (argv, envp) = (argv.as_ptr(), envp.as_ptr());
        libc::syscall(libc::SYS_execveat, executable.as_raw_fd(), c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
    }
    io::Error::last_os_error()
}

/// `main` of the init; `args` are what follows [`INIT_ARGUMENT`].
pub(super) fn main(mut args: impl Iterator<Item = std::ffi::OsString>) -> i32 {
    let Some(errno) = args.next().and_then(|text| text.to_str()?.parse::<RawFd>().ok()) else { return 127 };
    let args: Vec<Vec<u8>> = args.map(OsStringExt::into_vec).collect();
    let env: Vec<Vec<u8>> =
        std::env::vars_os().map(|(name, value)| [name.into_vec(), b"=".to_vec(), value.into_vec()].concat()).collect();
    let program = Launch::prepare(Program {
        args: &args,
        env: &env,
        capabilities: CapabilitySets::default(),
        no_new_privileges: false,
        filter: None,
        rlimits: Vec::new(),
    });
    match program.and_then(|program| run(&program, errno)) {
        Ok(code) => code,
        Err(error) => {
            tell(errno, &error);
            127
        }
    }
}

fn run(program: &Launch, errno: RawFd) -> io::Result<i32> {
    // SAFETY: plain system calls on integers and a set that is initialised first; this process is single-threaded, so
    // the child may do whatever it could.
    unsafe {
        libc::fcntl(errno, libc::F_SETFD, libc::FD_CLOEXEC);
        let mut all = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        let all = all.assume_init();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        let child = libc::fork();
        match child {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // A group of its own, in front of the terminal if there is one.
                libc::setpgid(0, 0);
                libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                libc::tcsetpgrp(0, libc::getpid());
                launch::reset_signals();
                tell(errno, &program.execute());
                libc::_exit(127);
            }
            _ => {}
        }
        libc::close(errno);
        loop {
            let signal = libc::sigwaitinfo(&raw const all, std::ptr::null_mut());
            if signal == libc::SIGCHLD {
                if let Some(code) = reap(child) {
                    return Ok(code);
                }
            } else if signal > 0 {
                libc::kill(child, signal);
            }
        }
    }
}

/// Reaps all that have ended; the exit code, if the program is among them.
fn reap(program: libc::pid_t) -> Option<i32> {
    let mut ended = None;
    let mut status = 0;
    loop {
        // SAFETY: writes one int.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            pid if pid > 0 => {
                if pid == program {
                    let signalled = libc::WIFSIGNALED(status);
                    ended = Some(if signalled { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) });
                }
            }
            _ => return ended,
        }
    }
}

fn tell(errno: RawFd, error: &io::Error) {
    let number = error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes();
    // SAFETY: the buffer is readable for its length.
    unsafe { libc::write(errno, number.as_ptr().cast(), number.len()) };
}
