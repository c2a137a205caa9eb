//! The processes of a container, from procfs.

use procfs::process::Process;
use runtime_core::TopEntry;

/// Longest command line that is shown. A process can make its own as long as its stack.
const MAX_COMMAND_BYTES: usize = 4096;

/// What these processes are; one that has ended meanwhile is left out. Blocks: a few files of `/proc` each.
pub(crate) fn top(pids: &[u32]) -> Vec<TopEntry> {
    pids.iter().filter_map(|pid| entry(*pid)).collect()
}

fn entry(pid: u32) -> Option<TopEntry> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let status = process.status().ok()?;
    let mut command = process.cmdline().unwrap_or_default().join(" ");
    if command.is_empty() {
        command = format!("[{}]", status.name);
    }
    if command.len() > MAX_COMMAND_BYTES {
        command.truncate(command.floor_char_boundary(MAX_COMMAND_BYTES));
    }
    Some(TopEntry { pid, ppid: u32::try_from(status.ppid).unwrap_or(0), user: status.euid.to_string(), command })
}
