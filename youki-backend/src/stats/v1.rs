//! cgroup v1. `cpuacct.usage` counts nanoseconds, `cpuacct.stat` clock ticks, `throttled_time` nanoseconds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime_core::DetailedStats;
use runtime_core::stats::{CpuStats, IoStats, MemoryStats, PidsStats};

use super::parse::{blkio, keyed, limit, limit_v1, number};
use super::source::Source;

/// Ticks a second that the kernel shows to user space: `USER_HZ`, 100 on every architecture Rust supports.
const USER_HZ: u64 = 100;

pub(super) fn read(source: &mut Source, dirs: &BTreeMap<String, PathBuf>) -> DetailedStats {
    let dir = |name: &str| dirs.get(name).map(PathBuf::as_path);
    DetailedStats {
        cpu: cpu(source, dir("cpuacct"), dir("cpu")),
        memory: dir("memory").map(|dir| memory(source, dir)).unwrap_or_default(),
        pids: dir("pids").map(|dir| pids(source, dir)).unwrap_or_default(),
        io: dir("blkio").map(|dir| io(source, dir)).unwrap_or_default(),
        ..DetailedStats::default()
    }
}

/// CPU microseconds, memory in use, its limit.
pub(super) fn basic(source: &mut Source, dirs: &BTreeMap<String, PathBuf>) -> (Option<u64>, Option<u64>, Option<u64>) {
    let usage = dirs.get("cpuacct").and_then(|dir| usage_usec(source, dir));
    let memory = dirs.get("memory");
    (
        usage,
        memory.and_then(|dir| source.file(dir, "memory.usage_in_bytes").and_then(number)),
        memory.and_then(|dir| source.file(dir, "memory.limit_in_bytes").and_then(limit_v1)),
    )
}

fn usage_usec(source: &mut Source, dir: &Path) -> Option<u64> {
    source.file(dir, "cpuacct.usage").and_then(number).map(|nanoseconds| nanoseconds / 1_000)
}

fn cpu(source: &mut Source, cpuacct: Option<&Path>, cpu: Option<&Path>) -> CpuStats {
    let mut stats = CpuStats::default();
    if let Some(dir) = cpuacct {
        stats.usage_usec = usage_usec(source, dir);
        if let Some(text) = source.file(dir, "cpuacct.stat") {
            let usec = |key| keyed(text, key).map(|ticks| ticks.saturating_mul(1_000_000 / USER_HZ));
            (stats.user_usec, stats.system_usec) = (usec("user"), usec("system"));
        }
    }
    if let Some(text) = cpu.and_then(|dir| source.file(dir, "cpu.stat")) {
        stats.throttled_usec = keyed(text, "throttled_time").map(|nanoseconds| nanoseconds / 1_000);
    }
    stats
}

fn memory(source: &mut Source, dir: &Path) -> MemoryStats {
    let usage = source.file(dir, "memory.usage_in_bytes").and_then(number);
    let mut stats = MemoryStats { usage_bytes: usage, ..MemoryStats::default() };
    if let Some(text) = source.file(dir, "memory.stat") {
        // The `total_` ones include the cgroups beneath.
        let inactive = keyed(text, "total_inactive_file");
        stats.working_set_bytes = usage.zip(inactive).map(|(usage, inactive)| usage.saturating_sub(inactive));
        stats.cache_bytes = keyed(text, "total_cache");
        stats.swap_bytes = keyed(text, "total_swap");
    }
    stats.peak_bytes = source.file(dir, "memory.max_usage_in_bytes").and_then(number);
    stats.limit_bytes = source.file(dir, "memory.limit_in_bytes").and_then(limit_v1);
    stats.oom_kills = source.file(dir, "memory.oom_control").and_then(|text| keyed(text, "oom_kill"));
    stats
}

fn pids(source: &mut Source, dir: &Path) -> PidsStats {
    PidsStats {
        current: source.file(dir, "pids.current").and_then(number),
        limit: source.file(dir, "pids.max").and_then(limit),
    }
}

fn io(source: &mut Source, dir: &Path) -> IoStats {
    let mut sums = |recursive: &str, own: &str| {
        let found = source.file(dir, recursive).map(blkio);
        // Older kernels have only the cgroup's own.
        found.or_else(|| source.file(dir, own).map(blkio)).unzip()
    };
    let (read_bytes, write_bytes) =
        sums("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes");
    let (read_ops, write_ops) = sums("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced");
    IoStats { read_bytes, write_bytes, read_ops, write_ops }
}
