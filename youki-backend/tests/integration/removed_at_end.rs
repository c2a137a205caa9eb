//! A container with `remove_on_exit` goes with its end, whoever is alive then, and leaves nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_core::spec::{NetworkMode, PortProtocol, RestartKind, StorageSpec};
use runtime_core::{AgentError, ContainerId, PortMapping, Runtime, ServiceSpec, WaitReason};

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::command;
use crate::support::case::{IDLE, eventually, seen_root, soon, start_on};
use crate::support::process::{gone, kill, supervisor};
use crate::support::root::Root;
use crate::volumes::named;

crate::tests![
    who_waits_is_told_and_nothing_is_left,
    it_goes_while_no_agent_runs,
    its_name_address_and_port_are_the_next_ones_at_once,
    of_a_dead_supervisor_the_next_look_removes_it,
    killed_anywhere_on_the_way_it_is_gone_at_the_next_open,
    a_stop_and_a_removal_of_it_succeed,
    a_program_that_cannot_be_executed_leaves_nothing,
    a_restart_policy_beside_it_is_refused,
    its_volume_is_synced_by_a_keeper_that_runs_or_comes,
    run_detached_removes_it_and_run_tells_its_code,
    a_full_disk_does_not_keep_it,
    its_volume_is_settled_though_another_container_has_its_name,
];

/// What there is of `id` on disk, wherever it is named.
fn left_of(root: &Root, id: &ContainerId) -> Vec<PathBuf> {
    fn look(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                look(&entry.path(), name, found);
            }
        }
    }
    let mut found = root.cgroups_of(id);
    look(&root.run_dir, &id.to_string(), &mut found);
    look(&root.dir.join("containers"), &id.to_string(), &mut found);
    found.extend(std::fs::read_dir(root.dir.join("trash")).into_iter().flatten().flatten().map(|entry| entry.path()));
    found
}

async fn until_nothing_is_left(root: &Root, id: &ContainerId) {
    eventually(&format!("nothing is left of {id}"), || async { left_of(root, id).is_empty() }).await;
}

async fn spec(case: &Case, script: &str) -> ServiceSpec {
    let mut spec = case.script(script).await;
    spec.remove_on_exit = true;
    spec
}

/// On the bridge, with a port and an anonymous volume.
async fn with_much(case: &Case, script: &str, host_port: Option<u16>) -> ServiceSpec {
    let mut spec = spec(case, script).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings =
        vec![PortMapping { host_port, container_port: 80, protocol: PortProtocol::Tcp, host_ip: None }];
    spec.storage = vec![StorageSpec::Anonymous { target: "/scratch".into() }];
    spec
}

async fn is_gone(runtime: &dyn Runtime, id: &ContainerId) -> bool {
    matches!(runtime.container_state(id).await, Err(AgentError::NotFound { .. }))
}

async fn who_waits_is_told_and_nothing_is_left(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (id, spec) = (case.id_on(&runtime), with_much(&case, "touch /scratch/x; sleep 0.5; exit 7", None).await);
    start_on(&*runtime, &id, &spec).await.unwrap();
    let outcome = soon("the end is told", runtime.wait_outcome(&id)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (7, WaitReason::Exited));
    assert!(outcome.finished_at.is_some());
    assert!(is_gone(&*runtime, &id).await, "it is still there for who was told");
    assert!(runtime.list_containers().await.unwrap().is_empty());
    until_nothing_is_left(&root, &id).await;
    assert!(matches!(runtime.remove_container(&id).await, Err(AgentError::NotFound { .. })));
}

async fn it_goes_while_no_agent_runs(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let (id, spec) = (case.id_in(&root), with_much(&case, "until [ -e /end ]; do sleep 0.05; done", None).await);
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(spec) }).await.unwrap();
    let looking = Root { keeper: false, ..root.clone() }.open().await.unwrap();
    let end = seen_root(&*looking, &id).await.join("end");
    drop(looking);
    agent.kill().await;
    std::fs::write(end, "").unwrap();
    until_nothing_is_left(&root, &id).await;
    let runtime = root.open().await.unwrap();
    assert!(is_gone(&*runtime, &id).await);
}

async fn its_name_address_and_port_are_the_next_ones_at_once(case: Case) {
    let root = case.root("root");
    // Two addresses beside the bridge's, so that each is soon had again.
    let root = Root { subnet: root.subnet.replace(".0/24", ".0/30"), ..root };
    let runtime = root.open().await.unwrap();
    let port = case.suite.share.port();
    let (id, spec) = (case.id_on(&runtime), with_much(&case, "sleep 0.2; exit 5", Some(port)).await);
    for _ in 0..4 {
        start_on(&*runtime, &id, &spec).await.unwrap();
        assert_eq!(soon("it ends", runtime.wait_container(&id)).await, Ok(5));
    }
    until_nothing_is_left(&root, &id).await;
}

async fn of_a_dead_supervisor_the_next_look_removes_it(case: Case) {
    let root = case.root("root");
    let (runtime, id) = (root.open().await.unwrap(), case.id_in(&root));
    start_on(&*runtime, &id, &with_much(&case, IDLE, None).await).await.unwrap();
    kill(supervisor(&*runtime, &id).await);
    drop(runtime);
    let runtime = root.open().await.unwrap();
    assert!(is_gone(&*runtime, &id).await, "opening the root left it there");
    until_nothing_is_left(&root, &id).await;

    // The same beside an agent that lives, whoever looks.
    start_on(&*runtime, &id, &with_much(&case, IDLE, None).await).await.unwrap();
    kill(supervisor(&*runtime, &id).await);
    let outcome = soon("the end is told", runtime.wait_outcome(&id)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::RuntimeError));
    until_nothing_is_left(&root, &id).await;
}

async fn killed_anywhere_on_the_way_it_is_gone_at_the_next_open(case: Case) {
    let root = case.root("root");
    let spec = with_much(&case, "read x; exit 0", None).await;
    let spec = ServiceSpec { stdin: true, ..spec };
    for round in 0..20_u64 {
        let (runtime, id) = (root.open().await.unwrap(), case.id_in(&root));
        start_on(&*runtime, &id, &spec).await.unwrap();
        let supervisor = supervisor(&*runtime, &id).await;
        runtime.kill_container(&id, None).await.unwrap();
        // From before its end to after the last step of its removal.
        tokio::time::sleep(Duration::from_micros(round * 700)).await;
        let process = rustix::process::Pid::from_raw(supervisor.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        eventually("it is dead", || async { gone(supervisor) }).await;
        drop(runtime);
        let runtime = root.open().await.unwrap();
        // At once, unless somebody else is about it at this moment.
        eventually(&format!("it is gone, in round {round}"), || is_gone(&*runtime, &id)).await;
        until_nothing_is_left(&root, &id).await;
    }
}

async fn a_stop_and_a_removal_of_it_succeed(case: Case) {
    let root = case.root("root");
    let (runtime, id) = (root.open().await.unwrap(), case.id_in(&root));
    let idle = with_much(&case, IDLE, None).await;
    start_on(&*runtime, &id, &idle).await.unwrap();
    runtime.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    assert!(is_gone(&*runtime, &id).await);
    start_on(&*runtime, &id, &idle).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    until_nothing_is_left(&root, &id).await;
    // Never started.
    runtime.create_container(&id, &idle).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    until_nothing_is_left(&root, &id).await;
}

async fn a_program_that_cannot_be_executed_leaves_nothing(case: Case) {
    let root = case.root("root");
    let (runtime, id) = (root.open().await.unwrap(), case.id_in(&root));
    let mut spec = with_much(&case, "", None).await;
    spec.command.args = Some(vec!["/no/such".into()]);
    let error = start_on(&*runtime, &id, &spec).await.unwrap_err();
    assert_eq!(error.code(), "exec.not_found", "{error}");
    until_nothing_is_left(&root, &id).await;
}

async fn a_restart_policy_beside_it_is_refused(case: Case) {
    let mut spec = spec(&case, "true").await;
    spec.restart_policy.kind = RestartKind::Always;
    let error = case.try_start(&case.id(), &spec).await.unwrap_err();
    assert!(matches!(&error, AgentError::InvalidSpec(reason) if reason.contains("removed on exit")), "{error}");
}

async fn its_volume_is_synced_by_a_keeper_that_runs_or_comes(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let other = Root { keeper: false, ..root.clone() };
    let mut spec = spec(&case, "echo one more >> /data/file; sleep 0.5").await;
    spec.storage = vec![named("data", "/data")];
    let id = case.id_in(&root);
    let run = async || {
        let mut agent = Agent::start(&other, &[]).await;
        agent.ask(&Request::Run { id: id.clone(), spec: Box::new(spec.clone()) }).await.unwrap();
        agent.kill().await;
        until_nothing_is_left(&root, &id).await;
    };
    run().await;
    let keeper = root.open().await.unwrap();
    let settled = async |generation: Option<u64>| {
        eventually("the volume is durable, and nobody's", || async {
            let status = keeper.volume_status("data").await.unwrap();
            status.generation > generation && status.bytes_at_risk == 0 && status.owner.is_none()
        })
        .await;
        keeper.volume_status("data").await.unwrap().generation
    };
    let first = settled(None).await;
    run().await;
    settled(first).await;
    // One that is over before anybody could follow it.
    spec.command.args = Some(vec!["sh".into(), "-c".into(), "echo one more >> /data/file".into()]);
    let before = keeper.volume_status("data").await.unwrap().generation;
    let mut agent = Agent::start(&other, &[]).await;
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(spec.clone()) }).await.unwrap();
    agent.kill().await;
    settled(before).await;
}

async fn run_detached_removes_it_and_run_tells_its_code(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let root = case.root("root");
    let output = command(&root).args(["run", "-d", "--rm", "--name", "job", &image, "sleep", "1"]).output();
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"job-rep-0\n");
    let job = ContainerId::new("job", 0);
    until_nothing_is_left(&root, &job).await;

    // What it ends with is told, and it is gone when that is.
    for (script, code) in [("exit 3", 3), ("echo all of it; exit 0", 0)] {
        let output = command(&root).args(["run", "--rm", "--name", "job", &image, "sh", "-c", script]).output();
        let output = output.await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stderr, b"", "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(left_of(&root, &job), Vec::<PathBuf>::new());
    }
    let output = command(&root).args(["ps", "-aq"]).output().await.unwrap();
    assert_eq!(output.stdout, b"");
}

async fn a_full_disk_does_not_keep_it(case: Case) {
    let (disk, root, runtime) = crate::full_disk::small(&case).await;
    let id = case.id_in(&root);
    let spec = spec(&case, "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done").await;
    start_on(&*runtime, &id, &spec).await.unwrap();
    eventually("it is up", || async { !runtime.get_logs(&id).await.unwrap().is_empty() }).await;
    let filler = disk.fill();
    let waiting = {
        let (runtime, id) = (runtime.clone(), id.clone());
        tokio::spawn(async move { runtime.wait_container(&id).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    soon("stop", runtime.stop_container(&id, Duration::from_secs(10))).await.unwrap();
    assert_eq!(soon("wait", waiting).await.unwrap(), Ok(7));
    until_nothing_is_left(&root, &id).await;
    std::fs::remove_file(filler).unwrap();
}

async fn its_volume_is_settled_though_another_container_has_its_name(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = Root { keeper: false, ..root.clone() }.open().await.unwrap();
    let id = case.id_on(&runtime);
    let mut removed = spec(&case, "echo kept > /data/file").await;
    removed.storage = vec![named("data", "/data")];
    start_on(&*runtime, &id, &removed).await.unwrap();
    until_nothing_is_left(&root, &id).await;
    start_on(&*runtime, &id, &case.script(IDLE).await).await.unwrap();
    let keeper = root.open().await.unwrap();
    eventually("the volume is durable, and nobody's", || async {
        let status = keeper.volume_status("data").await.unwrap();
        status.generation.is_some() && status.bytes_at_risk == 0 && status.owner.is_none()
    })
    .await;
    assert_eq!(keeper.container_state(&id).await, Ok(runtime_core::ContainerState::Running));
    runtime.remove_container(&id).await.unwrap();
}
