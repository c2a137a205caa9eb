//! What only cgroup v2 has. On a host with v1 these tests are listed as ignored: `cargo xtask vm` runs them in a machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::Trial;
use runtime_core::ContainerId;
use runtime_core::spec::ResourcesSpec;
use rustix::fs::inotify;

use crate::support::Case;
use crate::support::case::{IDLE, eventually, pids_beneath, soon, words};

crate::tests![
    a_stop_kills_by_cgroup_kill,
    a_dropped_exec_is_killed_by_cgroup_kill,
    pressure_peak_and_io_are_in_the_stats,
    every_limit_is_in_its_file,
    a_limit_of_a_running_container_is_changed,
    a_pause_freezes_the_cgroup,
    it_sees_its_own_cgroup_as_the_root_and_cannot_write_it,
    an_execs_processes_are_limited_and_counted_with_the_container,
    a_parent_with_processes_of_its_own_is_refused_with_the_reason,
];

/// `trials` where the hierarchy is v2; else as ignored ones that say why.
pub fn only_there(trials: Vec<Trial>) -> Vec<Trial> {
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    trials.into_iter().map(|trial| trial.with_kind("needs cgroup v2").with_ignored_flag(!is_v2)).collect()
}

fn dir(case: &Case, id: &ContainerId) -> PathBuf {
    let dirs = case.suite.shared_if_opened().expect("the shared root is open").root.cgroups_of(id);
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    dirs[0].clone()
}

fn read(dir: &Path, file: &str) -> String {
    let path = dir.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

/// Tells which of a cgroup's files were written to.
struct Writes {
    watch: rustix::fd::OwnedFd,
    names: Vec<(i32, &'static str)>,
}

impl Writes {
    fn watch(dir: &Path, names: &[&'static str]) -> Self {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let add = |name: &&'static str| {
            (inotify::add_watch(&watch, dir.join(name), inotify::WatchFlags::MODIFY).unwrap(), *name)
        };
        let names = names.iter().map(add).collect();
        Self { watch, names }
    }

    fn seen(&self) -> Vec<&'static str> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            let written = event.events().contains(inotify::ReadFlags::MODIFY);
            seen.extend(self.names.iter().filter(|(watch, _)| written && *watch == event.wd()).map(|(_, name)| *name));
        }
        seen.dedup();
        seen
    }
}

async fn a_stop_kills_by_cgroup_kill(case: Case) {
    let script =
        "trap '' TERM; for i in 1 2 3 4 5; do sh -c \"trap '' TERM; while :; do sleep 1; done\" & done; echo up; wait";
    let id = case.start(&case.script(script).await).await;
    case.until_logged(&id, "up").await;
    let pids = case.host_pids(&id).await;
    assert!(pids.len() >= 6, "{pids:?}");
    let writes = Writes::watch(&dir(&case, &id), &["cgroup.kill"]);
    soon("stop", case.runtime.stop_container(&id, Duration::from_millis(100))).await.unwrap();
    assert_eq!(writes.seen(), ["cgroup.kill"]);
    assert!(pids.iter().all(|pid| crate::support::process::gone(*pid)), "{pids:?}");
}

async fn a_dropped_exec_is_killed_by_cgroup_kill(case: Case) {
    let id = case.idle().await;
    let events = case.runtime.exec_stream(&id, &words(&["sh", "-c", "sleep 3600 & sleep 3600 & wait"])).await.unwrap();
    let exec_dir = dir(&case, &id).join("exec-1");
    eventually("all of it is in a cgroup of its own", || async { pids_beneath(&exec_dir).len() == 3 }).await;
    let writes = Writes::watch(&exec_dir, &["cgroup.kill"]);
    drop(events);
    eventually("all of it is dead", || async {
        let events = std::fs::read_to_string(exec_dir.join("cgroup.events"));
        events.map_or(true, |events| events.contains("populated 0"))
    })
    .await;
    assert_eq!(writes.seen(), ["cgroup.kill"]);
    // Its cgroup goes with the next one at the latest.
    assert_eq!(case.exec_ok(&id, "echo alive").await, "alive\n");
    assert!(!exec_dir.exists());
}

async fn pressure_peak_and_io_are_in_the_stats(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.resources.memory = Some("96Mi".parse().unwrap());
    let id = case.start(&spec).await;
    case.exec_ok(&id, "dd if=/dev/zero of=/dev/shm/used bs=1M count=32; rm /dev/shm/used").await;
    case.exec_ok(&id, "dd if=/dev/zero of=/written bs=1M count=8 conv=fsync").await;
    let stats = case.runtime.stats_detailed(&id).await.unwrap();
    let (usage, peak) = (stats.memory.usage_bytes.unwrap(), stats.memory.peak_bytes.expect("memory.peak"));
    assert!(peak >= 32 << 20 && peak > usage && peak <= 96 << 20, "{:?}", stats.memory);
    assert!(stats.memory.working_set_bytes <= Some(usage) && stats.memory.cache_bytes.is_some(), "{:?}", stats.memory);
    assert_eq!((stats.memory.limit_bytes, stats.memory.oom_kills), (Some(96 << 20), Some(0)));
    for (name, pressure) in [("cpu", stats.pressure.cpu), ("memory", stats.pressure.memory), ("io", stats.pressure.io)]
    {
        let pressure = pressure.unwrap_or_else(|| panic!("no {name} pressure"));
        assert!(pressure.full_total_usec.is_some() && pressure.full_avg10.is_some(), "{name}: {pressure:?}");
    }
    // Written to a disk, and synced.
    assert!(stats.io.write_bytes >= Some(8 << 20) && stats.io.write_ops > Some(0), "{:?}", stats.io);
    let cpu = &stats.cpu;
    let (user, system) = (cpu.user_usec.unwrap(), cpu.system_usec.unwrap());
    assert!(cpu.usage_usec.unwrap().abs_diff(user + system) <= 2 && user + system > 0, "{cpu:?}");
    assert_eq!(cpu.throttled_usec, Some(0));
}

async fn every_limit_is_in_its_file(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.resources = serde_json::from_value(serde_json::json!({
        "memory": "64Mi", "swap": "0", "cpu": 0.5, "cpu_shares": 2048, "pids": 77, "cpuset": "0", "io": {"weight": 500},
    }))
    .unwrap();
    let id = case.start(&spec).await;
    let dir = dir(&case, &id);
    for (file, want) in [
        ("memory.max", "67108864"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "174"),
        ("pids.max", "77"),
        ("cpuset.cpus", "0"),
        ("io.weight", "default 4950"),
    ] {
        assert_eq!(read(&dir, file), want, "{file}");
    }
    assert_eq!(case.exec_ok(&id, "nproc").await, "1\n");
}

async fn a_limit_of_a_running_container_is_changed(case: Case) {
    let id = case.idle().await;
    let changes = ResourcesSpec { pids: Some(55), memory: Some("80Mi".parse().unwrap()), ..ResourcesSpec::default() };
    case.runtime.update_resources(&id, &changes).await.unwrap();
    let dir = dir(&case, &id);
    assert_eq!((read(&dir, "pids.max"), read(&dir, "memory.max")), ("55".into(), "83886080".into()));
}

async fn a_pause_freezes_the_cgroup(case: Case) {
    let id = case.idle().await;
    let frozen = |case: &Case| read(&dir(case, &id), "cgroup.events").contains("frozen 1");
    assert!(!frozen(&case));
    soon("pause", case.runtime.pause(&id)).await.unwrap();
    assert!(frozen(&case));
    soon("unpause", case.runtime.unpause(&id)).await.unwrap();
    assert!(!frozen(&case));
    // A frozen one is killed, too.
    case.runtime.pause(&id).await.unwrap();
    soon("stop", case.runtime.stop_container(&id, Duration::ZERO)).await.unwrap();
}

async fn it_sees_its_own_cgroup_as_the_root_and_cannot_write_it(case: Case) {
    let mut spec = case
        .script(
            "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max; ls -d /sys/fs/cgroup/*/ 2>/dev/null; \
             (echo 5 > /sys/fs/cgroup/pids.max) 2>&1 | grep -o 'Read-only file system'",
        )
        .await;
    spec.resources.pids = Some(33);
    assert_eq!(case.run(&spec).await.succeeded(), ["0::/", "33", "Read-only file system"]);
}

async fn an_execs_processes_are_limited_and_counted_with_the_container(case: Case) {
    let mut spec = case.script(IDLE).await;
    spec.resources.pids = Some(8);
    let id = case.start(&spec).await;
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & done 2>&1; wait";
    let (code, stdout, stderr) = soon("an exec that forks too much", case.exec(&id, script)).await;
    assert!(code != 0 && format!("{stdout}{stderr}").contains("can't fork"), "{code} {stdout} {stderr}");
    let before = case.runtime.get_container_stats(&id).await.unwrap().cpu_usage_usec;
    case.exec_ok(&id, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").await;
    let after = case.runtime.get_container_stats(&id).await.unwrap().cpu_usage_usec;
    assert!(after > before + 1_000, "{before} then {after}");
}

async fn a_parent_with_processes_of_its_own_is_refused_with_the_reason(case: Case) {
    let mut root = case.root("root");
    let busy = PathBuf::from("/sys/fs/cgroup").join(&root.cgroup_parent);
    std::fs::create_dir(&busy).unwrap();
    let mut process = tokio::process::Command::new("sleep").arg("3600").kill_on_drop(true).spawn().unwrap();
    std::fs::write(busy.join("cgroup.procs"), process.id().unwrap().to_string()).unwrap();
    root.cgroup_parent += "/containers";
    let error = root.open().await.err().expect("what cannot be limited is not begun");
    assert_eq!(error.code(), "config.invalid");
    assert!(error.to_string().contains(&format!("processes in {} keep", busy.display())), "{error}");
    process.kill().await.unwrap();
    root.open().await.expect("nothing is in the way any more");
    for dir in ["containers/supervisors", "containers", ""] {
        std::fs::remove_dir(busy.join(dir)).unwrap();
    }
}
