//! Create, start, stop, kill, remove, wait and state: one promise of the contract each.

use std::path::Path;
use std::time::{Duration, Instant};

use runtime_core::{AgentError, ContainerId, ContainerState, WaitReason};

use crate::support::Case;
use crate::support::case::{IDLE, soon, words};
use crate::support::pace::repetitions;

crate::tests![
    a_created_container_waits_and_has_no_pid,
    an_id_that_exists_is_refused_and_its_container_untouched,
    start_of_a_running_container_is_ok_at_once,
    an_exited_container_starts_again_with_its_root_and_logs,
    stop_sends_the_stop_signal,
    stop_sends_the_stop_signal_of_image_and_spec,
    stop_kills_what_ignores_the_signal_with_all_its_children,
    stop_may_be_repeated,
    stop_of_a_created_container_leaves_no_process,
    remove_kills_a_running_container_and_a_second_one_is_not_found,
    an_unknown_id_is_not_found_by_every_method,
    a_hundred_waiters_are_told_the_same,
    wait_before_start_waits_for_the_first_attempt,
    wait_after_the_end_answers_at_once,
    kill_knows_six_signals_in_every_spelling,
    kill_of_another_signal_is_invalid,
    kill_in_a_race_with_the_end_never_contradicts_itself,
    a_pid_is_the_inits_and_none_after_the_end,
    two_hundred_operations_at_once_do_not_disturb_each_other,
];

async fn a_created_container_waits_and_has_no_pid(case: Case) {
    let (id, spec) = (case.id(), case.script("echo ran").await);
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    case.runtime.create_container(&id, &spec).await.unwrap();
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Initializing);
    assert_eq!(case.runtime.get_container_pid(&id).await.unwrap(), None);
    assert!(case.runtime.get_logs(&id).await.unwrap().is_empty(), "nothing has run");
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(case.finish(&id).await.succeeded(), ["ran"]);
}

async fn an_id_that_exists_is_refused_and_its_container_untouched(case: Case) {
    let id = case.idle().await;
    let pid = case.runtime.get_container_pid(&id).await.unwrap();
    let other = case.script("exit 9").await;
    let error = case.runtime.create_container(&id, &other).await.unwrap_err();
    assert!(matches!(error, AgentError::CreateFailed { .. }), "{error:?}");
    assert_eq!(error.code(), "container.exists", "{error}");
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    assert_eq!(case.runtime.get_container_pid(&id).await.unwrap(), pid);
    assert_eq!(case.exec_ok(&id, "echo alive").await, "alive\n");
}

async fn start_of_a_running_container_is_ok_at_once(case: Case) {
    let id = case.idle().await;
    let pid = case.runtime.get_container_pid(&id).await.unwrap();
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(case.runtime.get_container_pid(&id).await.unwrap(), pid);
}

async fn an_exited_container_starts_again_with_its_root_and_logs(case: Case) {
    let id = case.start(&case.script("echo run >> /count; cat /count; exit $(wc -l < /count)").await).await;
    assert_eq!(case.finish(&id).await.outcome.exit_code, 1);
    case.runtime.start_container(&id).await.unwrap();
    let second = case.finish(&id).await;
    assert_eq!(second.outcome.exit_code, 2, "the second attempt's own code");
    assert_eq!(second.stdout, ["run", "run", "run"], "the first attempt's log is kept");
}

async fn stop_sends_the_stop_signal(case: Case) {
    let id =
        case.start(&case.script("trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.1; done").await).await;
    case.until_logged(&id, "up").await;
    case.runtime.stop_container(&id, Duration::from_secs(30)).await.unwrap();
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Exited { code: 7 });
    let finished = case.finish(&id).await;
    assert_eq!(finished.stdout, ["up", "asked"]);
    assert_eq!((finished.outcome.exit_code, finished.outcome.reason), (7, WaitReason::Exited));
}

async fn stop_sends_the_stop_signal_of_image_and_spec(case: Case) {
    let image = crate::support::image::Image::busybox().with("StopSignal", "SIGUSR1".into());
    let reference = case.push("usr1", &image).await;
    let traps = "trap 'exit 10' USR1; trap 'exit 12' USR2; trap 'exit 15' TERM; echo up; while :; do sleep 0.1; done";
    for (signal, code) in [(None, 10), (Some("SIGUSR2"), 12), (Some("15"), 15)] {
        let mut spec = case.script(traps).await;
        spec.image.name = reference.clone();
        spec.stop_signal = signal.map(str::to_owned);
        let id = case.start(&spec).await;
        case.until_logged(&id, "up").await;
        case.runtime.stop_container(&id, Duration::from_secs(30)).await.unwrap();
        assert_eq!(case.finish(&id).await.outcome.exit_code, code, "stop signal {signal:?}");
    }
}

async fn stop_kills_what_ignores_the_signal_with_all_its_children(case: Case) {
    let script = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo up; while :; do sleep 1; done";
    let id = case.start(&case.script(script).await).await;
    case.until_logged(&id, "up").await;
    let processes = case.host_pids(&id).await;
    assert!(processes.len() >= 2, "{processes:?}");
    let begin = Instant::now();
    case.runtime.stop_container(&id, Duration::from_secs(1)).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1), "it was given less than the time-out");
    for pid in processes {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} outlived stop");
    }
    let outcome = case.finish(&id).await.outcome;
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::Signal));
    assert_eq!(outcome.signal.as_deref(), Some("SIGKILL"));
    assert!(outcome.finished_at.is_some());
}

async fn stop_may_be_repeated(case: Case) {
    let id = case.idle().await;
    let (a, b) = tokio::join!(
        case.runtime.stop_container(&id, Duration::from_secs(30)),
        case.runtime.stop_container(&id, Duration::from_secs(30)),
    );
    a.unwrap();
    b.unwrap();
    case.runtime.stop_container(&id, Duration::from_secs(30)).await.unwrap();
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Exited { code: 0 });
}

async fn stop_of_a_created_container_leaves_no_process(case: Case) {
    let (id, spec) = (case.id(), case.script(IDLE).await);
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    case.runtime.create_container(&id, &spec).await.unwrap();
    soon("stop", case.runtime.stop_container(&id, Duration::from_secs(1))).await.unwrap();
    assert_eq!(case.runtime.get_container_pid(&id).await.unwrap(), None);
    assert!(case.cgroup_pids(&id).is_empty());
    // It did not fail: that is what was asked for.
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Exited { code: 137 });
    assert_eq!(case.runtime.wait_outcome(&id).await.unwrap().reason, WaitReason::Signal);
    case.runtime.remove_container(&id).await.unwrap();
}

async fn remove_kills_a_running_container_and_a_second_one_is_not_found(case: Case) {
    let id = case.start(&case.script("trap '' TERM; while :; do sleep 1; done").await).await;
    let processes = case.host_pids(&id).await;
    case.runtime.remove_container(&id).await.unwrap();
    for pid in processes {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} outlived remove");
    }
    let error = case.runtime.remove_container(&id).await.unwrap_err();
    assert!(matches!(error, AgentError::NotFound { .. }), "{error:?}");
}

async fn an_unknown_id_is_not_found_by_every_method(case: Case) {
    let id = ContainerId::new("nobody", 0);
    let r = &case.runtime;
    let command = words(&["true"]);
    let second = Duration::from_secs(1);
    let answers = [
        ("start_container", r.start_container(&id).await.err()),
        ("stop_container", r.stop_container(&id, second).await.err()),
        ("remove_container", r.remove_container(&id).await.err()),
        ("container_state", r.container_state(&id).await.err()),
        ("container_logs", r.container_logs(&id, 1).await.err()),
        ("get_logs", r.get_logs(&id).await.err()),
        ("exec", r.exec(&id, &command).await.err()),
        ("exec_stream", r.exec_stream(&id, &command).await.err()),
        ("get_container_stats", r.get_container_stats(&id).await.err()),
        ("wait_container", r.wait_container(&id).await.err()),
        ("wait_outcome", r.wait_outcome(&id).await.err()),
        ("get_container_pid", r.get_container_pid(&id).await.err()),
        ("get_container_ip", r.get_container_ip(&id).await.err()),
        ("get_container_port_override", r.get_container_port_override(&id).await.err()),
        ("sync_container_volumes", r.sync_container_volumes(&id).await.err()),
        ("kill_container", r.kill_container(&id, None).await.err()),
        ("inspect_detailed", r.inspect_detailed(&id).await.err()),
    ];
    for (method, error) in answers {
        assert!(matches!(error, Some(AgentError::NotFound { .. })), "{method}: {error:?}");
    }
}

async fn a_hundred_waiters_are_told_the_same(case: Case) {
    let id = case.start(&case.script("trap 'exit 23' TERM; echo up; while :; do sleep 0.1; done").await).await;
    case.until_logged(&id, "up").await;
    let waiters: Vec<_> = (0..100)
        .map(|_| {
            let (runtime, id) = (case.runtime.clone(), id.clone());
            tokio::spawn(async move { runtime.wait_container(&id).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    case.runtime.kill_container(&id, Some("TERM")).await.unwrap();
    for waiter in waiters {
        assert_eq!(soon("every waiter is told", waiter).await.unwrap(), Ok(23));
    }
}

async fn wait_before_start_waits_for_the_first_attempt(case: Case) {
    let (id, spec) = (case.id(), case.script("exit 5").await);
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    case.runtime.create_container(&id, &spec).await.unwrap();
    let waiter = {
        let (runtime, id) = (case.runtime.clone(), id.clone());
        tokio::spawn(async move { runtime.wait_container(&id).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiter.is_finished(), "it waited for nothing");
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(soon("the waiter is told", waiter).await.unwrap(), Ok(5));
}

async fn wait_after_the_end_answers_at_once(case: Case) {
    let id = case.start(&case.script("exit 3").await).await;
    let first = case.finish(&id).await.outcome;
    for _ in 0..3 {
        assert_eq!(soon("wait", case.runtime.wait_container(&id)).await, Ok(3));
        assert_eq!(soon("wait", case.runtime.wait_outcome(&id)).await.unwrap(), first);
    }
    let details = case.runtime.inspect_detailed(&id).await.unwrap();
    assert_eq!(details.exit_code, Some(3));
}

async fn kill_knows_six_signals_in_every_spelling(case: Case) {
    let traps = "for s in TERM INT HUP USR1 USR2; do trap \"echo $s\" $s; done; echo up; while :; do sleep 0.05; done";
    let id = case.start(&case.script(traps).await).await;
    case.until_logged(&id, "up").await;
    let spellings = ["TERM", "SIGTERM", "term", "sigterm", "Int", "SIGINT", "HUP", "sighup", "USR1", "SIGUSR1", "Usr2"];
    for spelling in spellings {
        let seen = case.runtime.get_logs(&id).await.unwrap().len();
        case.runtime.kill_container(&id, Some(spelling)).await.unwrap_or_else(|error| panic!("{spelling}: {error}"));
        let name = spelling.to_uppercase().trim_start_matches("SIG").to_owned();
        crate::support::case::eventually(&format!("the container sees {spelling}"), || async {
            let entries = case.runtime.get_logs(&id).await.unwrap();
            entries.len() == seen + 1 && entries.last().is_some_and(|entry| entry.message == name)
        })
        .await;
    }
    case.runtime.kill_container(&id, None).await.unwrap();
    let outcome = soon("it dies", case.runtime.wait_outcome(&id)).await.unwrap();
    assert_eq!(
        (outcome.exit_code, outcome.reason, outcome.signal.as_deref()),
        (137, WaitReason::Signal, Some("SIGKILL"))
    );
}

async fn kill_of_another_signal_is_invalid(case: Case) {
    let id = case.idle().await;
    for signal in ["STOP", "SIGCHLD", "0", "9", "", "KILLER", "SIG"] {
        let error = case.runtime.kill_container(&id, Some(signal)).await.unwrap_err();
        assert!(matches!(error, AgentError::InvalidSpec(_)), "{signal:?}: {error:?}");
    }
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Running);
}

async fn kill_in_a_race_with_the_end_never_contradicts_itself(case: Case) {
    let id = case.start(&case.script("sleep 0.02").await).await;
    for _ in 0..repetitions(30, 5) {
        let killers: Vec<_> = (0..4)
            .map(|_| {
                let (runtime, id) = (case.runtime.clone(), id.clone());
                tokio::spawn(async move {
                    loop {
                        // What the program ignores; the shell does so as the init of its namespace.
                        if let Err(error) = runtime.kill_container(&id, Some("USR1")).await {
                            return error;
                        }
                    }
                })
            })
            .collect();
        soon("it ends", case.runtime.wait_container(&id)).await.unwrap();
        for killer in killers {
            let error = soon("kill is answered", killer).await.unwrap();
            assert!(error.to_string().contains("not running (it is exited)"), "{error}");
        }
        case.runtime.start_container(&id).await.unwrap();
    }
}

async fn a_pid_is_the_inits_and_none_after_the_end(case: Case) {
    let id = case.start(&case.spec(&["sleep", "3600"]).await).await;
    let pid = case.runtime.get_container_pid(&id).await.unwrap().expect("a running container has a PID");
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(command, b"sleep\x003600\0");
    case.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    assert_eq!(case.runtime.get_container_pid(&id).await.unwrap(), None);
}

async fn two_hundred_operations_at_once_do_not_disturb_each_other(case: Case) {
    let spec = case.script("echo $HOSTNAME; exit 4").await;
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    let runs: Vec<_> = (0..50)
        .map(|number| {
            let (case, mut spec, id) = (case.clone(), spec.clone(), case.id());
            spec.hostname = Some(format!("host{number}"));
            spec.command.args = Some(words(&["sh", "-c", "hostname; exit 4"]));
            tokio::spawn(async move {
                case.runtime.create_container(&id, &spec).await.unwrap();
                case.runtime.start_container(&id).await.unwrap();
                let finished = case.finish(&id).await;
                case.runtime.remove_container(&id).await.unwrap();
                (number, finished)
            })
        })
        .collect();
    for run in runs {
        let (number, finished) = run.await.unwrap();
        assert_eq!(finished.stdout, [format!("host{number}")]);
        assert_eq!(finished.outcome.exit_code, 4);
    }
}
