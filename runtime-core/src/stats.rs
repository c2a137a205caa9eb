//! What a container uses.

use std::collections::BTreeMap;
use std::pin::Pin;

use chrono::{DateTime, Utc};
use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::container::ContainerId;
use crate::error::Result;

/// The few numbers every backend has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// CPU time used since creation, in microseconds.
    pub cpu_usage_usec: u64,
    /// Memory charged to the container, page cache included (`memory.current`, v1 `memory.usage_in_bytes`).
    pub memory_bytes: u64,
    /// The memory limit, `u64::MAX` for none.
    pub memory_limit: u64,
    /// When this was read.
    #[serde(with = "crate::time")]
    pub timestamp: DateTime<Utc>,
}

impl ContainerStats {
    /// Memory used in percent of the limit; 0 without one.
    #[must_use]
    pub fn memory_percent(&self) -> f64 {
        if self.memory_limit == u64::MAX || self.memory_limit == 0 {
            return 0.0;
        }
        self.memory_bytes as f64 / self.memory_limit as f64 * 100.0
    }

    /// CPU used between two readings, in percent of one CPU (200 for two busy ones); 0 if no time passed.
    #[must_use]
    pub fn calculate_cpu_percent(prev: &Self, curr: &Self) -> f64 {
        let elapsed_usec = (curr.timestamp - prev.timestamp).num_microseconds().unwrap_or(0);
        if elapsed_usec <= 0 {
            return 0.0;
        }
        curr.cpu_usage_usec.saturating_sub(prev.cpu_usage_usec) as f64 / elapsed_usec as f64 * 100.0
    }
}

/// What one container uses at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsSnapshot {
    /// The container.
    pub id: ContainerId,
    /// The few numbers, and when they were read.
    #[serde(flatten)]
    pub basic: ContainerStats,
    /// All that the kernel tells.
    pub detailed: DetailedStats,
}

/// Snapshots of one container in the order of time. It ends when the container does; after an error nothing follows.
pub type StatsStream = Pin<Box<dyn Stream<Item = Result<StatsSnapshot>> + Send>>;

/// All that the kernel tells. What it has no file for is `None`, never 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DetailedStats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Block I/O.
    pub io: IoStats,
    /// Traffic per interface of the container's own network namespace.
    pub network: Option<BTreeMap<String, InterfaceStats>>,
    /// Pressure stall information.
    pub pressure: PressureStats,
    /// Disk used.
    pub disk: DiskStats,
}

/// CPU time, cumulative, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each field is its name
pub struct CpuStats {
    pub usage_usec: Option<u64>,
    pub user_usec: Option<u64>,
    pub system_usec: Option<u64>,
    /// Time spent waiting because the limit was reached.
    pub throttled_usec: Option<u64>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// All that is charged, page cache included.
    pub usage_bytes: Option<u64>,
    /// Usage less the inactive page cache: what cannot be dropped at once.
    pub working_set_bytes: Option<u64>,
    /// Highest usage seen.
    pub peak_bytes: Option<u64>,
    /// The limit; `None` without one.
    pub limit_bytes: Option<u64>,
    /// Swap used.
    pub swap_bytes: Option<u64>,
    /// Page cache.
    pub cache_bytes: Option<u64>,
    /// Processes of the container that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: Option<u64>,
    /// How many there may be; `None` without a limit.
    pub limit: Option<u64>,
}

/// Block I/O, cumulative.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each field is its name
pub struct IoStats {
    pub read_bytes: Option<u64>,
    pub write_bytes: Option<u64>,
    pub read_ops: Option<u64>,
    pub write_ops: Option<u64>,
}

/// Traffic of one interface, cumulative.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // each field is its name
pub struct InterfaceStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
}

/// Pressure stall information, where the kernel keeps it per cgroup (v2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // each field is its name
pub struct PressureStats {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

/// Shares of time in which some, or all, tasks were stalled (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the kernel's names
pub struct Pressure {
    pub some_avg10: f64,
    pub some_avg60: f64,
    pub some_avg300: f64,
    pub some_total_usec: u64,
    pub full_avg10: Option<f64>,
    pub full_avg60: Option<f64>,
    pub full_avg300: Option<f64>,
    pub full_total_usec: Option<u64>,
}

/// Disk used, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// The writable layer.
    pub writable_bytes: Option<u64>,
    /// The log files.
    pub log_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, cpu_usage_usec: u64) -> ContainerStats {
        let timestamp = DateTime::from_timestamp(seconds, 0).unwrap();
        ContainerStats { cpu_usage_usec, memory_bytes: 256, memory_limit: 1024, timestamp }
    }

    #[test]
    fn two_busy_cpus_are_200_percent() {
        assert_eq!(ContainerStats::calculate_cpu_percent(&at(10, 1_000_000), &at(11, 3_000_000)), 200.0);
    }

    #[test]
    fn no_time_and_no_limit_are_zero_not_nan() {
        assert_eq!(ContainerStats::calculate_cpu_percent(&at(10, 0), &at(10, 5)), 0.0);
        assert_eq!(ContainerStats { memory_limit: u64::MAX, ..at(0, 0) }.memory_percent(), 0.0);
        assert_eq!(at(0, 0).memory_percent(), 25.0);
    }
}
