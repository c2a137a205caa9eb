//! Restart policies while others die: the agent, the supervisor at any step, and a disk that is full.

use std::time::Duration;

use runtime_core::spec::RestartKind;
use runtime_core::{ContainerState, WaitReason};

use crate::restarts::policy;
use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::case::{eventually, finish_on, seen_root, soon};
use crate::support::process::{gone, kill, resident};
use crate::support::root::Root;

crate::tests![
    policies_are_carried_out_while_no_agent_runs,
    a_policy_that_was_set_later_is_carried_out_while_no_agent_runs,
    a_supervisor_killed_between_two_attempts_leaves_the_last_end_on_record,
    a_supervisor_killed_at_any_step_leaves_nothing_running,
];

async fn policies_are_carried_out_while_no_agent_runs(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let id = case.id_in(&root);
    let mut spec = case.script("echo x >> /n; n=$(wc -l < /n); echo $n; sleep 0.1; [ $n = 8 ]").await;
    spec.restart_policy = policy(RestartKind::OnFailure, None, 1);
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(spec) }).await.unwrap();
    agent.kill().await;
    tokio::time::sleep(Duration::from_millis(700)).await;

    let runtime = root.open().await.unwrap();
    eventually("it has succeeded", || async {
        runtime.container_state(&id).await.unwrap() == ContainerState::Exited { code: 0 }
    })
    .await;
    let finished = finish_on(&*runtime, &id).await;
    assert_eq!(finished.stdout, (1..=8).map(|number| number.to_string()).collect::<Vec<_>>());
    runtime.remove_container(&id).await.unwrap();
}

async fn a_policy_that_was_set_later_is_carried_out_while_no_agent_runs(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let id = case.id_in(&root);
    let script = "echo x >> /n; n=$(wc -l < /n); echo $n; until [ -e /go ]; do sleep 0.05; done; [ $n = 3 ]";
    let spec = case.script(script).await;
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(spec) }).await.unwrap();
    case.berth_on(&root, &["update", "--restart", "on-failure", &id.to_string()]).await.succeeded();
    let looking = Root { keeper: false, ..root.clone() }.open().await.unwrap();
    let go = seen_root(&*looking, &id).await.join("go");
    drop(looking);
    agent.kill().await;
    std::fs::write(go, "").unwrap();

    let runtime = root.open().await.unwrap();
    eventually("it has succeeded", || async {
        runtime.container_state(&id).await.unwrap() == ContainerState::Exited { code: 0 }
    })
    .await;
    assert_eq!(finish_on(&*runtime, &id).await.stdout, ["1", "2", "3"]);
    runtime.remove_container(&id).await.unwrap();
}

async fn a_supervisor_killed_between_two_attempts_leaves_the_last_end_on_record(case: Case) {
    let mut spec = case.script("[ -e /second ] && exit 5; touch /second; exit 3").await;
    spec.restart_policy = policy(RestartKind::OnFailure, None, 3_600_000);
    let id = case.start(&spec).await;
    eventually("it waits", || async {
        case.runtime.container_state(&id).await.unwrap() == ContainerState::Initializing
            && case.runtime.wait_container(&id).await == Ok(3)
    })
    .await;
    let supervisor = resident(&id).expect("it has a supervisor");
    kill(supervisor);
    eventually("it is gone", || async { gone(supervisor) }).await;
    let state = case.runtime.container_state(&id).await.unwrap();
    assert!(matches!(&state, ContainerState::Failed { reason } if reason.contains("supervisor")), "{state:?}");
    let outcome = soon("wait", case.runtime.wait_outcome(&id)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (3, WaitReason::Exited), "what was told stays true");
    soon("stop", case.runtime.stop_container(&id, Duration::ZERO)).await.unwrap();
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(case.runtime.wait_container(&id).await, Ok(5), "the same root");
}

async fn a_supervisor_killed_at_any_step_leaves_nothing_running(case: Case) {
    let mut spec = case.script("exit 1").await;
    spec.restart_policy = policy(RestartKind::Always, None, 0);
    let id = case.start(&spec).await;
    for round in 0..40_u64 {
        // An attempt takes some 15 ms from end to end.
        tokio::time::sleep(Duration::from_micros(1_500 * round)).await;
        let supervisor = resident(&id).expect("it has a supervisor");
        kill(supervisor);
        eventually("it is gone", || async { gone(supervisor) }).await;
        // Pending while another process that opens the root looks at it.
        eventually("it is lost", || async {
            matches!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Failed { .. })
        })
        .await;
        let code = soon("wait", case.runtime.wait_container(&id)).await.unwrap();
        assert!(code == 1 || code == 137, "round {round}: {code}");
        let pids = case.cgroup_pids(&id);
        assert!(pids.iter().all(|pid| gone(*pid)), "round {round}: {pids:?} are left");
        soon("start", case.runtime.start_container(&id)).await.unwrap();
    }
    soon("stop", case.runtime.stop_container(&id, Duration::ZERO)).await.unwrap();
    assert!(case.cgroup_pids(&id).is_empty());
}
