//! Limits that hold, and stats that tell the truth about them.

use std::time::{Duration, Instant};

use runtime_core::ContainerStats;

use crate::support::Case;
use crate::support::case::{eventually, words};
use crate::support::pace::patience;

crate::tests![
    an_update_that_the_kernel_refuses_changes_nothing,
    a_memory_limit_is_in_the_stats_and_in_the_kernel,
    without_a_memory_limit_the_stats_say_none,
    memory_that_is_used_is_seen,
    a_pids_limit_stops_forks,
    the_default_pids_limit_is_2048,
    half_a_cpu_is_half_a_cpu,
    an_exited_container_keeps_its_last_stats,
    rlimits_are_applied,
    no_core_files_unless_asked_for,
];

async fn a_memory_limit_is_in_the_stats_and_in_the_kernel(case: Case) {
    let mut spec = case.script(crate::support::case::IDLE).await;
    spec.resources.memory = Some("64Mi".parse().unwrap());
    let id = case.start(&spec).await;
    let stats = case.runtime.get_container_stats(&id).await.unwrap();
    assert_eq!(stats.memory_limit, 64 << 20);
    assert!(stats.memory_bytes > 0 && stats.memory_bytes < 64 << 20, "{stats:?}");
    let kernel = case.cgroup_file(&id, "memory", &["memory.limit_in_bytes", "memory.max"]);
    assert_eq!(kernel.trim(), (64 << 20).to_string());
    // What wants more is killed, and the container lives.
    let (code, _, _) = case.runtime.exec(&id, &words(&["tail", "/dev/zero"])).await.unwrap();
    assert_eq!(code, 137);
    assert_eq!(case.exec_ok(&id, "echo alive").await, "alive\n");
}

async fn without_a_memory_limit_the_stats_say_none(case: Case) {
    let id = case.idle().await;
    let stats = case.runtime.get_container_stats(&id).await.unwrap();
    assert_eq!(stats.memory_limit, u64::MAX);
    assert_eq!(stats.memory_percent(), 0.0);
    assert_eq!(case.runtime.stats_detailed(&id).await.unwrap().memory.limit_bytes, None);
}

async fn memory_that_is_used_is_seen(case: Case) {
    let id = case.idle().await;
    let before = case.runtime.get_container_stats(&id).await.unwrap().memory_bytes;
    case.exec_ok(&id, "dd if=/dev/zero of=/dev/shm/used bs=1M count=32").await;
    let after = case.runtime.get_container_stats(&id).await.unwrap().memory_bytes;
    assert!(after >= before + (31 << 20), "{before} then {after}");
    let kernel = case.cgroup_file(&id, "memory", &["memory.usage_in_bytes", "memory.current"]);
    let kernel: u64 = kernel.trim().parse().unwrap();
    assert!(after.abs_diff(kernel) < 4 << 20, "{after}, the kernel says {kernel}");
}

async fn a_pids_limit_stops_forks(case: Case) {
    let mut spec = case.script("trap 'exit 0' TERM; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 3600 & done; wait").await;
    spec.resources.pids = Some(6);
    let id = case.start(&spec).await;
    eventually("it runs into its limit", || async {
        let pids = case.runtime.stats_detailed(&id).await.map(|stats| stats.pids).unwrap_or_default();
        let exited = case.runtime.container_state(&id).await.unwrap().is_final();
        (pids.current == Some(6) && pids.limit == Some(6)) || exited
    })
    .await;
    eventually("the fork beyond it fails", || async {
        let logs = case.runtime.get_logs(&id).await.unwrap();
        logs.iter().any(|entry| entry.message.contains("can't fork"))
    })
    .await;
}

async fn the_default_pids_limit_is_2048(case: Case) {
    let id = case.idle().await;
    assert_eq!(case.cgroup_file(&id, "pids", &["pids.max"]).trim(), "2048");
    assert_eq!(case.runtime.stats_detailed(&id).await.unwrap().pids.limit, Some(2048));
}

async fn half_a_cpu_is_half_a_cpu(case: Case) {
    let mut spec = case.script("while :; do :; done").await;
    spec.resources.cpu = Some(0.5);
    let id = case.start(&spec).await;
    // Past its first period, in which a burst may be left over.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    loop {
        let first = case.runtime.get_container_stats(&id).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let second = case.runtime.get_container_stats(&id).await.unwrap();
        let percent = ContainerStats::calculate_cpu_percent(&first, &second);
        // It may get less where others want the CPUs too, never more.
        assert!(percent < 56.0, "{percent} %");
        let throttled = case.runtime.stats_detailed(&id).await.unwrap().cpu.throttled_usec;
        assert!(percent < 40.0 || throttled > Some(0), "{throttled:?}");
        if percent > 5.0 {
            break;
        }
        assert!(begin.elapsed() < patience(Duration::from_secs(60)), "it gets {percent} %");
    }
    assert_eq!(
        case.cgroup_file(&id, "cpu", &["cpu.cfs_quota_us", "cpu.max"]).split(' ').next().unwrap().trim(),
        "50000"
    );
}

async fn an_exited_container_keeps_its_last_stats(case: Case) {
    let id = case.start(&case.script("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done").await).await;
    case.finish(&id).await.succeeded();
    let stats = case.runtime.get_container_stats(&id).await.unwrap();
    assert!(stats.cpu_usage_usec > 1_000, "{stats:?}");
}

async fn rlimits_are_applied(case: Case) {
    let mut spec = case.script("ulimit -Sn; ulimit -Hn").await;
    spec.rlimits.insert("nofile".into(), runtime_core::spec::RlimitSpec { soft: 100, hard: 200 });
    assert_eq!(case.run(&spec).await.succeeded(), ["100", "200"]);
}

async fn no_core_files_unless_asked_for(case: Case) {
    assert_eq!(case.lines_of("ulimit -c").await, ["0"]);
}

async fn an_update_that_the_kernel_refuses_changes_nothing(case: Case) {
    let mut spec = case.script("head -c 30000000 /dev/zero > /dev/shm/held; echo up; exec sleep 3600").await;
    spec.resources.memory = Some("100Mi".parse().unwrap());
    let id = case.start(&spec).await;
    case.until_logged(&id, "up").await;
    let all = || {
        [
            case.cgroup_file(&id, "cpu", &["cpu.cfs_quota_us", "cpu.max"]),
            case.cgroup_file(&id, "cpu", &["cpu.shares", "cpu.weight"]),
            case.cgroup_file(&id, "cpuset", &["cpuset.cpus"]),
            case.cgroup_file(&id, "pids", &["pids.max"]),
            case.cgroup_file(&id, "memory", &["memory.limit_in_bytes", "memory.max"]),
        ]
    };
    let before = all();
    // What is refused: less memory than it holds, which v2 would kill it for, and there a CPU that no host has.
    let refused = match std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        false => ["-m", "10m", "--cpuset-cpus", "0"],
        true => ["-m", "90m", "--cpuset-cpus", "4000"],
    };
    let args = ["update", "--cpus", "1", "-c", "100", "--pids-limit", "7"];
    let said = case.berth(&[&args[..], &refused[..], &[&id.to_string()]].concat()).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert_eq!(all(), before);
}
