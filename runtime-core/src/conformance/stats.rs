//! What a container uses.

use std::time::Duration;

use chrono::{TimeDelta, Utc};

use super::case::{Case, OrStop, Verdict, ensure, equal};
use super::process::honest;
use super::{Ability, Check, Workload, check};
use crate::spec::ByteSize;
use crate::{ContainerId, ContainerStats};

pub(super) fn checks() -> Vec<Check> {
    vec![
        check!(
            "stats.running",
            "cumulative CPU time, memory in use, no limit as u64::MAX, time of reading",
            stats_running
        ),
        check!("stats.cpu", "CPU time grows by what is used", stats_cpu),
        check!("stats.cpu_percent", "what never waits uses about one CPU, by calculate_cpu_percent", cpu_percent),
        check!("stats.memory", "memory in use is what the kernel charges, the page cache with it", stats_memory),
        check!("stats.limit", "the memory limit is the spec's", stats_limit),
        check!("stats.after_exit", "an exited container has its last stats", stats_after_exit),
    ]
}

async fn stats(case: &Case, id: &ContainerId) -> Verdict<ContainerStats> {
    let answer = case.runtime().get_container_stats(id).await;
    if case.lacks(Ability::Stats) {
        honest("get_container_stats", answer.clone())?;
    }
    answer.or_fail("get_container_stats")
}

async fn stats_running(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let before = Utc::now();
    let first = stats(&case, &id).await?;
    let after = Utc::now();
    let slack = TimeDelta::milliseconds(50);
    ensure(before - slack <= first.timestamp && first.timestamp <= after + slack, || {
        format!("it was read between {before} and {after}, not at {}", first.timestamp)
    })?;
    equal("the limit where none is set", &first.memory_limit, &u64::MAX)?;
    // Even a shell that does nothing has a stack, and has used some CPU time to start.
    let plausible = (4096..1 << 33).contains(&first.memory_bytes);
    ensure(plausible, || format!("a waiting shell uses {} bytes", first.memory_bytes))?;
    ensure(first.cpu_usage_usec > 0, || "a shell has started with no CPU time at all".to_owned())?;
    // It may still be on its way to where it waits.
    case.until("a shell that waits uses half of a CPU", || async {
        let before = stats(&case, &id).await?.cpu_usage_usec;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = stats(&case, &id).await?.cpu_usage_usec;
        ensure(after >= before, || format!("its CPU time went from {before} to {after} µs"))?;
        Ok((after - before < 500_000).then_some(()))
    })
    .await
}

async fn stats_cpu(case: Case) -> Verdict {
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo ready; sleep 86400 & wait".to_owned();
    let busy = case.start_ready(&Workload::Script(script)).await?;
    let waiting = case.start_ready(&Workload::idle()).await?;
    let (busy, waiting) = (stats(&case, &busy).await?.cpu_usage_usec, stats(&case, &waiting).await?.cpu_usage_usec);
    ensure(busy > waiting + 20_000, || format!("a busy one used {busy} µs, a waiting one {waiting} µs"))
}

async fn stats_limit(case: Case) -> Verdict {
    let mut spec = case.spec(&Workload::idle())?;
    spec.resources.memory = Some(ByteSize::new(64 << 20));
    let id = case.start_spec(&spec).await?;
    equal("the limit", &stats(&case, &id).await?.memory_limit, &(64 << 20))
}

async fn stats_after_exit(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::idle()).await?;
    let running = stats(&case, &id).await?;
    case.runtime().stop_container(&id, case.soon()).await.or_fail("stop_container")?;
    let last = stats(&case, &id).await?;
    ensure(last.cpu_usage_usec >= running.cpu_usage_usec, || {
        format!("the last CPU time is {} µs, while it ran it was {} µs", last.cpu_usage_usec, running.cpu_usage_usec)
    })
}

async fn cpu_percent(case: Case) -> Verdict {
    let id = case.start_ready(&Workload::Script("echo ready; while :; do :; done".to_owned())).await?;
    let first = stats(&case, &id).await?;
    // On a busy machine it has less than one, for as long as others have it.
    let second = case
        .until("a loop that never waits uses no CPU time", || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let second = stats(&case, &id).await?;
            Ok((second.cpu_usage_usec > first.cpu_usage_usec + 200_000).then_some(second))
        })
        .await?;
    let percent = ContainerStats::calculate_cpu_percent(&first, &second);
    // It never has more than one, but for the kernel's coarse clock and the time that a reading takes.
    ensure((0.1..140.0).contains(&percent), || format!("a loop that never waits uses {percent:.1} % of a CPU"))
}

async fn stats_memory(case: Case) -> Verdict {
    const HELD: u64 = 16 << 20;
    let id = case.start_ready(&Workload::idle()).await?;
    let before = stats(&case, &id).await?.memory_bytes;
    case.ask(&id, &format!("head -c {HELD} /dev/zero > /dev/shm/held")).await?;
    let after = stats(&case, &id).await?.memory_bytes;
    let grown = after.saturating_sub(before);
    ensure((HELD * 9 / 10..HELD * 3).contains(&grown), || {
        format!("with {HELD} bytes more in memory it grew from {before} to {after}")
    })
}
