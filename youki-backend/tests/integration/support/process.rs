//! Processes of the host, as tests look at them and end them.

use std::time::Duration;

use runtime_core::{ContainerId, Runtime};

/// The process id of the container's supervisor: its init's parent.
pub async fn supervisor(runtime: &dyn Runtime, id: &ContainerId) -> u32 {
    let init = runtime.get_container_pid(id).await.unwrap().expect("it runs");
    let parent = status_line(init, "PPid:").parse().unwrap();
    assert_ne!(parent, std::process::id(), "the agent itself is the parent: it takes its containers along");
    parent
}

/// SIGKILL. One that has ended by itself meanwhile is as dead.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
    match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("killing {pid:?}: {error}"),
    }
}

/// Any signal.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Dead; with its parent killed too, it is the host's init that has yet to collect it.
pub fn gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("State:")).is_none_or(|state| state.trim().starts_with('Z'))
}

/// The line of `/proc/<pid>/status` that begins with `name`.
pub fn status_line(pid: u32, name: &str) -> String {
    status_line_if_there(pid, name).unwrap_or_else(|| panic!("process {pid} has no {name}, or is no more"))
}

/// The same of one that may end at any moment.
pub fn status_line_if_there(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|line| line.trim().to_owned())
}

/// USER_HZ: what the kernel counts in here, on every architecture.
const TICKS_PER_SECOND: u64 = 100;

/// What it has used of the CPU, to the clock tick.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> =
        stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|f| f.parse().unwrap()).collect();
    Duration::from_millis((fields[0] + fields[1]) * 1_000 / TICKS_PER_SECOND)
}

/// Memory that is its alone and written to, in bytes; of one that has ended there is none to be read.
pub fn private_dirty_bytes(pid: u32) -> Option<u64> {
    // It opens as long as the process is there, and reads with an error once its memory is not.
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10)
}

/// The process id of the container's supervisor, also while no init of it runs.
pub fn resident(id: &ContainerId) -> Option<u32> {
    let dir = format!("/containers/{id}\"");
    eldest(|arguments| arguments.contains("--berth-supervisor") && arguments.contains(&dir))
}

/// The process whose command line is such a one and its parent's is not: what it forks has its command line, too, until it
/// executes something, and, once the kernel's numbers have begun anew, the lower number.
pub fn eldest(is_such: impl Fn(&str) -> bool) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let such: Vec<u32> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            is_such(&String::from_utf8_lossy(&arguments))
        })
        .collect();
    let parent = |pid: u32| status_line_if_there(pid, "PPid:")?.parse::<u32>().ok();
    such.iter().copied().find(|pid| parent(*pid).is_some_and(|parent| !such.contains(&parent)))
}

/// The process's threads, and how often each was woken.
pub fn times_woken(pid: u32) -> Vec<Vec<String>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let woken = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let lines = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
        lines.map(|line| line.split_whitespace().last().unwrap().to_owned()).collect()
    };
    tasks.map(|task| woken(task.unwrap())).collect()
}
