//! What a container uses, read from its cgroups and from `/proc`.
//!
//! Each file is opened once, read with one call into a buffer that all of them share, and parsed by a function
//! without I/O ([`parse`]). A file the kernel does not have gives `None`, never 0. Everything blocks, for microseconds.

mod disk;
pub(crate) mod parse;
mod source;
mod top;
mod v1;
mod v2;

use chrono::Utc;
use runtime_core::{ContainerStats, DetailedStats};

use crate::cgroup::{CgroupPaths, Dirs};
use crate::error::{Error, Result};
use source::Source;

pub(crate) use disk::disk_usage;
pub(crate) use top::top;

/// All that the kernel tells about a container, but for [`DetailedStats::disk`]: that takes a walk over its files
/// ([`disk_usage`]).
///
/// `own_network_of`: a process of the container (its init), if it has a network namespace of its own; with the
/// host's network there are no numbers of the container's, so `None`.
pub(crate) fn read(cgroup: &CgroupPaths, own_network_of: Option<u32>) -> DetailedStats {
    let mut source = Source::default();
    let mut stats = match &cgroup.dirs {
        Dirs::V1(dirs) => v1::read(&mut source, dirs),
        Dirs::V2(dir) => v2::read(&mut source, dir),
    };
    stats.network =
        own_network_of.and_then(|pid| source.read(format_args!("/proc/{pid}/net/dev")).map(parse::interfaces));
    stats
}

/// The few numbers every backend has.
///
/// # Errors
/// [`Error::Io`] when the cgroup is gone; [`Error::Unsupported`] when the host does not account CPU time or memory.
pub(crate) fn basic(cgroup: &CgroupPaths) -> Result<ContainerStats> {
    let mut source = Source::default();
    let timestamp = Utc::now();
    let (cpu, memory, limit) = match &cgroup.dirs {
        Dirs::V1(dirs) => v1::basic(&mut source, dirs),
        Dirs::V2(dir) => v2::basic(&mut source, dir),
    };
    let missing = |controller: &'static str| match cgroup.dir(controller) {
        // Of a cgroup that goes away its files go first.
        Some(dir) if cgroup.pids().is_ok_and(|pids| pids.is_empty()) || !dir.exists() => {
            Error::io("reading", dir)(std::io::Error::from_raw_os_error(libc::ENOENT))
        }
        _ => Error::Unsupported { what: format!("reading usage without the {controller} controller") },
    };
    Ok(ContainerStats {
        cpu_usage_usec: cpu.ok_or_else(|| missing("cpuacct"))?,
        memory_bytes: memory.ok_or_else(|| missing("memory"))?,
        memory_limit: limit.unwrap_or(u64::MAX),
        timestamp,
    })
}

/// The few numbers out of all of them, for the exit record: `None` if the kernel did not tell CPU time or memory.
pub(crate) fn summary(stats: &DetailedStats) -> Option<ContainerStats> {
    Some(ContainerStats {
        cpu_usage_usec: stats.cpu.usage_usec?,
        memory_bytes: stats.memory.usage_bytes?,
        memory_limit: stats.memory.limit_bytes.unwrap_or(u64::MAX),
        timestamp: Utc::now(),
    })
}

#[cfg(test)]
mod tests;
