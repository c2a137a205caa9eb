//! All that the kernel tells of what a container uses.

use std::time::Duration;

use super::case::{Case, OrStop, Stop, Verdict, ensure, equal};
use super::limits::cgroup_files;
use super::network::needs_networks;
use super::{Check, Workload, check};
use crate::spec::{ByteSize, NetworkMode};
use crate::{ContainerId, DetailedStats};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!("stats_detailed.limits", "what is used is told; a limit that is not set is None", limits),
        check!("stats_detailed.cpu", "CPU time of the user's, of the system's, and what the limit held back", cpu),
        check!("stats_detailed.memory", "usage, working set, cache and peak follow what is held", memory),
        check!("stats_detailed.io", "block I/O is what the container's own cgroup tells", io),
        check!("stats_detailed.network", "packets that are sent and come are counted, by interface", network),
        check!("stats_detailed.absent", "what the kernel has no file for is None, never 0", absent),
        check!("stats_detailed.after_exit", "an exited container has its last detailed stats", after_exit),
        check!("stats_detailed.oom_kills", "what the kernel killed for want of memory is counted", oom_kills),
        check!("stats_detailed.disk", "what is written into the root and the log is counted, in time", disk),
    ]
}

async fn stats(case: &Case, id: &ContainerId) -> Verdict<DetailedStats> {
    case.runtime().stats_detailed(id).await.or_unsupported("stats_detailed")
}

/// Ends the check where the kernel tells nothing of this.
fn any_of(what: &str, values: &[Option<u64>]) -> Verdict {
    match values.iter().any(Option::is_some) {
        true => Ok(()),
        false => Err(Stop::Unsupported(format!("the backend tells no {what}"))),
    }
}

async fn limits(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let stats = stats(&case, &id).await?;
    equal("the memory limit where none is set", &stats.memory.limit_bytes, &None)?;
    ensure(stats.memory.usage_bytes.is_none_or(|bytes| bytes >= 4096), || format!("it uses {:?}", stats.memory))?;
    ensure(stats.cpu.usage_usec.is_none_or(|usec| usec > 0), || format!("it used {:?}", stats.cpu))?;
    ensure(stats.pids.current.is_none_or(|count| count >= 1), || format!("it has {:?}", stats.pids))
}

async fn cpu(case: Case) -> Verdict {
    // To open a file is the kernel's work, the loop its own.
    let mut spec = case.script("echo ready; while :; do : < /dev/null; done")?;
    spec.resources.cpu = Some(0.2);
    let id = case.start_spec_ready(&spec).await?;
    let first = stats(&case, &id).await?.cpu;
    any_of("CPU time", &[first.usage_usec, first.user_usec, first.system_usec, first.throttled_usec])?;
    case.until("a loop held back to a fifth of a CPU has no time of some kind", || async {
        let cpu = stats(&case, &id).await?.cpu;
        let all = [cpu.usage_usec, cpu.user_usec, cpu.system_usec, cpu.throttled_usec];
        Ok(all.iter().all(|usec| usec.is_none_or(|usec| usec > 0)).then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cpu = stats(&case, &id).await?.cpu;
    let (Some(usage), Some(user), Some(system)) = (cpu.usage_usec, cpu.user_usec, cpu.system_usec) else {
        return Ok(());
    };
    // The kernel may count both by its ticks.
    let both = user + system;
    ensure((usage / 3..usage * 3 + 100_000).contains(&both), || format!("{usage} µs are {user} and {system}"))
}

async fn memory(case: Case) -> Verdict {
    const HELD: u64 = 16 << 20;
    let id = case.start_ready(&Workload::idle()).await?;
    case.ask(&id, &format!("head -c {HELD} /dev/zero > /dev/shm/held")).await?;
    let plausible = HELD * 9 / 10..HELD * 3;
    // The kernel tells counts that it gathered a while ago where another reader keeps it from gathering them anew.
    let held = case
        .until("the cache is not what is held in memory", || async {
            let memory = stats(&case, &id).await?.memory;
            Ok(memory.cache_bytes.is_none_or(|bytes| plausible.contains(&bytes)).then_some(memory))
        })
        .await?;
    case.ask(&id, "rm /dev/shm/held").await?;
    let peak = stats(&case, &id).await?.memory.peak_bytes;
    let all = [
        ("the usage", held.usage_bytes),
        ("the working set", held.working_set_bytes),
        ("the cache", held.cache_bytes),
        ("the peak, after it is removed,", peak),
    ];
    any_of("memory", &all.map(|(_, bytes)| bytes))?;
    for (what, bytes) in all {
        let is_plausible = bytes.is_none_or(|bytes| plausible.contains(&bytes));
        ensure(is_plausible, || format!("with {HELD} bytes held in memory {what} is {bytes:?}"))?;
    }
    Ok(())
}

/// The bytes that a container's own cgroup says were written, from the content of its file.
fn written(line: &str) -> u64 {
    let words: Vec<&str> = line.split(' ').collect();
    let v1 = words.windows(2).filter(|pair| pair[0] == "Write").map(|pair| pair[1]);
    let v2 = words.iter().filter_map(|word| word.strip_prefix("wbytes="));
    v1.chain(v2).filter_map(|number| number.parse::<u64>().ok()).sum()
}

async fn io(case: Case) -> Verdict {
    let write = "dd if=/dev/zero of=/conformance bs=1048576 count=3 oflag=direct 2>/dev/null || \
                 { head -c 3145728 /dev/zero > /conformance; sync; }";
    let id = case.start_ready(&Workload::idle()).await?;
    case.ask(&id, write).await?;
    let look = cgroup_files("io.stat", "blkio", &["blkio.throttle.io_service_bytes"]);
    let seen = case.ask(&id, &look).await?;
    if seen == "none" {
        return Err(Stop::Unsupported("a container does not see the block I/O of its cgroup".to_owned()));
    }
    let io = stats(&case, &id).await?.io;
    any_of("block I/O", &[io.write_bytes, io.write_ops, io.read_bytes, io.read_ops])?;
    // Not every kernel counts what nothing limits, nor what is only in its memory yet.
    let (least, most) = (written(&seen), written(&case.ask(&id, &look).await?));
    ensure(io.write_bytes.is_none_or(|bytes| (least..=most).contains(&bytes)), || {
        format!("its cgroup tells of {least} and then {most} bytes written, and told is {io:?}")
    })?;
    ensure(least == 0 || io.write_ops.is_none_or(|count| count > 0), || format!("{least} bytes by no write: {io:?}"))
}

async fn network(case: Case) -> Verdict {
    needs_networks(&case)?;
    // Whoever has this address, if anybody: the question for the way there is sent and answered.
    let script = "command -v nc > /dev/null || { echo no nc; exit; }; echo ready; \
                  while :; do nc -w 1 192.0.2.1 9 < /dev/null; sleep 1; done";
    let mut spec = case.script(script)?;
    spec.network.mode = NetworkMode::Bridge;
    let id = case.start_spec(&spec).await?;
    if case.logs(&id, 1).await?.iter().any(|entry| entry.message == "no nc") {
        return Err(Stop::Unsupported("the image has no nc".to_owned()));
    }
    if stats(&case, &id).await?.network.is_none() {
        return Err(Stop::Unsupported("the backend counts no packets".to_owned()));
    }
    case.until("no interface has counted what it sent and what came", || async {
        let all = stats(&case, &id).await?.network.unwrap_or_default();
        let counts = |one: &crate::stats::InterfaceStats| {
            [one.tx_packets, one.tx_bytes, one.rx_packets, one.rx_bytes].iter().all(|count| *count > 0)
        };
        Ok(all.iter().any(|(name, one)| name != "lo" && counts(one)).then_some(()))
    })
    .await
}

async fn absent(case: Case) -> Verdict {
    const FILES: [(&str, &str); 5] = [
        ("memory.swap.current", "memory/memory.memsw.usage_in_bytes"),
        ("memory.peak", "memory/memory.max_usage_in_bytes"),
        ("cpu.pressure", "-"),
        ("memory.pressure", "-"),
        ("io.pressure", "-"),
    ];
    let look = |(v2, v1): &(&str, &str)| {
        format!("if [ -f $d/{v2} ] || [ -f $d/{v1} ]; then r=\"$r 1\"; else r=\"$r 0\"; fi; ")
    };
    let script = format!(
        "d=/sys/fs/cgroup; if [ -f $d/memory.max ] || [ -f $d/memory/memory.limit_in_bytes ]; then r=seen; {}echo $r; \
         else echo none; fi",
        FILES.iter().map(look).collect::<String>()
    );
    let id = case.start_ready(&Workload::idle()).await?;
    let stats = stats(&case, &id).await?;
    let seen = case.ask(&id, &script).await?;
    let Some(seen) = seen.strip_prefix("seen ") else {
        return Err(Stop::Unsupported("a container does not see its cgroup".to_owned()));
    };
    let (memory, pressure) = (stats.memory, stats.pressure);
    let told = [
        memory.swap_bytes.is_some(),
        memory.peak_bytes.is_some(),
        pressure.cpu.is_some(),
        pressure.memory.is_some(),
        pressure.io.is_some(),
    ];
    for ((there, told), (file, _)) in seen.split(' ').zip(told).zip(FILES) {
        ensure(there == "1" || !told, || format!("the kernel has no {file}, and there is a number for it"))?;
    }
    Ok(())
}

async fn after_exit(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let running = stats(&case, &id).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let last = case.runtime().stats_detailed(&id).await.or_fail("stats_detailed after the exit")?;
    ensure(last.cpu.usage_usec >= running.cpu.usage_usec, || {
        format!("the last CPU time is {:?}, while it ran it was {:?}", last.cpu, running.cpu)
    })
}

async fn oom_kills(case: Case) -> Verdict {
    let script = "(s=x; i=0; while [ $i -lt 27 ]; do s=$s$s; i=$((i+1)); done); echo ready; sleep 86400 & wait";
    let mut spec = case.script(script)?;
    spec.resources.memory = Some(ByteSize::new(32 << 20));
    let id = case.start_spec_ready(&spec).await?;
    let Some(count) = stats(&case, &id).await?.memory.oom_kills else {
        return Err(Stop::Unsupported("the kernel does not count this".to_owned()));
    };
    ensure(count > 0, || "a process was killed for want of memory and none is counted".to_owned())
}

async fn disk(case: Case) -> Verdict {
    let script = "head -c 3000000 /dev/zero > /conformance; echo ready; sleep 86400 & wait";
    let id = case.start_ready(&Workload::Script(script.to_owned())).await?;
    let Some(log) = stats(&case, &id).await?.disk.log_bytes else {
        return Err(Stop::Unsupported("this backend does not know what is on disk".to_owned()));
    };
    ensure(log >= 6, || format!("a log with one line has {log} bytes"))?;
    case.until("3,000,000 bytes in the root are not counted", || async {
        let stats = case.runtime().stats_detailed(&id).await.or_fail("stats_detailed")?;
        Ok(stats.disk.writable_bytes.is_none_or(|bytes| bytes >= 3_000_000).then_some(()))
    })
    .await
}
