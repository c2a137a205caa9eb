//! Against a real cgroup with a known load.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::cgroup::tests::Scratch;

#[test]
fn a_burner_and_an_allocation_are_seen_as_large_as_they_are() {
    let Some(scratch) = Scratch::new("load") else { return };
    let mut burner = scratch.shell("while :; do :; done");
    // dd holds one block of 64 MiB, written through by reading zeros into it, for as long as its output is blocked.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut holder = Command::new("sh")
        .args(["-c", "read go; exec dd if=/dev/zero bs=64M count=1 2>/dev/null"])
        .stdin(Stdio::piped())
        .stdout(writer)
        .spawn()
        .unwrap();
    scratch.add(holder.id());
    drop(holder.stdin.take());
    std::thread::sleep(Duration::from_millis(300));

    let (first, start) = (read(&scratch.0, None), Instant::now());
    let ticks = |pid: u32| {
        let stat = procfs::process::Process::new(pid as i32).unwrap().stat().unwrap();
        (stat.utime + stat.stime) * 10_000
    };
    let burnt = ticks(burner.id());
    std::thread::sleep(Duration::from_millis(1500));
    let (second, elapsed) = (read(&scratch.0, None), start.elapsed());
    let burnt = ticks(burner.id()) - burnt;
    let used = second.cpu.usage_usec.unwrap() - first.cpu.usage_usec.unwrap();
    // The burner's own clock ticks every 10 ms.
    assert!(used.abs_diff(burnt) <= burnt / 20 + 20_000, "{used} usec against {burnt}");
    assert!(used <= u64::try_from(elapsed.as_micros()).unwrap() + 20_000);
    let split = second.cpu.user_usec.unwrap() + second.cpu.system_usec.unwrap();
    assert!(split.abs_diff(second.cpu.usage_usec.unwrap()) < 300_000, "{:?}", second.cpu);

    let memory = &second.memory;
    let usage = memory.usage_bytes.unwrap();
    assert!((64 << 20..80 << 20).contains(&usage), "{memory:?}");
    assert!(memory.working_set_bytes.unwrap() <= usage && memory.working_set_bytes.unwrap() >= 60 << 20);
    assert!(memory.peak_bytes.is_none_or(|peak| peak >= usage));
    assert_eq!((memory.limit_bytes, memory.oom_kills), (None, Some(0)));
    assert_eq!((second.pids.current, second.pids.limit), (Some(2), None));
    assert_eq!(second.network, None);

    let few = basic(&scratch.0).unwrap();
    assert!(few.cpu_usage_usec >= second.cpu.usage_usec.unwrap());
    assert_eq!(few.memory_limit, u64::MAX);

    let listed = top(&scratch.0.pids().unwrap());
    assert_eq!(listed.len(), 2);
    let entry = listed.iter().find(|entry| entry.pid == holder.id()).unwrap();
    assert!(entry.command.starts_with("dd if=/dev/zero bs=64M"), "{entry:?}");
    assert_eq!((entry.user.as_str(), entry.ppid), ("0", std::process::id()));

    drop(reader);
    holder.wait().unwrap();
    burner.kill().unwrap();
    burner.wait().unwrap();
}

#[test]
fn a_cgroup_that_is_gone_has_no_numbers_and_says_so() {
    let cgroup = crate::cgroup::Hierarchy::detect().unwrap().container_dirs("/berth-test-none/never");
    assert_eq!(read(&cgroup, None), DetailedStats::default());
    let error = basic(&cgroup).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound), "{error}");
}

#[test]
fn the_network_is_that_of_the_process() {
    let cgroup = crate::cgroup::Hierarchy::detect().unwrap().container_dirs("/berth-test-none/never");
    let interfaces = read(&cgroup, Some(std::process::id())).network.unwrap();
    assert!(!interfaces.contains_key("lo"));
    assert_eq!(read(&cgroup, Some(u32::MAX)).network, None);
}
