//! A supervisor gets SIGKILL: it takes its container along, and the outcome is RuntimeError, never exit 0.

use std::sync::Arc;
use std::time::Duration;

use runtime_core::spec::StorageSpec;
use runtime_core::{ContainerId, ContainerState, Runtime, WaitReason};
use rustix::process::Signal;

use crate::support::Case;
use crate::support::berth::berth;
use crate::support::case::{IDLE, eventually, soon, start_on};
use crate::support::disk::Disk;
use crate::support::pace::patience;
use crate::support::process::{gone, kill, signal, status_line, status_line_if_there, supervisor};
use crate::support::root::Root;

crate::tests![
    the_container_dies_too_and_the_outcome_is_a_runtime_error,
    a_waiter_is_told,
    it_is_stopping_while_somebody_finds_it_lost,
    it_can_be_started_again,
    a_start_that_waits_for_its_end_goes_on,
    while_no_agent_runs_the_next_one_knows,
    a_created_container_of_a_dead_supervisor_is_failed,
    one_that_is_stopped_holds_up_no_other_container,
    one_that_is_stopped_hides_no_other_and_a_shutdown_stops_the_rest,
    a_container_of_a_stopped_one_can_be_removed,
    one_whose_processes_do_not_die_hides_no_other,
];

async fn assert_lost(runtime: &dyn Runtime, id: &ContainerId) {
    let outcome = soon("the outcome is known", runtime.wait_outcome(id)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::RuntimeError), "{outcome:?}");
    assert_eq!(runtime.wait_container(id).await, Ok(137));
    let state = runtime.container_state(id).await.unwrap();
    assert!(matches!(state, ContainerState::Failed { .. }), "{state:?}");
    assert_eq!(runtime.get_container_pid(id).await.unwrap(), None);
}

async fn the_container_dies_too_and_the_outcome_is_a_runtime_error(case: Case) {
    let id = case.start(&case.script("echo logged; trap '' TERM HUP; while :; do sleep 1; done").await).await;
    case.until_logged(&id, "logged").await;
    let processes = case.host_pids(&id).await;
    kill(supervisor(&*case.runtime, &id).await);
    eventually("the container's processes are gone", || async { processes.iter().all(|pid| gone(*pid)) }).await;
    assert_lost(&*case.runtime, &id).await;
    let lines: Vec<String> = case.runtime.get_logs(&id).await.unwrap().into_iter().map(|e| e.message).collect();
    assert_eq!(lines, ["logged"], "what was logged is kept");
}

async fn it_is_stopping_while_somebody_finds_it_lost(case: Case) {
    let root = case.root("root");
    let (runtime, id) = (root.open().await.unwrap(), case.id_in(&root));
    start_on(&*runtime, &id, &case.script(IDLE).await).await.unwrap();
    for attempt in ["first", "second"] {
        let supervisor = supervisor(&*runtime, &id).await;
        // As whoever is at it does.
        let lock = std::fs::File::open(root.run_dir.join("locks").join(id.to_string())).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        kill(supervisor);
        eventually("the supervisor is gone", || async { gone(supervisor) }).await;
        let state = runtime.container_state(&id).await.unwrap();
        assert_eq!(state, ContainerState::Stopping, "the {attempt} attempt");
        drop(lock);
        assert_lost(&*runtime, &id).await;
        runtime.start_container(&id).await.unwrap();
    }
    runtime.remove_container(&id).await.unwrap();
}

async fn a_waiter_is_told(case: Case) {
    let id = case.idle().await;
    let waiter = {
        let (runtime, id) = (case.runtime.clone(), id.clone());
        tokio::spawn(async move { runtime.wait_outcome(&id).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    kill(supervisor(&*case.runtime, &id).await);
    let outcome = soon("the waiter is told", waiter).await.unwrap().unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::RuntimeError));
}

async fn it_can_be_started_again(case: Case) {
    let id = case.start(&case.script("[ -e /second ] && exit 5; touch /second; exec sleep 3600").await).await;
    eventually("the first attempt is under way", || async { case.exec(&id, "ls /second").await.0 == 0 }).await;
    kill(supervisor(&*case.runtime, &id).await);
    assert_lost(&*case.runtime, &id).await;
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(case.finish(&id).await.outcome.exit_code, 5, "the same root");
}

async fn a_start_that_waits_for_its_end_goes_on(case: Case) {
    let script =
        "[ -e /second ] && exec sleep 3600; touch /second; trap '' TERM; echo ready; while :; do sleep 1; done";
    let id = case.start(&case.script(script).await).await;
    case.until_logged(&id, "ready").await;
    let killed = supervisor(&*case.runtime, &id).await;
    let (runtime, stopped) = (case.runtime.clone(), id.clone());
    let stop = tokio::spawn(async move { runtime.stop_container(&stopped, Duration::from_secs(600)).await });
    eventually("it is stopping", || async {
        case.runtime.container_state(&id).await.unwrap() == ContainerState::Stopping
    })
    .await;
    stop.abort();
    let (runtime, started) = (case.runtime.clone(), id.clone());
    let start = tokio::spawn(async move { runtime.start_container(&started).await });
    let lock = std::fs::File::open(case.suite.shared().await.root.run_dir.join("locks").join(id.to_string())).unwrap();
    eventually("the start has the lock", || async { lock.try_lock_shared().is_err() || lock.unlock().is_err() }).await;
    kill(killed);
    soon("it is started", start).await.unwrap().unwrap();
    assert_eq!(case.runtime.container_state(&id).await, Ok(ContainerState::Running));
    soon("it is removed", case.runtime.remove_container(&id)).await.unwrap();
}

async fn while_no_agent_runs_the_next_one_knows(case: Case) {
    let root = case.root("root");
    let mut agent = crate::support::agent::Agent::start(&root, &[]).await;
    let id = case.id_in(&root);
    let spec = Box::new(case.script(IDLE).await);
    agent.ask(&crate::support::agent::Request::Run { id: id.clone(), spec }).await.unwrap();
    let runtime = root.open().await.unwrap();
    let (pid, init) = (supervisor(&*runtime, &id).await, runtime.get_container_pid(&id).await.unwrap().unwrap());
    drop(runtime);
    agent.kill().await;
    kill(pid);
    let runtime = root.open().await.unwrap();
    assert_lost(&*runtime, &id).await;
    assert!(gone(init), "open left the container's init alive");
    runtime.remove_container(&id).await.unwrap();
}

async fn a_created_container_of_a_dead_supervisor_is_failed(case: Case) {
    let (id, spec) = (case.id(), case.script(IDLE).await);
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    case.runtime.create_container(&id, &spec).await.unwrap();
    let processes = case.cgroup_pids(&id);
    // The one that is number 1 in a PID namespace of its own waits to be started.
    let number_within = |pid: u32| status_line_if_there(pid, "NSpid:")?.split_whitespace().nth(1).map(str::to_owned);
    let init = processes.iter().find(|pid| number_within(**pid).as_deref() == Some("1"));
    kill(status_line(*init.expect("an init waits"), "PPid:").parse().unwrap());
    eventually("all of it is gone", || async { processes.iter().all(|pid| gone(*pid)) }).await;
    let state = case.runtime.container_state(&id).await.unwrap();
    assert!(matches!(state, ContainerState::Failed { .. }), "{state:?}");
    case.runtime.remove_container(&id).await.unwrap();
}

/// Two containers on `runtime`; the supervisor of the first is stopped, and comes along.
async fn one_held_of_two(case: &Case, runtime: &Arc<dyn Runtime>) -> (ContainerId, ContainerId, u32) {
    let (held, other) = (case.id_on(runtime), case.id_on(runtime));
    for id in [&held, &other] {
        start_on(&**runtime, id, &case.script(IDLE).await).await.unwrap();
    }
    let stopped = supervisor(&**runtime, &held).await;
    signal(stopped, Signal::STOP);
    (held, other, stopped)
}

async fn one_that_is_stopped_holds_up_no_other_container(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (held, other, stopped) = one_held_of_two(&case, &runtime).await;
    let second = within("open", Root { keeper: false, ..root.clone() }.open()).await.unwrap();
    within("stop", second.stop_container(&other, Duration::ZERO)).await.unwrap();
    let error = within("state", second.container_state(&held)).await.unwrap_err();
    assert!(error.to_string().contains("has not answered within"), "{error}");
    signal(stopped, Signal::CONT);
    for id in [&held, &other] {
        soon("remove", runtime.remove_container(id)).await.unwrap();
    }
}

async fn one_that_is_stopped_hides_no_other_and_a_shutdown_stops_the_rest(case: Case) {
    let root = Root { keeper: false, ..case.root("root") };
    let runtime = root.open().await.unwrap();
    let (held, other, stopped) = one_held_of_two(&case, &runtime).await;
    let (held, other) = (held.to_string(), other.to_string());
    let listed = within("ps", berth(&root, &["ps", "--format", "{{.id}}"])).await;
    assert_eq!((listed.code, listed.stdout.trim()), (1, other.as_str()), "{listed:?}");
    assert!(listed.stderr.contains(&held) && listed.stderr.contains("has not answered"), "{listed:?}");
    let logs = within("logs", berth(&root, &["logs", &held])).await;
    assert_eq!(logs.code, 0, "{logs:?}");
    let shut = tokio::time::timeout(patience(Duration::from_secs(150)), berth(&root, &["shutdown"])).await.unwrap();
    assert!(shut.code == 1 && shut.stdout.contains(&other) && shut.stderr.contains(&held), "{shut:?}");
    signal(stopped, Signal::CONT);
    for name in [&held, &other] {
        berth(&root, &["rm", "-f", name]).await.succeeded();
    }
}

/// Longer than a supervisor is waited for.
async fn within<T>(what: &str, call: impl Future<Output = T>) -> T {
    tokio::time::timeout(patience(Duration::from_secs(40)), call).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

async fn a_container_of_a_stopped_one_can_be_removed(case: Case) {
    let id = case.idle().await;
    let processes = case.host_pids(&id).await;
    let stopped = supervisor(&*case.runtime, &id).await;
    signal(stopped, Signal::STOP);
    case.runtime.remove_container(&id).await.unwrap();
    assert!(gone(stopped), "the supervisor is left");
    assert!(processes.iter().all(|pid| gone(*pid)), "the container's processes are left");
    case.runtime.container_state(&id).await.expect_err("the container is left");
}

/// It waits for a disk that does not answer.
async fn one_whose_processes_do_not_die_hides_no_other(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let place = case.suite.dir.path().join("a-disk-that-hangs-for-ever");
    let disk = Disk::mount(&place, 16 << 20);
    let mut spec = case.script("while :; do echo x > /disk/file; done").await;
    let source = place.display().to_string();
    spec.storage = vec![StorageSpec::Bind { source, target: "/disk".into(), readonly: false }];
    let (held, other) = (case.id_on(&runtime), case.id_on(&runtime));
    start_on(&*runtime, &held, &spec).await.unwrap();
    start_on(&*runtime, &other, &case.script(IDLE).await).await.unwrap();
    let init = runtime.get_container_pid(&held).await.unwrap().unwrap();
    eventually("it writes", || async { place.join("file").exists() }).await;
    disk.freeze();
    eventually("it waits for the disk", || async { status_line(init, "State:").starts_with('D') }).await;
    kill(supervisor(&*runtime, &held).await);
    let listed = within("list", runtime.list_containers()).await.unwrap();
    assert_eq!(listed.iter().map(|one| &one.id).collect::<Vec<_>>(), [&other]);
    disk.thaw();
    assert_lost(&*runtime, &held).await;
}
