//! The processes of a container, from procfs.

use std::io::Read;

use procfs::process::Process;
use runtime_core::TopEntry;

/// Most that is read of a command line, and shown. A process can make its own as long as all the memory that it can map.
const MAX_COMMAND_BYTES: usize = 4096;

/// What these processes are; one that has ended meanwhile is left out. Blocks: a few files of `/proc` each.
pub(crate) fn top(pids: &[u32]) -> Vec<TopEntry> {
    pids.iter().filter_map(|pid| entry(*pid)).collect()
}

fn entry(pid: u32) -> Option<TopEntry> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let status = process.status().ok()?;
    let mut command = command_line(&process);
    if command.is_empty() {
        command = format!("[{}]", status.name);
    }
    Some(TopEntry { pid, ppid: u32::try_from(status.ppid).unwrap_or(0), user: status.euid.to_string(), command })
}

/// Its arguments; empty where it has none, or is gone.
fn command_line(process: &Process) -> String {
    let mut bytes = Vec::new();
    let Ok(file) = process.open_relative("cmdline") else { return String::new() };
    // What was read before an error is shown.
    let _ = file.take(MAX_COMMAND_BYTES as u64).read_to_end(&mut bytes);
    let arguments: Vec<_> = bytes.split(|byte| *byte == 0).filter(|argument| !argument.is_empty()).collect();
    let mut command = String::from_utf8_lossy(&arguments.join(&b' ')).into_owned();
    // What is not UTF-8 has grown.
    command.truncate(command.floor_char_boundary(MAX_COMMAND_BYTES));
    command
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// `struct prctl_mm_map`.
    #[repr(C)]
    struct MemoryMap {
        addresses: [u64; 11],
        auxv: u64,
        auxv_size: u32,
        exe_fd: u32,
    }

    /// A process whose command line is what it has mapped, and killed at the end.
    struct Mapped(libc::pid_t);

    impl Mapped {
        fn of(bytes: usize) -> Self {
            let stat = Process::myself().unwrap().stat().unwrap();
            let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
            let mut ends = [0; 2];
            // SAFETY: a new mapping that nobody reads here; the child of a process with threads makes only system calls,
            // by structs that live.
            unsafe {
                let mapped = libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0);
                assert_ne!(mapped, libc::MAP_FAILED);
                let (begin, end) = (mapped.addr() as u64, mapped.addr() as u64 + bytes as u64);
                let (data, heap) = ((stat.start_data.unwrap(), stat.end_data.unwrap()), stat.start_brk.unwrap());
                let (code, stack) = ((stat.startcode, stat.endcode), stat.startstack);
                let addresses = [code.0, code.1, data.0, data.1, heap, heap, stack, begin, end, end, end];
                let map = MemoryMap { addresses, auxv: 0, auxv_size: 0, exe_fd: u32::MAX };
                assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
                let child = libc::fork();
                if child == 0 {
                    let said =
                        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of_val(&map), 0) as u8;
                    libc::write(ends[1], (&raw const said).cast(), 1);
                    libc::pause();
                    libc::_exit(0);
                }
                let mut said = 1_u8;
                libc::read(ends[0], (&raw mut said).cast(), 1);
                libc::close(ends[0]);
                libc::close(ends[1]);
                libc::munmap(mapped, bytes);
                assert!(child > 0 && said == 0, "the kernel lets no process name its arguments");
                Self(child)
            }
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: our child, not reaped before.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }

    fn bytes_read() -> u64 {
        let counts = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        counts.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    #[test]
    fn a_command_line_as_long_as_its_memory_is_not_read_whole() {
        let process = Mapped::of(1 << 30);
        let before = bytes_read();
        let entry = entry(process.0.cast_unsigned()).unwrap();
        let read = bytes_read() - before;
        assert!(entry.command.starts_with('['), "{:?}", entry.command);
        assert!(read < 64 << 10, "{read}");
    }

    #[test]
    fn arguments_are_joined_and_cut_off() {
        let long = "x".repeat(10_000);
        let mut child = Command::new("sh")
            .args(["-c", "echo; read end", "", "a  b", &long])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let shown = entry(child.id()).unwrap().command;
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(shown.starts_with("sh -c echo; read end a  b xxx"), "{shown}");
        // But for the empty one.
        assert_eq!(shown.len(), MAX_COMMAND_BYTES - 1);
    }
}
