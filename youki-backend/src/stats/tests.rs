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
    let begin = Instant::now();
    while read(&scratch.0, None).memory.usage_bytes.unwrap() < 64 << 20 {
        assert!(begin.elapsed() < Duration::from_secs(60), "dd holds no 64 MiB");
        std::thread::sleep(Duration::from_millis(20));
    }
    // What it still has to do is no burning.
    std::thread::sleep(Duration::from_millis(300));

    let ticks = || {
        let stat = procfs::process::Process::new(burner.id() as i32).unwrap().stat().unwrap();
        (stat.utime + stat.stime) * 10_000
    };
    // The burner burns on while this thread waits for a CPU: its clock is read before and after the cgroup's.
    let look = || {
        let (before, now, stats, after) = (ticks(), Instant::now(), read(&scratch.0, None), ticks());
        (before..=after, now, stats)
    };
    let (first_ticks, start, first) = look();
    std::thread::sleep(Duration::from_millis(1500));
    let (second_ticks, _, second) = look();
    let elapsed = start.elapsed();
    let (least, most) = (second_ticks.start() - first_ticks.end(), second_ticks.end() - first_ticks.start());
    let used = second.cpu.usage_usec.unwrap() - first.cpu.usage_usec.unwrap();
    // The burner's own clock ticks every 10 ms.
    let slack = |burnt: u64| burnt / 20 + 20_000;
    assert!(used + slack(least) >= least && used <= most + slack(most), "{used} usec against {least} to {most}");
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

/// cgroup v2 as Linux 6.1 shows it; a directory stands for the mount.
#[test]
fn every_v2_file_is_read_and_one_that_is_missing_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let cgroup = CgroupPaths { path: "/x".into(), dirs: Dirs::V2(dir.path().to_owned()) };
    for (file, text) in [
        (
            "cpu.stat",
            "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnr_periods 0\nnr_throttled 0\nthrottled_usec 7\n",
        ),
        ("memory.current", "1000\n"),
        ("memory.stat", "anon 400\nfile 600\nkernel 0\ninactive_anon 1\ninactive_file 250\nactive_file 350\n"),
        ("memory.max", "max\n"),
        ("memory.swap.current", "0\n"),
        ("memory.events", "low 0\nhigh 0\nmax 5\noom 4\noom_kill 2\noom_group_kill 0\n"),
        ("pids.current", "3\n"),
        ("pids.max", "2048\n"),
        ("io.stat", "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n"),
        (
            "cpu.pressure",
            "some avg10=0.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    let stats = read(&cgroup, None);
    assert_eq!((stats.cpu.usage_usec, stats.cpu.user_usec), (Some(300), Some(200)));
    assert_eq!((stats.cpu.system_usec, stats.cpu.throttled_usec), (Some(100), Some(7)));
    let memory = &stats.memory;
    assert_eq!((memory.usage_bytes, memory.working_set_bytes, memory.cache_bytes), (Some(1000), Some(750), Some(600)));
    assert_eq!((memory.peak_bytes, memory.limit_bytes, memory.swap_bytes), (None, None, Some(0)));
    assert_eq!((memory.oom_kills, cgroup.oom_kill_count()), (Some(2), Some(2)));
    assert_eq!((stats.pids.current, stats.pids.limit), (Some(3), Some(2048)));
    assert_eq!((stats.io.read_bytes, stats.io.write_ops), (Some(4096), Some(2)));
    assert_eq!(stats.pressure.cpu.map(|pressure| pressure.some_total_usec), Some(9));
    assert_eq!((stats.pressure.memory, stats.pressure.io), (None, None));
    let few = basic(&cgroup).unwrap();
    assert_eq!((few.cpu_usage_usec, few.memory_bytes, few.memory_limit), (300, 1000, u64::MAX));
    // What goes away has no process any more; what has one is on a host that does not account memory.
    std::fs::remove_file(dir.path().join("memory.current")).unwrap();
    assert_eq!(basic(&cgroup).unwrap_err().code(), "io.failed");
    std::fs::write(dir.path().join("cgroup.procs"), "1\n").unwrap();
    assert_eq!(basic(&cgroup).unwrap_err().code(), "unsupported.here");
}
