//! How containers end: codes, signals, the OOM killer.

use runtime_core::{ContainerState, WaitReason};

use crate::support::Case;

crate::tests![
    an_exit_code_is_the_programs_own,
    a_killed_init_is_128_plus_9_with_the_signals_name,
    a_code_above_128_that_the_program_chose_is_no_signal,
    an_init_out_of_memory_is_oom_killed,
    a_child_out_of_memory_is_counted_and_the_container_lives,
    a_sigkill_of_ours_is_no_oom_even_after_one,
    the_end_is_dated,
];

async fn an_exit_code_is_the_programs_own(case: Case) {
    for code in [0, 1, 2, 42, 126, 127, 128, 255] {
        let id = case.start(&case.script(&format!("exit {code}")).await).await;
        let outcome = case.finish(&id).await.outcome;
        assert_eq!((outcome.exit_code, outcome.reason, outcome.signal), (code, WaitReason::Exited, None));
        assert_eq!(case.runtime.wait_container(&id).await, Ok(code));
        assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Exited { code });
    }
}

async fn a_killed_init_is_128_plus_9_with_the_signals_name(case: Case) {
    let id = case.start(&case.spec(&["sleep", "3600"]).await).await;
    case.runtime.kill_container(&id, Some("KILL")).await.unwrap();
    let outcome = case.finish(&id).await.outcome;
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::Signal));
    assert_eq!(outcome.signal.as_deref(), Some("SIGKILL"));
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Exited { code: 137 });
}

async fn a_code_above_128_that_the_program_chose_is_no_signal(case: Case) {
    // The shell dies of nothing: its child does, and it passes the code on.
    let outcome = case.run(&case.script("sleep 3600 & kill -TERM $!; wait $!; exit $?").await).await.outcome;
    assert_eq!((outcome.exit_code, outcome.reason, outcome.signal), (143, WaitReason::Exited, None));
}

async fn an_init_out_of_memory_is_oom_killed(case: Case) {
    let mut spec = case.spec(&["tail", "/dev/zero"]).await;
    spec.resources.memory = Some("16Mi".parse().unwrap());
    let id = case.start(&spec).await;
    let outcome = case.finish(&id).await.outcome;
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::OomKilled));
    assert_eq!(outcome.signal.as_deref(), Some("SIGKILL"));
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Exited { code: 137 });
    let kills = case.runtime.stats_detailed(&id).await.unwrap().memory.oom_kills;
    assert!(kills >= Some(1), "{kills:?}");
}

async fn a_child_out_of_memory_is_counted_and_the_container_lives(case: Case) {
    let mut spec = case.script("tail /dev/zero; echo child $?; exit 3").await;
    spec.resources.memory = Some("16Mi".parse().unwrap());
    let id = case.start(&spec).await;
    let finished = case.finish(&id).await;
    assert_eq!(finished.stdout, ["child 137"]);
    assert_eq!((finished.outcome.exit_code, finished.outcome.reason), (3, WaitReason::Exited));
    let kills = case.runtime.stats_detailed(&id).await.unwrap().memory.oom_kills;
    assert!(kills >= Some(1), "{kills:?}");
}

async fn a_sigkill_of_ours_is_no_oom_even_after_one(case: Case) {
    let mut spec = case.script("tail /dev/zero; echo survived; while :; do sleep 1; done").await;
    spec.resources.memory = Some("16Mi".parse().unwrap());
    let id = case.start(&spec).await;
    case.until_logged(&id, "survived").await;
    case.runtime.kill_container(&id, None).await.unwrap();
    let outcome = case.finish(&id).await.outcome;
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::Signal));
}

async fn the_end_is_dated(case: Case) {
    let before = chrono::Utc::now();
    let outcome = case.run(&case.script("exit 0").await).await.outcome;
    let finished = outcome.finished_at.expect("a seen end has a time");
    assert!(before <= finished && finished <= chrono::Utc::now(), "{finished}");
}
