//! Installing a compiled filter in the calling process. Free of everything but libc: the resident supervisor's exec
//! uses it between fork and execve.

use std::io;

/// Size of one BPF instruction.
pub(crate) const INSTRUCTION_BYTES: usize = 8;
/// Most instructions that the kernel takes (BPF_MAXINSNS).
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

/// `SECCOMP_SET_MODE_FILTER` of seccomp(2).
const SET_MODE_FILTER: libc::c_uint = 1;

/// Whether `bytes` has the size of a filter.
pub(crate) fn is_filter_size(bytes: u64) -> bool {
    let step = INSTRUCTION_BYTES as u64;
    bytes > 0 && bytes.is_multiple_of(step) && bytes / step <= MAX_INSTRUCTIONS as u64
}

/// Installs `filter` for the calling thread, for good. Allocates nothing and touches no lock, so it may be called after
/// fork. It is the last privileged step: it needs CAP_SYS_ADMIN, or no_new_privs, and forbids what the filter forbids.
///
/// # Errors
/// EINVAL for what is not a filter, EACCES without the privilege; otherwise the kernel's.
pub(crate) fn load(filter: &[u8]) -> io::Result<()> {
    if !is_filter_size(filter.len() as u64) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let program = libc::sock_fprog {
        len: (filter.len() / INSTRUCTION_BYTES) as libc::c_ushort,
        filter: filter.as_ptr().cast_mut().cast::<libc::sock_filter>(),
    };
    // SAFETY: `program` points at `filter.len()` live bytes, a whole number of instructions; the kernel copies them
    // (from any alignment) and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0 as libc::c_uint, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
