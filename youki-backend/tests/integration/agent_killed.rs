//! The agent gets SIGKILL; a new one finds every container, its whole log and its exit code.

use std::time::Duration;

use runtime_core::{ContainerState, WaitReason};
use rustix::process::Signal;

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::case::{IDLE, eventually, finish_on, pids_beneath, soon, start_on, until_it_idles_on, words};
use crate::support::process::{gone, resident, signal};

crate::tests![
    a_running_container_runs_on_and_its_log_is_whole,
    a_container_that_ended_meanwhile_has_its_code,
    a_created_container_can_still_be_started,
    an_exec_dies_with_the_agent_that_asked_for_it,
    killed_in_the_middle_of_creates_leaves_each_whole_or_not_there,
    the_supervisor_of_a_create_that_was_cut_off_harms_no_later_container,
    a_lock_of_a_creator_that_lives_is_kept_and_one_of_a_dead_one_removed,
    two_agents_see_one_truth,
];

async fn a_running_container_runs_on_and_its_log_is_whole(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let mut spec = case.script("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done").await;
    spec.network.mode = runtime_core::spec::NetworkMode::Bridge;
    let id = case.id_in(&root);
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(spec) }).await.unwrap();
    // What is on disk, read by nobody.
    let logs = root.dir.join("containers").join(id.to_string()).join("logs");
    let bytes = || {
        let files = std::fs::read_dir(&logs).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum::<u64>()
    };
    eventually("it writes while its agent runs", || async { bytes() > 1_000 }).await;
    agent.kill().await;
    let before = bytes();
    eventually("it writes on", || async { bytes() > before + 1_000 }).await;

    let runtime = root.open().await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    let pid = runtime.get_container_pid(&id).await.unwrap().expect("it runs");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(runtime.get_container_ip(&id).await.unwrap().is_some());
    assert_eq!(runtime.exec(&id, &words(&["echo", "alive"])).await.unwrap().1, "alive\n");
    assert!(runtime.get_container_stats(&id).await.unwrap().cpu_usage_usec > 0);
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    let finished = finish_on(&*runtime, &id).await;
    let lines = finished.stdout.len();
    assert!(lines > 30, "{lines} lines");
    let expected: Vec<String> = (1..=lines).map(|number| format!("line {number}")).collect();
    assert_eq!(finished.stdout, expected, "a line was lost while no agent ran");
    runtime.remove_container(&id).await.unwrap();
}

async fn a_container_that_ended_meanwhile_has_its_code(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let with_code = case.id_in(&root);
    let by_signal = case.id_in(&root);
    let spec = case.script("sleep 0.5; echo last words; exit 42").await;
    agent.ask(&Request::Run { id: with_code.clone(), spec: Box::new(spec) }).await.unwrap();
    let mut spec = case.script("sleep 0.5; exec tail /dev/zero").await;
    spec.resources.memory = Some("16Mi".parse().unwrap());
    agent.ask(&Request::Run { id: by_signal.clone(), spec: Box::new(spec) }).await.unwrap();
    agent.kill().await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;

    let runtime = root.open().await.unwrap();
    let finished = soon("the end is known", finish_on(&*runtime, &with_code)).await;
    assert_eq!((finished.outcome.exit_code, finished.outcome.reason), (42, WaitReason::Exited));
    assert!(finished.outcome.finished_at.is_some());
    assert_eq!(finished.stdout, ["last words"]);
    assert_eq!(runtime.container_state(&with_code).await.unwrap(), ContainerState::Exited { code: 42 });
    let outcome = soon("the end is known", runtime.wait_outcome(&by_signal)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::OomKilled));
    for id in [with_code, by_signal] {
        runtime.remove_container(&id).await.unwrap();
    }
}

async fn a_created_container_can_still_be_started(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let id = case.id_in(&root);
    let spec = case.script("echo started by another; exit 3").await;
    agent.ask(&Request::Create { id: id.clone(), spec: Box::new(spec) }).await.unwrap();
    agent.kill().await;
    let runtime = root.open().await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Initializing);
    runtime.start_container(&id).await.unwrap();
    let finished = finish_on(&*runtime, &id).await;
    assert_eq!((finished.outcome.exit_code, finished.stdout), (3, vec!["started by another".to_owned()]));
    runtime.remove_container(&id).await.unwrap();
}

async fn an_exec_dies_with_the_agent_that_asked_for_it(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let id = case.id_in(&root);
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(case.script(IDLE).await) }).await.unwrap();
    agent
        .send(&Request::Exec { id: id.clone(), command: words(&["sh", "-c", "trap '' TERM HUP; sleep 3600; true"]) })
        .await;
    let processes = || root.cgroups_of(&id).iter().map(|dir| pids_beneath(dir).len()).max().unwrap_or_default();
    // The init and its sleep, then the exec's shell and its sleep.
    eventually("the exec runs", || async { processes() >= 4 }).await;
    agent.kill().await;
    eventually("the exec is gone", || async { processes() == 2 }).await;
    let runtime = root.open().await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    runtime.remove_container(&id).await.unwrap();
}

async fn killed_in_the_middle_of_creates_leaves_each_whole_or_not_there(case: Case) {
    let root = case.root("root");
    let spec = case.script("echo whole; exit 0").await;
    for round in 0..10_u64 {
        let mut agent = Agent::start(&root, &[]).await;
        agent.ask(&Request::Pull { image: spec.image.name.clone(), auth: None }).await.unwrap();
        let ids: Vec<_> = (0..4).map(|_| case.id_in(&root)).collect();
        for id in &ids {
            agent.send(&Request::Run { id: id.clone(), spec: Box::new(spec.clone()) }).await;
        }
        // From before the first create to after the last.
        tokio::time::sleep(Duration::from_millis(round * 12)).await;
        agent.kill().await;
        let runtime = root.open().await.unwrap();
        for id in &ids {
            // The supervisor goes on without its creator.
            eventually("it is pending no more", || async {
                runtime.container_state(id).await != Ok(ContainerState::Pending)
            })
            .await;
            match runtime.container_state(id).await {
                Ok(ContainerState::Initializing) => {
                    runtime.start_container(id).await.unwrap();
                    assert_eq!(soon("it runs", runtime.wait_container(id)).await, Ok(0), "{id}");
                }
                Ok(ContainerState::Failed { .. }) => {}
                Ok(_) => assert_eq!(soon("it runs", runtime.wait_container(id)).await, Ok(0), "{id}"),
                // Its name is free for the next.
                Err(runtime_core::AgentError::NotFound { .. }) => runtime.create_container(id, &spec).await.unwrap(),
                Err(error) => panic!("{id}: {error}"),
            }
            runtime.remove_container(id).await.unwrap();
        }
    }
}

async fn the_supervisor_of_a_create_that_was_cut_off_harms_no_later_container(case: Case) {
    let root = case.root("root");
    let spec = case.script(IDLE).await;
    for _ in 0..20 {
        let mut agent = Agent::start(&root, &[]).await;
        agent.ask(&Request::Pull { image: spec.image.name.clone(), auth: None }).await.unwrap();
        let id = case.id_in(&root);
        let created = root.dir.join("containers").join(id.to_string()).join("created");
        agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec.clone()) }).await;
        let building = loop {
            if let Some(supervisor) = resident(&id) {
                break supervisor;
            }
            tokio::task::yield_now().await;
        };
        signal(building, Signal::STOP);
        agent.kill().await;
        if created.exists() {
            // It was faster.
            signal(building, Signal::CONT);
            continue;
        }
        let runtime = root.open().await.unwrap();
        start_on(&*runtime, &id, &spec).await.unwrap();
        // Now it would see that its agent is dead, and do away with what it was building.
        if !gone(building) {
            signal(building, Signal::CONT);
        }
        eventually("the earlier supervisor is gone", || async { gone(building) }).await;
        assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running, "it took the later one along");
        assert_eq!(runtime.exec(&id, &words(&["echo", "alive"])).await.unwrap().1, "alive\n");
        runtime.remove_container(&id).await.unwrap();
        return;
    }
    panic!("no create could be caught while its supervisor builds");
}

async fn a_lock_of_a_creator_that_lives_is_kept_and_one_of_a_dead_one_removed(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let spec = case.script("exit 6").await;
    agent.ask(&Request::Pull { image: spec.image.name.clone(), auth: None }).await.unwrap();
    let store = std::fs::File::open(root.dir.join("layers/store.lock")).unwrap();
    // A create waits for whoever removes images; a pull would, too.
    let about_to_be_created = async |agent: &mut Agent| {
        let id = case.id_in(&root);
        store.lock().unwrap();
        agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec.clone()) }).await;
        let lock = root.run_dir.join("locks").join(id.to_string());
        eventually("it is about to be created", || async { lock.exists() }).await;
        (id, lock)
    };
    let (id, lock) = about_to_be_created(&mut agent).await;
    let runtime = root.open().await.unwrap();
    assert!(lock.exists(), "the lock of one that is being created was removed");
    store.unlock().unwrap();
    agent.answer().await.unwrap();
    runtime.start_container(&id).await.unwrap();
    assert_eq!(soon("it runs", runtime.wait_container(&id)).await, Ok(6));
    drop(runtime);

    let (id, lock) = about_to_be_created(&mut agent).await;
    agent.kill().await;
    store.unlock().unwrap();
    let runtime = root.open().await.unwrap();
    assert!(!lock.exists(), "the lock of one that was never created stays");
    runtime.create_container(&id, &spec).await.unwrap();
}

async fn two_agents_see_one_truth(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let mut agent = Agent::start(&crate::support::root::Root { keeper: false, ..root.clone() }, &[]).await;
    let id = case.id_on(&runtime);
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(case.script(IDLE).await) }).await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    until_it_idles_on(&root, &id).await;
    let waiter = {
        let (runtime, id) = (runtime.clone(), id.clone());
        tokio::spawn(async move { runtime.wait_container(&id).await })
    };
    agent.ask(&Request::Stop { id: id.clone(), timeout: Duration::from_secs(10) }).await.unwrap();
    assert_eq!(soon("the other process is told", waiter).await.unwrap(), Ok(0));
    runtime.start_container(&id).await.unwrap();
    agent.ask(&Request::Start { id: id.clone() }).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    let error = agent.ask(&Request::Stop { id, timeout: Duration::ZERO }).await.unwrap_err();
    assert!(error.contains("not found"), "{error}");
}
