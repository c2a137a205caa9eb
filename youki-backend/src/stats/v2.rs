//! cgroup v2 (Documentation/admin-guide/cgroup-v2.rst). All times are microseconds, all numbers hierarchical.

use std::path::Path;

use runtime_core::DetailedStats;
use runtime_core::stats::{CpuStats, MemoryStats, PidsStats, PressureStats};

use super::parse::{io_stat, keyed, limit, number, pressure};
use super::source::Source;

pub(super) fn read(source: &mut Source, dir: &Path) -> DetailedStats {
    DetailedStats {
        cpu: cpu(source, dir),
        memory: memory(source, dir),
        pids: PidsStats {
            current: source.file(dir, "pids.current").and_then(number),
            limit: source.file(dir, "pids.max").and_then(limit),
        },
        io: source.file(dir, "io.stat").map(io_stat).unwrap_or_default(),
        pressure: PressureStats {
            cpu: source.file(dir, "cpu.pressure").and_then(pressure),
            memory: source.file(dir, "memory.pressure").and_then(pressure),
            io: source.file(dir, "io.pressure").and_then(pressure),
        },
        ..DetailedStats::default()
    }
}

/// CPU microseconds, memory in use, its limit.
pub(super) fn basic(source: &mut Source, dir: &Path) -> (Option<u64>, Option<u64>, Option<u64>) {
    (
        source.file(dir, "cpu.stat").and_then(|text| keyed(text, "usage_usec")),
        source.file(dir, "memory.current").and_then(number),
        source.file(dir, "memory.max").and_then(limit),
    )
}

fn cpu(source: &mut Source, dir: &Path) -> CpuStats {
    let Some(text) = source.file(dir, "cpu.stat") else { return CpuStats::default() };
    CpuStats {
        usage_usec: keyed(text, "usage_usec"),
        user_usec: keyed(text, "user_usec"),
        system_usec: keyed(text, "system_usec"),
        throttled_usec: keyed(text, "throttled_usec"),
    }
}

fn memory(source: &mut Source, dir: &Path) -> MemoryStats {
    let usage = source.file(dir, "memory.current").and_then(number);
    let mut stats = MemoryStats { usage_bytes: usage, ..MemoryStats::default() };
    if let Some(text) = source.file(dir, "memory.stat") {
        let inactive = keyed(text, "inactive_file");
        stats.working_set_bytes = usage.zip(inactive).map(|(usage, inactive)| usage.saturating_sub(inactive));
        stats.cache_bytes = keyed(text, "file");
    }
    // Since Linux 5.19.
    stats.peak_bytes = source.file(dir, "memory.peak").and_then(number);
    stats.limit_bytes = source.file(dir, "memory.max").and_then(limit);
    stats.swap_bytes = source.file(dir, "memory.swap.current").and_then(number);
    // `oom_kill`, which counts kills, not `oom`, which counts times at the limit.
    stats.oom_kills = source.file(dir, "memory.events").and_then(|text| keyed(text, "oom_kill"));
    stats
}
