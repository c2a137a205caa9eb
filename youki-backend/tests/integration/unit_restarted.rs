//! What `systemctl restart` does to an agent and what belongs to its unit: everything in the unit's cgroup is killed. With
//! `KillMode=process`, as in `examples/berth-agent.service`, it is the agent alone; this is the harder case. Only of v1's
//! `name=systemd` do supervisors not leave the unit's: there `KillMode` is what keeps them.

use std::path::PathBuf;
use std::time::Duration;

use runtime_core::{ContainerState, WaitReason};

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::case::{eventually, finish_on, soon, words};
use crate::support::process::{gone, kill};

crate::tests![
    containers_outlive_the_whole_cgroup_of_their_agent,
    the_unit_says_what_containers_need_to_outlive_a_restart
];

/// A cgroup for an agent, as a unit is one: on v1 in each hierarchy. It goes with this value.
struct Unit(Vec<PathBuf>);

impl Unit {
    fn new() -> Self {
        let top = PathBuf::from("/sys/fs/cgroup");
        let hierarchies: Vec<PathBuf> = if top.join("cgroup.procs").exists() {
            vec![top]
        } else {
            ["cpu", "memory", "pids", "freezer"].iter().map(|name| top.join(name)).filter(|dir| dir.exists()).collect()
        };
        let name = format!("berth-it-unit-{}", std::process::id());
        let dirs: Vec<PathBuf> = hierarchies.into_iter().map(|dir| dir.join(&name)).collect();
        dirs.iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        Self(dirs)
    }

    fn take_in(&self, pid: u32) {
        self.0.iter().for_each(|dir| std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap());
    }

    fn pids(&self) -> Vec<u32> {
        let read = |dir: &PathBuf| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        let mut pids: Vec<u32> = self
            .0
            .iter()
            .flat_map(|dir| read(dir).lines().map(|line| line.parse().unwrap()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// SIGKILL to each that is in it, until none is.
    async fn kill(&self) -> Vec<u32> {
        let mut killed = Vec::new();
        while let pids @ [_, ..] = &self.pids()[..] {
            pids.iter().filter(|pid| !gone(**pid)).for_each(|pid| kill(*pid));
            killed.extend_from_slice(pids);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        killed
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        for dir in &self.0 {
            // A process leaves it a moment after its end.
            let removed = (0..100).any(|_| {
                let removed = std::fs::remove_dir(dir).is_ok() || !dir.exists();
                if !removed {
                    std::thread::sleep(Duration::from_millis(20));
                }
                removed
            });
            if !removed {
                eprintln!("{} could not be removed", dir.display());
            }
        }
    }
}

async fn containers_outlive_the_whole_cgroup_of_their_agent(case: Case) {
    let (root, unit) = (case.root("root"), Unit::new());
    let (mut agent, first) = Agent::start_with_pid(&root).await;
    unit.take_in(first);
    let (service, job) = (case.id_in(&root), case.id_in(&root));
    let spec = case.script("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done").await;
    agent.ask(&Request::Run { id: service.clone(), spec: Box::new(spec) }).await.unwrap();
    let spec = case.script("sleep 2; echo last words; exit 42").await;
    agent.ask(&Request::Run { id: job.clone(), spec: Box::new(spec) }).await.unwrap();
    // Neither supervisors nor containers are the unit's.
    let members = unit.pids();
    let killed = unit.kill().await;
    assert_eq!((members, killed.contains(&first)), (vec![first], true));

    // The unit's next main process.
    let (mut agent, second) = Agent::start_with_pid(&root).await;
    unit.take_in(second);
    agent.ask(&Request::Exec { id: service.clone(), command: words(&["true"]) }).await.unwrap();
    assert_eq!(unit.pids(), [second]);
    let runtime = root.open().await.unwrap();
    assert_eq!(runtime.container_state(&service).await.unwrap(), ContainerState::Running);
    let ended = soon("the job ends", finish_on(&*runtime, &job)).await;
    assert_eq!((ended.outcome.exit_code, ended.outcome.reason), (42, WaitReason::Exited));
    assert_eq!(ended.stdout, ["last words"]);
    let lines = runtime.get_logs(&service).await.unwrap().len();
    eventually("the service writes on", || async { runtime.get_logs(&service).await.unwrap().len() > lines + 5 }).await;
    agent.ask(&Request::Stop { id: service.clone(), timeout: Duration::ZERO }).await.unwrap();
    let written = finish_on(&*runtime, &service).await.stdout;
    let expected: Vec<String> = (1..=written.len()).map(|number| format!("line {number}")).collect();
    assert_eq!(written, expected, "a line was lost between the agents");
    unit.kill().await;
    for id in [service, job] {
        runtime.remove_container(&id).await.unwrap();
    }
}

async fn the_unit_says_what_containers_need_to_outlive_a_restart(_case: Case) {
    let unit = include_str!("../../examples/berth-agent.service");
    let (_, service) = unit.split_once("\n[Service]\n").unwrap();
    let settings: Vec<&str> = service.lines().take_while(|line| !line.starts_with('[')).collect();
    // Else systemd kills supervisors, takes cgroups away, or the sockets by which they are found.
    for wanted in ["KillMode=process", "Delegate=yes", "RuntimeDirectory=berth", "RuntimeDirectoryPreserve=yes"] {
        let (name, _) = wanted.split_once('=').unwrap();
        let said: Vec<_> = settings.iter().filter(|line| line.split('=').next() == Some(name)).collect();
        assert_eq!(said, [&wanted]);
    }
    for limit in ["LimitNOFILE=", "TasksMax=", "MemoryMax="] {
        assert!(settings.iter().any(|line| line.starts_with(limit)), "{limit}");
    }
}
