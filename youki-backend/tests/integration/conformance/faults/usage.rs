//! Faults of limits, and of what is told of usage.

use std::path::Path;

use runtime_core::DetailedStats;
use runtime_core::spec::{ByteSize, RlimitSpec};

use super::{Faults, spec};
use crate::conformance::kernel_has;
use crate::conformance::spoils::Spoils;

fn detailed(spoil: fn(&mut DetailedStats)) -> Spoils {
    Spoils { detailed: Some(spoil), ..Spoils::default() }
}

pub(super) fn of_limits() -> Faults {
    let mut faults: Faults = vec![
        (&["limits.cpu"], spec(|spec| spec.resources.cpu = None)),
        (&["limits.cpu_shares"], spec(|spec| spec.resources.cpu_shares = None)),
        (
            &["limits.memory", "stats.limit", "stats_detailed.oom_kills", "outcome.oom"],
            spec(|spec| spec.resources.memory = None),
        ),
        (&["limits.swap"], spec(|spec| spec.resources.swap = None)),
        (&["limits.shm"], spec(|spec| spec.shm_size = None)),
        (
            &["limits.core"],
            spec(|spec| {
                spec.rlimits.insert("core".to_owned(), RlimitSpec { soft: 512, hard: 512 });
            }),
        ),
        (
            &["limits.nofile"],
            spec(|spec| {
                spec.rlimits.insert("nofile".to_owned(), RlimitSpec { soft: 100, hard: 200 });
            }),
        ),
        (&["settings.pids"], spec(|spec| spec.resources.pids = None)),
        (&["settings.pids_default"], spec(|spec| spec.resources.pids = Some(-1))),
        (
            &["limits.update_rest"],
            Spoils { changes: Some(|changes| changes.memory = Some(ByteSize::new(128 << 20))), ..Spoils::default() },
        ),
        (&["update.memory"], Spoils { changes: Some(|changes| changes.memory = None), ..Spoils::default() }),
        // Nanoseconds.
        (&["stats.cpu_percent"], Spoils { stats: Some(|stats| stats.cpu_usage_usec *= 1000), ..Spoils::default() }),
        (
            &["stats.cpu", "stats.running"],
            Spoils { stats: Some(|stats| stats.cpu_usage_usec = 0), ..Spoils::default() },
        ),
        (&["stats.memory"], Spoils { stats: Some(|stats| stats.memory_bytes = 1 << 20), ..Spoils::default() }),
        (
            &["outcome.oom"],
            Spoils { outcome: Some(|outcome| outcome.reason = runtime_core::WaitReason::Signal), ..Spoils::default() },
        ),
        (
            &["outcome.oom_of_child"],
            Spoils {
                outcome: Some(|outcome| outcome.reason = runtime_core::WaitReason::OomKilled),
                ..Spoils::default()
            },
        ),
        (
            &["outcome.killed_after_oom"],
            Spoils {
                outcome: Some(|outcome| {
                    if outcome.exit_code == 137 {
                        outcome.reason = runtime_core::WaitReason::OomKilled;
                    }
                }),
                ..Spoils::default()
            },
        ),
        (&["outcome.killed_after_oom"], detailed(|stats| stats.memory.oom_kills = Some(0))),
        (
            &["outcome.finished_at"],
            Spoils { outcome: Some(|outcome| outcome.finished_at = Some(chrono::Utc::now())), ..Spoils::default() },
        ),
        (&["outcome.inspect"], Spoils { details: Some(|details| details.exit_code = None), ..Spoils::default() }),
        // It goes down.
        (
            &["stats.after_exit"],
            Spoils {
                stats: Some(|stats| stats.cpu_usage_usec = u64::MAX - stats.timestamp.timestamp_micros() as u64),
                ..Spoils::default()
            },
        ),
    ];
    if kernel_has(&["io.weight"], "blkio", &["blkio.weight", "blkio.bfq.weight"]) {
        faults.push((&["limits.io_weight"], spec(|spec| spec.resources.io = None)));
    }
    // Of one CPU nobody can be kept off the others.
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) {
        faults.push((&["limits.cpuset"], spec(|spec| spec.resources.cpuset = None)));
    }
    faults
}

pub(super) fn of_detailed_stats() -> Faults {
    vec![
        (&["stats_detailed.oom_kills"], detailed(|stats| stats.memory.oom_kills = Some(0))),
        (&["stats_detailed.disk"], detailed(|stats| stats.disk.writable_bytes = Some(0))),
        (&["stats_detailed.limits"], detailed(|stats| stats.memory.limit_bytes = Some(0))),
        (
            &["stats_detailed.after_exit"],
            detailed(|stats| {
                if stats.pids.current == Some(0) || stats.pids.current.is_none() {
                    stats.cpu.usage_usec = None
                }
            }),
        ),
        (&["stats_detailed.cpu"], detailed(|stats| stats.cpu.throttled_usec = Some(0))),
        (&["stats_detailed.cpu"], detailed(|stats| stats.cpu.user_usec = Some(0))),
        (&["stats_detailed.cpu"], detailed(|stats| stats.cpu.system_usec = Some(0))),
        // Nanoseconds.
        (
            &["stats_detailed.cpu"],
            detailed(|stats| stats.cpu.usage_usec = stats.cpu.usage_usec.map(|usec| usec * 1000)),
        ),
        (&["stats_detailed.memory"], detailed(|stats| stats.memory.usage_bytes = Some(0))),
        (&["stats_detailed.memory"], detailed(|stats| stats.memory.working_set_bytes = Some(0))),
        (&["stats_detailed.memory"], detailed(|stats| stats.memory.cache_bytes = Some(0))),
        (&["stats_detailed.memory"], detailed(|stats| stats.memory.peak_bytes = stats.memory.usage_bytes)),
        (&["stats_detailed.io"], detailed(|stats| stats.io.write_bytes = Some(1 << 40))),
        (&["stats_detailed.network"], detailed(|stats| stats.network = Some(Default::default()))),
        (
            &["stats_detailed.network"],
            detailed(|stats| {
                stats.network.iter_mut().flat_map(|all| all.values_mut()).for_each(|one| one.tx_packets = 0)
            }),
        ),
    ]
}

/// Those that can be found with one version of cgroups alone.
pub(super) fn of_cgroups() -> Faults {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        vec![
            // v1 counts no block I/O but what has a limit.
            (&["stats_detailed.io"], detailed(|stats| stats.io.write_bytes = Some(0))),
            (&["stats_detailed.io"], detailed(|stats| stats.io.write_ops = Some(0))),
        ]
    } else {
        // It has no file for this; v2 has all that is asked for.
        vec![(&["stats_detailed.absent"], detailed(|stats| stats.pressure.cpu = Some(Default::default())))]
    }
}
