//! Limits, as the kernel has them and as they are felt.

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal};
use super::{Check, Workload, check};
use crate::spec::{ByteSize, IoSpec, ResourcesSpec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("limits.cpu", "so many cores are the kernel's quota", cpu),
        check!("limits.cpu_shares", "the relative weight is the kernel's", cpu_shares),
        check!("limits.cpuset", "it may run on the CPUs named and no others", cpuset),
        check!("limits.memory", "the memory limit is the kernel's", memory),
        check!("limits.swap", "so much swap beyond the memory limit is the kernel's", swap),
        check!("limits.io_weight", "the weight of its block I/O is the kernel's", io_weight),
        check!("limits.shm", "/dev/shm has the size asked for, 64 MiB unless", shm),
        check!("limits.core", "no core files unless asked for", core),
        check!("limits.nofile", "as many open files, soft and hard, as the agent may have, unless set", nofile),
        check!("limits.update_rest", "update changes what it names and leaves the rest", update_rest),
    ]
}

/// A script that writes the first of some files of the container's own cgroup, by their names in v2 and v1, on one line.
pub(super) fn cgroup_files(v2: &str, controller: &str, v1: &[&str]) -> String {
    let v1: String = v1.iter().map(|name| format!(" $(cat $d/{name})")).collect();
    format!(
        "for d in /sys/fs/cgroup /sys/fs/cgroup/{controller} /sys/fs/cgroup/cpu,cpuacct; do \
         if [ -f $d/{v2} ]; then echo v2 $(cat $d/{v2}); exit; fi; \
         set --{v1}; if [ $# -gt 0 ]; then echo v1 $*; exit; fi; done 2>/dev/null; echo none"
    )
}

/// What such a script found.
pub(super) fn found(line: &str) -> Verdict<(&str, Vec<&str>)> {
    match line.split_once(' ') {
        Some((version, values)) => Ok((version, values.split(' ').collect())),
        None => Err(Stop::Unsupported("a container does not see this limit of its cgroup".to_owned())),
    }
}

async fn cpu(case: Case) -> Verdict {
    let mut spec = case.script(cgroup_files("cpu.max", "cpu", &["cpu.cfs_quota_us", "cpu.cfs_period_us"]))?;
    spec.resources.cpu = Some(0.5);
    let line = case.answer(&spec).await?;
    let (_, values) = found(&line)?;
    let numbers: Vec<f64> = values.iter().filter_map(|value| value.parse().ok()).collect();
    ensure(matches!(numbers[..], [quota, period] if (quota / period - 0.5).abs() < 0.01), || {
        format!("for half a core the kernel has the quota and period {values:?}")
    })
}

async fn cpu_shares(case: Case) -> Verdict {
    let mut spec = case.script(cgroup_files("cpu.weight", "cpu", &["cpu.shares"]))?;
    spec.resources.cpu_shares = Some(512);
    let line = case.answer(&spec).await?;
    match found(&line)? {
        ("v1", values) => equal("cpu.shares", &values, &vec!["512"]),
        // There is more than one way to bring shares onto this scale, on which 100 is usual.
        (_, values) => ensure(values != ["100"], || format!("cpu.weight is {values:?} as if none were asked for")),
    }
}

async fn cpuset(case: Case) -> Verdict {
    let field = "Cpus_allowed_list";
    let mut spec =
        case.script(format!("while read -r key value; do [ $key = {field}: ] && echo $value; done < /proc/$$/status"))?;
    spec.resources.cpuset = Some("0".to_owned());
    equal("the CPUs it may run on", &case.answer(&spec).await?.as_str(), &"0")
}

async fn memory(case: Case) -> Verdict {
    let mut spec = case.script(cgroup_files("memory.max", "memory", &["memory.limit_in_bytes"]))?;
    spec.resources.memory = Some(ByteSize::new(64 << 20));
    let line = case.answer(&spec).await?;
    equal("the kernel's limit", &found(&line)?.1, &vec![(64 << 20).to_string().as_str()])
}

async fn swap(case: Case) -> Verdict {
    let mut spec = case.script(cgroup_files("memory.swap.max", "memory", &["memory.memsw.limit_in_bytes"]))?;
    spec.resources.memory = Some(ByteSize::new(64 << 20));
    spec.resources.swap = Some(ByteSize::new(16 << 20));
    let line = case.answer(&spec).await?;
    match found(&line)? {
        ("v1", values) => equal("memory and swap", &values, &vec![(80 << 20).to_string().as_str()]),
        (_, values) => equal("swap", &values, &vec![(16 << 20).to_string().as_str()]),
    }
}

async fn io_weight(case: Case) -> Verdict {
    let v1 = ["blkio.weight", "blkio.bfq.weight"];
    let script = v1.map(|name| {
        format!("o=$({}); case $o in none) ;; *) echo $o; exit;; esac; ", cgroup_files("io.weight", "blkio", &[name]))
    });
    let mut spec = case.script(format!("{}echo none", script.concat()))?;
    spec.resources.io = Some(IoSpec { weight: Some(500) });
    let line = case.answer(&spec).await?;
    match found(&line)? {
        ("v1", values) => equal("the kernel's weight", &values.last(), &Some(&"500")),
        // There is more than one way to bring it onto this scale, on which 100 is usual.
        (_, values) => ensure(values.last().is_none_or(|value| *value != "100"), || format!("io.weight is {values:?}")),
    }
}

async fn shm(case: Case) -> Verdict {
    let write = "if head -c 2097152 /dev/zero 2>/dev/null > /dev/shm/f; then echo fits; else echo full; fi";
    let mut spec = case.script(write)?;
    equal("2 MiB by default", &case.answer(&spec).await?.as_str(), &"fits")?;
    spec.shm_size = Some(ByteSize::new(1 << 20));
    equal("2 MiB in 1 MiB", &case.answer(&spec).await?.as_str(), &"full")
}

async fn core(case: Case) -> Verdict {
    equal("the limit of core files", &case.answer(&case.script("ulimit -Sc")?).await?.as_str(), &"0")
}

async fn nofile(case: Case) -> Verdict {
    // The suite runs in the agent.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let own = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let own: Vec<String> = own.split_whitespace().take(2).map(str::to_owned).collect();
    if own.len() < 2 {
        return Err(Stop::Unsupported("the kernel does not say how many files this process may open".to_owned()));
    }
    let (_, lines) = case.output(&case.script("ulimit -Sn; ulimit -Hn")?, 2).await?;
    equal("the soft and hard limit of open files where none is set", &lines, &own)
}

async fn update_rest(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::idle())?;
    spec.resources.memory = Some(ByteSize::new(64 << 20));
    spec.resources.pids = Some(50);
    let id = case.start_spec_ready(&spec).await?;
    let changes = ResourcesSpec { pids: Some(40), ..ResourcesSpec::default() };
    case.runtime().update_resources(&id, &changes).await.or_unsupported("update_resources")?;
    let stats = case.runtime().stats_detailed(&id).await.or_unsupported("stats_detailed")?;
    equal("the limit of processes, changed", &stats.pids.limit, &Some(40))?;
    equal("the memory limit, not named", &stats.memory.limit_bytes, &Some(64 << 20))
}
