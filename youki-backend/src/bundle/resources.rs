//! Limits as writes to cgroup files, for v1 and v2.

use runtime_core::spec::ResourcesSpec;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Processes and threads of a container whose spec names no number: a fork bomb stays inside.
const DEFAULT_PIDS: i64 = 2048;
/// Docker's smallest memory limit: below it a container cannot even start.
const MIN_MEMORY_BYTES: u64 = 6 << 20;
/// Largest limit the kernel's page counters take.
const MAX_MEMORY_BYTES: u64 = i64::MAX as u64;
/// Period of the CPU bandwidth limit, the kernel's default.
const CPU_PERIOD_USEC: u64 = 100_000;
/// Smallest quota that the kernel accepts, so the smallest limit is 0.01 cores.
const MIN_CPU_QUOTA_USEC: f64 = 1_000.0;
/// More cores than any machine has: keeps the quota far from overflow.
const MAX_CPUS: f64 = 65_536.0;
/// The kernel's bounds of `cpu.shares`.
const CPU_SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// Bounds of a block I/O weight, docker's.
const IO_WEIGHT: std::ops::RangeInclusive<u16> = 10..=1_000;
/// Largest CPU number in a cpuset; the kernel's largest configuration has 8192.
const MAX_CPU: u32 = 8_191;

/// What a container's cgroups are set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupLimits {
    /// In the order in which they must be made.
    pub writes: Vec<CgroupWrite>,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupWrite {
    /// The controller: the v1 hierarchy, or what v2's `cgroup.subtree_control` must have on (`cpu`, `cpuset`, `io`,
    /// `memory`, `pids`).
    pub controller: String,
    /// The file, and others that do the same where a kernel lacks it.
    pub files: Vec<String>,
    /// What is written.
    pub value: String,
    /// The spec's field, for the error when the write fails.
    pub field: String,
    /// The spec did not ask for it: where none of the files exists, nothing is lost.
    pub optional: bool,
}

/// The controllers that limits are written to.
pub(crate) const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "blkio", "io"];

/// Memory may never be above memory and swap together: which of the two must be written first depends on what there is.
/// So what is refused is tried once more after the rest.
pub(crate) fn write_all<T>(all: &[T], write: impl Fn(&T) -> Result<()>) -> Result<()> {
    let refused: Vec<&T> = all.iter().filter(|one| write(one).is_err()).collect();
    refused.into_iter().try_for_each(write)
}

impl CgroupLimits {
    /// The writes for v1 or v2 that hold a container to `spec`. A cpuset stands first: on v1 a process can join only
    /// after it (whoever makes the cgroups copies `cpuset.mems`, and without a limit `cpuset.cpus`, from the parent).
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a value that no kernel, or docker, would accept.
    pub(crate) fn new(spec: &ResourcesSpec, cgroup_v2: bool) -> Result<Self> {
        let mut writes = Writes(Vec::new());
        if let Some(cpuset) = &spec.cpuset {
            writes.add("cpuset", &["cpuset.cpus"], cpus(cpuset)?, "resources.cpuset");
        }
        writes.memory(spec, cgroup_v2)?;
        writes.cpu(spec, cgroup_v2)?;
        let pids = match spec.pids.unwrap_or(DEFAULT_PIDS) {
            -1 => "max".to_owned(),
            pids @ 1.. => pids.to_string(),
            pids => {
                return Err(Error::invalid(
                    "resources.pids",
                    format!("{pids} is neither a number of processes nor -1"),
                ));
            }
        };
        writes.add("pids", &["pids.max"], pids, "resources.pids");
        if let Some(weight) = spec.io.as_ref().and_then(|io| io.weight) {
            if !IO_WEIGHT.contains(&weight) {
                return Err(Error::invalid("resources.io.weight", format!("{weight} is not between 10 and 1000")));
            }
            if cgroup_v2 {
                let scaled = 1 + (u64::from(weight) - 10) * 9_999 / 990;
                writes.add("io", &["io.weight"], format!("default {scaled}"), "resources.io.weight");
            } else {
                let files = &["blkio.weight", "blkio.bfq.weight"];
                writes.add("blkio", files, weight.to_string(), "resources.io.weight");
            }
        }
        Ok(Self { writes: writes.0 })
    }
}

/// Refuses more CPU time than this host has, as docker does: it would be no limit, and mostly a typing error. Asked when
/// a container is created; one that is there starts with fewer CPUs, too.
///
/// # Errors
/// [`Error::InvalidSpec`] with the range.
pub(crate) fn check_cpus(spec: &ResourcesSpec) -> Result<()> {
    // SAFETY: takes an integer, returns one.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1);
    match spec.cpu {
        Some(cpu) if cpu > online as f64 => Err(Error::invalid(
            "resources.cpu",
            format!("{cpu} is not between 0.01 and {online}.00: this host has {online} CPUs"),
        )),
        _ => Ok(()),
    }
}

struct Writes(Vec<CgroupWrite>);

impl Writes {
    fn add(&mut self, controller: &str, files: &[&str], value: String, field: &str) {
        self.0.push(CgroupWrite {
            controller: controller.to_owned(),
            files: files.iter().map(|file| (*file).to_owned()).collect(),
            value,
            field: field.to_owned(),
            optional: false,
        });
    }

    fn memory(&mut self, spec: &ResourcesSpec, cgroup_v2: bool) -> Result<()> {
        let Some(memory) = spec.memory.map(runtime_core::spec::ByteSize::as_u64) else {
            return match spec.swap {
                Some(_) => Err(Error::invalid("resources.swap", "it needs a memory limit beside it")),
                None => Ok(()),
            };
        };
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&memory) {
            return Err(Error::invalid("resources.memory", format!("{memory} bytes: at least 6Mi are needed")));
        }
        // As docker: as much swap again, unless the spec says otherwise.
        let swap = spec.swap.map_or(memory, runtime_core::spec::ByteSize::as_u64);
        let total = memory.checked_add(swap).filter(|total| *total <= MAX_MEMORY_BYTES);
        let total = total.ok_or_else(|| Error::invalid("resources.swap", "memory and swap together are too large"))?;
        if cgroup_v2 {
            self.add("memory", &["memory.max"], memory.to_string(), "resources.memory");
            self.add("memory", &["memory.swap.max"], swap.to_string(), "resources.swap");
        } else {
            self.add("memory", &["memory.limit_in_bytes"], memory.to_string(), "resources.memory");
            self.add("memory", &["memory.memsw.limit_in_bytes"], total.to_string(), "resources.swap");
        }
        // Kernels without swap accounting lack the file.
        if let Some(write) = self.0.last_mut() {
            write.optional = spec.swap.is_none();
        }
        Ok(())
    }

    fn cpu(&mut self, spec: &ResourcesSpec, cgroup_v2: bool) -> Result<()> {
        if let Some(shares) = spec.cpu_shares {
            if !CPU_SHARES.contains(&shares) {
                return Err(Error::invalid("resources.cpu_shares", format!("{shares} is not between 2 and 262144")));
            }
            if cgroup_v2 {
                self.add("cpu", &["cpu.weight"], weight_of_shares(shares).to_string(), "resources.cpu_shares");
            } else {
                self.add("cpu", &["cpu.shares"], shares.to_string(), "resources.cpu_shares");
            }
        }
        let Some(cpu) = spec.cpu else { return Ok(()) };
        let quota = (cpu * CPU_PERIOD_USEC as f64).round();
        // Written so that NaN is refused too.
        if !(quota >= MIN_CPU_QUOTA_USEC && cpu <= MAX_CPUS) {
            return Err(Error::invalid("resources.cpu", format!("{cpu} is not a number of cores, 0.01 or more")));
        }
        let quota = quota as u64;
        if cgroup_v2 {
            self.add("cpu", &["cpu.max"], format!("{quota} {CPU_PERIOD_USEC}"), "resources.cpu");
        } else {
            self.add("cpu", &["cpu.cfs_period_us"], CPU_PERIOD_USEC.to_string(), "resources.cpu");
            self.add("cpu", &["cpu.cfs_quota_us"], quota.to_string(), "resources.cpu");
        }
        Ok(())
    }
}

/// v2's `cpu.weight` for v1's shares, by the curve that runc and crun use since 2025: it maps 2, 1024 and 262144 to 1,
/// 100 and 10000, so that the default stays the default.
fn weight_of_shares(shares: u64) -> u64 {
    if shares <= *CPU_SHARES.start() {
        return 1;
    }
    if shares >= *CPU_SHARES.end() {
        return 10_000;
    }
    let log = (shares as f64).log2();
    10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
}

/// A list as `0-2,4`, checked.
fn cpus(text: &str) -> Result<String> {
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u32>().ok()).flatten().filter(|cpu| *cpu <= MAX_CPU)
    };
    let valid = text.split(',').all(|part| match part.trim().split_once('-') {
        Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
        None => number(part.trim()).is_some(),
    });
    if valid {
        Ok(text.replace(' ', ""))
    } else {
        Err(Error::invalid("resources.cpuset", format!("{text:?} is not a list of CPUs such as 0-2,4")))
    }
}

#[cfg(test)]
mod tests {
    use runtime_core::spec::{ByteSize, IoSpec};

    use super::*;

    fn lines(spec: &ResourcesSpec, cgroup_v2: bool) -> Vec<String> {
        let limits = CgroupLimits::new(spec, cgroup_v2).unwrap();
        let line = |w: &CgroupWrite| {
            format!("{}/{}={}{}", w.controller, w.files[0], w.value, if w.optional { "?" } else { "" })
        };
        limits.writes.iter().map(line).collect()
    }

    fn full() -> ResourcesSpec {
        ResourcesSpec {
            cpu: Some(1.5),
            memory: Some(ByteSize::new(64 << 20)),
            swap: Some(ByteSize::new(1 << 20)),
            pids: Some(100),
            cpu_shares: Some(1024),
            cpuset: Some("0-2, 4".into()),
            io: Some(IoSpec { weight: Some(500) }),
            ..ResourcesSpec::default()
        }
    }

    #[test]
    fn limits_become_the_files_of_each_version() {
        assert_eq!(
            lines(&full(), false),
            [
                "cpuset/cpuset.cpus=0-2,4",
                "memory/memory.limit_in_bytes=67108864",
                "memory/memory.memsw.limit_in_bytes=68157440",
                "cpu/cpu.shares=1024",
                "cpu/cpu.cfs_period_us=100000",
                "cpu/cpu.cfs_quota_us=150000",
                "pids/pids.max=100",
                "blkio/blkio.weight=500",
            ]
        );
        assert_eq!(
            lines(&full(), true),
            [
                "cpuset/cpuset.cpus=0-2,4",
                "memory/memory.max=67108864",
                "memory/memory.swap.max=1048576",
                "cpu/cpu.weight=100",
                "cpu/cpu.max=150000 100000",
                "pids/pids.max=100",
                "io/io.weight=default 4950",
            ]
        );
    }

    #[test]
    fn defaults_limit_processes_alone_and_swap_follows_memory() {
        let mut spec = ResourcesSpec::default();
        assert_eq!(lines(&spec, false), ["pids/pids.max=2048"]);
        spec.pids = Some(-1);
        spec.memory = Some(ByteSize::new(6 << 20));
        assert_eq!(
            lines(&spec, false),
            [
                "memory/memory.limit_in_bytes=6291456",
                "memory/memory.memsw.limit_in_bytes=12582912?",
                "pids/pids.max=max"
            ]
        );
        assert_eq!(
            lines(&spec, true),
            ["memory/memory.max=6291456", "memory/memory.swap.max=6291456?", "pids/pids.max=max"]
        );
    }

    #[test]
    fn what_no_kernel_accepts_is_refused_by_its_field() {
        type Change = fn(&mut ResourcesSpec);
        let cases: [(&str, Change); 16] = [
            ("resources.cpu", |s| s.cpu = Some(0.0)),
            ("resources.cpu", |s| s.cpu = Some(-1.0)),
            ("resources.cpu", |s| s.cpu = Some(0.001)),
            ("resources.cpu", |s| s.cpu = Some(f64::NAN)),
            ("resources.cpu", |s| s.cpu = Some(f64::INFINITY)),
            ("resources.memory", |s| s.memory = Some(ByteSize::new((6 << 20) - 1))),
            ("resources.memory", |s| s.memory = Some(ByteSize::new(u64::MAX))),
            ("resources.swap", |s| s.memory = None),
            ("resources.swap", |s| s.swap = Some(ByteSize::new(u64::MAX))),
            ("resources.cpu_shares", |s| s.cpu_shares = Some(1)),
            ("resources.cpu_shares", |s| s.cpu_shares = Some(262_145)),
            ("resources.cpuset", |s| s.cpuset = Some("3-1".into())),
            ("resources.cpuset", |s| s.cpuset = Some("0,,1".into())),
            ("resources.cpuset", |s| s.cpuset = Some("99999".into())),
            ("resources.pids", |s| s.pids = Some(0)),
            ("resources.io.weight", |s| s.io = Some(IoSpec { weight: Some(9) })),
        ];
        for (expected, change) in cases {
            let mut spec = full();
            change(&mut spec);
            for cgroup_v2 in [false, true] {
                let error = CgroupLimits::new(&spec, cgroup_v2).unwrap_err();
                assert!(
                    matches!(error, Error::InvalidSpec { ref field, .. } if field == expected),
                    "{expected}: {error}"
                );
            }
        }
    }

    #[test]
    fn more_cpus_than_the_host_has_are_refused_with_the_range() {
        let asked = |cpu| check_cpus(&ResourcesSpec { cpu: Some(cpu), ..ResourcesSpec::default() });
        assert!(asked(1.0).is_ok() && check_cpus(&ResourcesSpec::default()).is_ok());
        let text = asked(65_000.0).unwrap_err().to_string();
        assert!(text.starts_with("resources.cpu: 65000 is not between 0.01 and "), "{text}");
    }

    #[test]
    fn shares_map_to_weights_monotonously_between_the_ends() {
        assert_eq!([2, 1024, 262_144].map(weight_of_shares), [1, 100, 10_000]);
        assert!((2..=262_144).step_by(97).map(weight_of_shares).is_sorted());
    }
}
