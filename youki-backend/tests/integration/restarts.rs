//! Restart policies: which ends are followed by another attempt, when, and what of the container stays.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use runtime_core::spec::{NetworkMode, RestartKind, RestartPolicy};
use runtime_core::{ContainerId, ContainerState, Event, EventKind, EventsOptions, Runtime, ServiceSpec, WaitReason};
use serde_json::Value;

use crate::support::Case;
use crate::support::case::{IDLE, eventually, shortly, soon, words};
use crate::support::pace::{patience, repetitions};
use crate::support::process::{kill, private_dirty_bytes, resident};

crate::tests![
    what_fails_is_restarted_in_its_root_network_and_log_until_it_succeeds,
    it_is_given_up_after_so_many_restarts,
    what_ends_is_always_restarted_until_it_is_stopped_and_can_be_started_again,
    between_two_attempts_it_is_initializing_and_stop_kill_and_remove_are_done_at_once,
    a_start_between_two_attempts_does_not_wait,
    wait_returns_at_the_end_of_the_attempt_that_is_current,
    signals_and_kills_for_want_of_memory_are_failures,
    what_was_told_to_end_is_not_restarted,
    a_program_that_is_gone_by_then_is_a_failed_attempt,
    a_first_start_that_fails_is_told_and_not_tried_again,
    pauses_are_doubled,
    limits_that_were_changed_hold_for_the_next_attempt,
    limits_that_are_changed_while_it_is_built_again_hold,
    a_policy_that_is_set_later_holds_for_the_next_end,
    in_the_pause_another_policy_may_end_it,
    a_container_with_a_terminal_gets_a_new_one,
    a_terminal_that_nobody_has_open_for_a_while_is_read_on,
    what_was_not_started_takes_no_signal_but_kill_and_keeps_its_policy,
    a_tiny_init_comes_again_once_its_executable_was_replaced,
    its_volumes_stay_its_own_and_are_synced_at_the_last_end,
    hundreds_of_restarts_leave_nothing_behind,
    a_policy_that_cannot_be_is_refused,
];

pub fn policy(kind: RestartKind, max_attempts: Option<u32>, delay_ms: u64) -> RestartPolicy {
    RestartPolicy { kind, max_attempts, delay: Some(Duration::from_millis(delay_ms)) }
}

/// Counts its attempts in its root, as `$n`.
const COUNTED: &str = "n=$(($(cat /n 2>/dev/null || echo 0)+1)); echo $n > /n;";

async fn counted(case: &Case, script: &str, restart_policy: RestartPolicy) -> ServiceSpec {
    ServiceSpec { restart_policy, ..case.script(&format!("{COUNTED} {script}")).await }
}

async fn until_state(runtime: &dyn Runtime, id: &ContainerId, state: &ContainerState) {
    eventually(&format!("{id} is {state:?}"), || async { runtime.container_state(id).await.unwrap() == *state }).await;
}

impl Case {
    async fn inspected(&self, id: &ContainerId) -> Value {
        self.berth(&["inspect", "--json", &id.to_string()]).await.json()[0].take()
    }
}

/// Exit codes of the attempts that others followed.
fn earlier_codes(inspected: &Value) -> Vec<i64> {
    let all = inspected["earlier_attempts"].as_array().unwrap();
    all.iter().map(|one| one["outcome"]["exit_code"].as_i64().unwrap()).collect()
}

async fn what_fails_is_restarted_in_its_root_network_and_log_until_it_succeeds(case: Case) {
    let script = "echo $n $(hostname -i); [ $n = 3 ]";
    let mut spec = counted(&case, script, policy(RestartKind::OnFailure, None, 10)).await;
    spec.network.mode = NetworkMode::Bridge;
    let id = case.start(&spec).await;
    until_state(&*case.runtime, &id, &ContainerState::Exited { code: 0 }).await;
    let ip = case.runtime.get_container_ip(&id).await.unwrap().expect("it has an address");
    let lines: Vec<String> = case.runtime.get_logs(&id).await.unwrap().into_iter().map(|e| e.message).collect();
    assert_eq!(lines, [format!("1 {ip}"), format!("2 {ip}"), format!("3 {ip}")]);

    let inspected = case.inspected(&id).await;
    assert_eq!((&inspected["attempt"], &inspected["restarts"]), (&Value::from(3), &Value::from(2)));
    assert_eq!(earlier_codes(&inspected), [1, 1]);
    let told = async || {
        let all: Vec<Event> =
            case.runtime.events(&EventsOptions::default()).await.unwrap().try_collect().await.unwrap();
        let of_it = all.into_iter().filter(|event| event.container.as_deref() == Some(&id.to_string()));
        of_it.map(|event| (event.kind, event.attempt)).collect::<Vec<(EventKind, Option<u32>)>>()
    };
    let (start, exit, restart) = (EventKind::Start, EventKind::Exit, EventKind::Restart);
    let mut expected = vec![(EventKind::Create, None), (start, Some(1)), (exit, Some(1))];
    for attempt in [2, 3] {
        expected.extend([(restart, Some(attempt)), (start, Some(attempt)), (exit, Some(attempt))]);
    }
    // Told once it is on record.
    eventually("the last end is told", || async { told().await.len() >= expected.len() }).await;
    assert_eq!(told().await, expected);
}

async fn it_is_given_up_after_so_many_restarts(case: Case) {
    let id = case.start(&counted(&case, "exit $((4+n))", policy(RestartKind::OnFailure, Some(2), 1)).await).await;
    until_state(&*case.runtime, &id, &ContainerState::Exited { code: 7 }).await;
    assert_eq!(earlier_codes(&case.inspected(&id).await), [5, 6]);
    // By hand, it may fail as often again.
    case.runtime.start_container(&id).await.unwrap();
    until_state(&*case.runtime, &id, &ContainerState::Exited { code: 10 }).await;
    let inspected = case.inspected(&id).await;
    assert_eq!((&inspected["attempt"], &inspected["restarts"]), (&Value::from(6), &Value::from(2)));
    assert_eq!(earlier_codes(&inspected), [5, 6, 7, 8, 9]);
}

async fn what_ends_is_always_restarted_until_it_is_stopped_and_can_be_started_again(case: Case) {
    for kind in [RestartKind::Always, RestartKind::UnlessStopped] {
        let id = case.start(&counted(&case, "echo $n; sleep 0.05", policy(kind, None, 1)).await).await;
        case.until_logged(&id, "3").await;
        soon("stop", case.runtime.stop_container(&id, Duration::ZERO)).await.unwrap();
        let state = case.runtime.container_state(&id).await.unwrap();
        assert!(matches!(state, ContainerState::Exited { .. }), "{state:?}");
        let attempt = case.inspected(&id).await["attempt"].as_u64().unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(case.inspected(&id).await["attempt"].as_u64(), Some(attempt), "{kind:?}: it was restarted");
        assert!(case.cgroup_pids(&id).is_empty());
        case.runtime.start_container(&id).await.unwrap();
        case.until_logged(&id, &(attempt + 2).to_string()).await;
    }
}

async fn between_two_attempts_it_is_initializing_and_stop_kill_and_remove_are_done_at_once(case: Case) {
    let slow = policy(RestartKind::Always, None, 3_600_000);
    let runtime = &*case.runtime;
    for round in 0..3 {
        let spec = ServiceSpec { restart_policy: slow.clone(), ..case.script("exit 3").await };
        let id = case.start(&spec).await;
        until_state(runtime, &id, &ContainerState::Initializing).await;
        let inspected = case.inspected(&id).await;
        assert_eq!((&inspected["state"], &inspected["exit_code"]), (&"initializing".into(), &3.into()));
        assert_eq!(runtime.get_container_pid(&id).await.unwrap(), None);
        assert_eq!(soon("wait", runtime.wait_container(&id)).await, Ok(3), "the attempt that is current is over");
        assert!(runtime.get_container_stats(&id).await.unwrap().cpu_usage_usec > 0, "its last stats");
        let error = runtime.exec(&id, &words(&["true"])).await.unwrap_err();
        assert!(error.to_string().contains("initializing"), "{error}");
        let refused = case.berth(&["rm", &id.to_string()]).await;
        assert_eq!(refused.code, 1, "it is not over: {refused:?}");
        let error = runtime.kill_container(&id, Some("HUP")).await.unwrap_err();
        assert!(error.to_string().contains("restarted"), "{error}");
        let begun = Instant::now();
        match round {
            0 => runtime.stop_container(&id, Duration::from_secs(10)).await.unwrap(),
            1 => runtime.kill_container(&id, None).await.unwrap(),
            _ => {
                runtime.remove_container(&id).await.unwrap();
                assert!(runtime.container_state(&id).await.is_err());
                continue;
            }
        }
        until_state(runtime, &id, &ContainerState::Exited { code: 3 }).await;
        assert!(begun.elapsed() < shortly(), "{:?}", begun.elapsed());
        assert_eq!(case.inspected(&id).await["attempt"], 1);
    }
}

async fn a_start_between_two_attempts_does_not_wait(case: Case) {
    let slow = policy(RestartKind::OnFailure, None, 3_600_000);
    let id = case.start(&counted(&case, "[ $n = 1 ] && exit 3; exec sleep 3600", slow).await).await;
    until_state(&*case.runtime, &id, &ContainerState::Initializing).await;
    soon("start", case.runtime.start_container(&id)).await.unwrap();
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    let inspected = case.inspected(&id).await;
    assert_eq!((&inspected["attempt"], &inspected["restarts"]), (&Value::from(2), &Value::from(0)), "not a restart");
}

async fn wait_returns_at_the_end_of_the_attempt_that_is_current(case: Case) {
    let script = "echo up $n; while [ ! -e /end$n ]; do sleep 0.01; done; exit $n";
    let id = case.start(&counted(&case, script, policy(RestartKind::Always, None, 50)).await).await;
    let supervisor = resident(&id).expect("it has a supervisor");
    for number in 1..=4 {
        case.until_logged(&id, &format!("up {number}")).await;
        let open = || std::fs::read_dir(format!("/proc/{supervisor}/fd")).map_or(0, Iterator::count);
        // Who asks it something else comes and goes meanwhile.
        let mut before = open();
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            before = before.min(open());
        }
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let (runtime, id) = (case.runtime.clone(), id.clone());
                tokio::spawn(async move { runtime.wait_container(&id).await })
            })
            .collect();
        eventually("all of them are with the supervisor", || async { open() >= before + 10 }).await;
        // Its own end may be that of the container, which it brings about.
        case.exec(&id, &format!("touch /end{number}")).await;
        for waiter in waiting {
            assert_eq!(soon("it is told", waiter).await.unwrap(), Ok(number));
        }
    }
}

async fn signals_and_kills_for_want_of_memory_are_failures(case: Case) {
    let script = "echo up $n; case $n in 1) exec sleep 3600;; 2) exec tail /dev/zero;; *) exit 0;; esac";
    let mut spec = counted(&case, script, policy(RestartKind::OnFailure, None, 1)).await;
    spec.resources.memory = Some("16Mi".parse().unwrap());
    let id = case.start(&spec).await;
    case.until_logged(&id, "up 1").await;
    // Not through the runtime: nobody asked for it.
    kill(case.runtime.get_container_pid(&id).await.unwrap().unwrap());
    until_state(&*case.runtime, &id, &ContainerState::Exited { code: 0 }).await;
    let inspected = case.inspected(&id).await;
    assert_eq!(earlier_codes(&inspected), [137, 137]);
    let reasons: Vec<&Value> = (0..2).map(|index| &inspected["earlier_attempts"][index]["outcome"]["reason"]).collect();
    assert_eq!(reasons, ["Signal", "OomKilled"], "the kernel's kill is of the attempt in which it was");
    let outcome = case.runtime.wait_outcome(&id).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (0, WaitReason::Exited));
}

async fn what_was_told_to_end_is_not_restarted(case: Case) {
    let always = || policy(RestartKind::Always, None, 1);
    for (word, restarted) in [("KILL", false), ("TERM", false), ("INT", false), ("HUP", true), ("USR1", true)] {
        let script = format!("trap 'exit 9' TERM INT HUP USR1; echo up $n; [ $n = 2 ] && {IDLE}; sleep 3600 & wait");
        let id = case.start(&counted(&case, &script, always()).await).await;
        case.until_logged(&id, "up 1").await;
        case.runtime.kill_container(&id, Some(word)).await.unwrap();
        if restarted {
            case.until_logged(&id, "up 2").await;
        } else {
            let code = if word == "KILL" { 137 } else { 9 };
            until_state(&*case.runtime, &id, &ContainerState::Exited { code }).await;
        }
    }
}

async fn a_program_that_is_gone_by_then_is_a_failed_attempt(case: Case) {
    let mut spec = case.script("rm /bin/sh; exit 1").await;
    spec.restart_policy = policy(RestartKind::OnFailure, Some(2), 1);
    let id = case.start(&spec).await;
    eventually("it is given up", || async {
        matches!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Failed { .. })
    })
    .await;
    let outcome = case.runtime.wait_outcome(&id).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (127, WaitReason::RuntimeError));
    let inspected = case.inspected(&id).await;
    assert_eq!(earlier_codes(&inspected), [1, 127]);
    assert_eq!(inspected["restarts"], 2);
}

async fn a_first_start_that_fails_is_told_and_not_tried_again(case: Case) {
    let mut spec = case.spec(&["/no/such/program"]).await;
    spec.restart_policy = policy(RestartKind::Always, None, 1);
    let id = case.id();
    let error = case.try_start(&id, &spec).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let inspected = case.inspected(&id).await;
    assert_eq!((&inspected["attempt"], &inspected["state"]), (&Value::from(1), &"failed".into()));
    assert_eq!(soon("wait", case.runtime.wait_container(&id)).await, Ok(127));
}

async fn pauses_are_doubled(case: Case) {
    let mut spec = case.script("exit 1").await;
    spec.restart_policy = RestartPolicy { kind: RestartKind::OnFailure, max_attempts: Some(4), delay: None };
    let id = case.start(&spec).await;
    until_state(&*case.runtime, &id, &ContainerState::Exited { code: 1 }).await;
    let inspected = case.inspected(&id).await;
    let times: Vec<chrono::DateTime<chrono::Utc>> = (0..4)
        .flat_map(|index| {
            let one = &inspected["earlier_attempts"][index];
            [one["started_at"].clone(), one["outcome"]["finished_at"].clone()]
        })
        .chain([inspected["started_at"].clone()])
        .map(|time| time.as_str().unwrap().parse().unwrap())
        .collect();
    for (index, least) in [100, 200, 400, 800].into_iter().enumerate() {
        let pause = (times[2 * index + 2] - times[2 * index + 1]).num_milliseconds();
        assert!(pause >= least, "pause {index} was {pause} ms");
        assert!(pause < least + shortly().as_millis() as i64, "pause {index} was {pause} ms");
    }
}

async fn limits_that_were_changed_hold_for_the_next_attempt(case: Case) {
    // Time for an update; the second pause is twice as long.
    let pause = patience(Duration::from_secs(2)).as_millis() as u64;
    let script = "echo up $n; while [ ! -e /end$n ]; do sleep 0.01; done; exit 1";
    let mut spec = counted(&case, script, policy(RestartKind::Always, None, pause)).await;
    // Too few for what builds a container, were it to count.
    spec.resources.pids = Some(3);
    let id = case.start(&spec).await;
    let limit = || case.cgroup_file(&id, "pids", &["pids.max"]).trim().to_owned();
    case.until_logged(&id, "up 1").await;
    assert_eq!(limit(), "3");
    case.berth(&["update", "--pids-limit", "40", &id.to_string()]).await.succeeded();
    assert_eq!(limit(), "40");
    case.exec(&id, "touch /end1").await;
    case.until_logged(&id, "up 2").await;
    assert_eq!(limit(), "40");
    case.exec(&id, "touch /end2").await;
    until_state(&*case.runtime, &id, &ContainerState::Initializing).await;
    case.berth(&["update", "--pids-limit", "50", &id.to_string()]).await.succeeded();
    case.until_logged(&id, "up 3").await;
    assert_eq!(limit(), "50");
}

async fn limits_that_are_changed_while_it_is_built_again_hold(case: Case) {
    let pause = patience(Duration::from_secs(2)).as_millis() as u64;
    let script = "echo up $n; [ $n -gt 1 ] || exit 1; while :; do sleep 1; done";
    let mut spec = counted(&case, script, policy(RestartKind::Always, None, pause)).await;
    spec.resources.pids = Some(30);
    let id = case.start(&spec).await;
    until_state(&*case.runtime, &id, &ContainerState::Initializing).await;
    // Who builds it has read its limits by the time that it joins a frozen cgroup.
    let (mut frozen, mut thawed) = (Vec::new(), "");
    for dir in case.make_cgroups(&id) {
        for (file, freeze, thaw) in [("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")] {
            if dir.join(file).exists() && std::fs::write(dir.join(file), freeze).is_ok() {
                (frozen, thawed) = ([frozen, vec![dir.join(file)]].concat(), thaw);
            }
        }
    }
    let [frozen] = &frozen[..] else { panic!("frozen: {frozen:?}") };
    let joined = || !std::fs::read_to_string(frozen.with_file_name("cgroup.procs")).unwrap_or_default().is_empty();
    eventually("the helper is frozen", || async { joined() }).await;
    case.berth(&["update", "--pids-limit", "40", "-m", "64m", &id.to_string()]).await.succeeded();
    std::fs::write(frozen, thawed).unwrap();
    case.until_logged(&id, "up 2").await;
    assert_eq!(case.cgroup_file(&id, "pids", &["pids.max"]).trim(), "40");
    let memory = case.cgroup_file(&id, "memory", &["memory.limit_in_bytes", "memory.max"]);
    assert_eq!(memory.trim(), (64 << 20).to_string());
}

async fn a_policy_that_is_set_later_holds_for_the_next_end(case: Case) {
    let script = "echo up $n; while [ ! -e /end$n ]; do sleep 0.01; done; exit 1";
    let id = case.start(&counted(&case, script, RestartPolicy::default()).await).await;
    let name = id.to_string();
    case.until_logged(&id, "up 1").await;
    // What is refused changes nothing, neither of the limits nor of the policy.
    let said = case.berth(&["update", "--restart", "always", "--cpuset-cpus", "4000", &name]).await;
    assert_eq!(said.code, 2, "{said:?}");
    let policy_of = async || case.inspected(&id).await["spec"]["restart_policy"].clone();
    assert_eq!(policy_of().await["kind"], "no");
    for bad in ["sometimes", "always:3", "on-failure:-1", ""] {
        assert_eq!(case.berth(&["update", "--restart", bad, &name]).await.code, 2, "{bad:?}");
    }

    case.berth(&["update", "--restart", "on-failure:1", &name]).await.succeeded();
    assert_eq!((&policy_of().await["kind"], &policy_of().await["max_attempts"]), (&"on_failure".into(), &1.into()));
    case.exec(&id, "touch /end1").await;
    case.until_logged(&id, "up 2").await;
    // Of the one restart that it may have, it had one: with no limit it may have another.
    case.berth(&["update", "--restart", "always", &name]).await.succeeded();
    case.exec(&id, "touch /end2").await;
    case.until_logged(&id, "up 3").await;
    case.berth(&["update", "--restart", "no", &name]).await.succeeded();
    case.exec(&id, "touch /end3").await;
    until_state(&*case.runtime, &id, &ContainerState::Exited { code: 1 }).await;

    // One that has ended gets it with its next start.
    case.berth(&["update", "--restart", "always", &name]).await.succeeded();
    assert_eq!(case.inspected(&id).await["state"], "exited");
    case.runtime.start_container(&id).await.unwrap();
    case.exec(&id, "touch /end4").await;
    case.until_logged(&id, "up 5").await;

    let mut removed = case.script(IDLE).await;
    removed.remove_on_exit = true;
    let id = case.start(&removed).await;
    let said = case.berth(&["update", "--restart", "always", &id.to_string()]).await;
    assert!(said.code == 2 && said.stderr.contains("--restart: it is to be removed on exit"), "{said:?}");
}

async fn in_the_pause_another_policy_may_end_it(case: Case) {
    for (policy_text, code, ends) in [("no", 3, true), ("on-failure", 0, true), ("on-failure", 3, false)] {
        let mut spec = case.script(&format!("exit {code}")).await;
        spec.restart_policy = policy(RestartKind::Always, None, 3_600_000);
        let id = case.start(&spec).await;
        until_state(&*case.runtime, &id, &ContainerState::Initializing).await;
        case.berth(&["update", "--restart", policy_text, &id.to_string()]).await.succeeded();
        if ends {
            until_state(&*case.runtime, &id, &ContainerState::Exited { code }).await;
            assert_eq!(soon("wait", case.runtime.wait_container(&id)).await, Ok(code));
        } else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Initializing);
        }
    }
}

async fn a_container_with_a_terminal_gets_a_new_one(case: Case) {
    let mut spec = counted(&case, "tty; stty size; exit $n", policy(RestartKind::OnFailure, Some(2), 1)).await;
    spec.tty = true;
    let id = case.start(&spec).await;
    until_state(&*case.runtime, &id, &ContainerState::Exited { code: 3 }).await;
    let lines: Vec<String> = case.runtime.get_logs(&id).await.unwrap().into_iter().map(|e| e.message).collect();
    assert_eq!(lines.iter().filter(|line| line.contains("/dev/")).count(), 3, "{lines:?}");
}

async fn a_terminal_that_nobody_has_open_for_a_while_is_read_on(case: Case) {
    let mut spec =
        case.script("exec </dev/null >/dev/null 2>&1; sleep 1; exec >/dev/console; echo back; exec sleep 3600").await;
    spec.tty = true;
    let id = case.start(&spec).await;
    case.until_logged(&id, "back\r").await;
}

async fn what_was_not_started_takes_no_signal_but_kill_and_keeps_its_policy(case: Case) {
    let spec = counted(&case, "[ $n = 3 ] && exec sleep 3600; exit 9", policy(RestartKind::Always, None, 1)).await;
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    let id = case.id();
    case.runtime.create_container(&id, &spec).await.unwrap();
    let error = case.runtime.kill_container(&id, Some("TERM")).await.unwrap_err();
    assert_eq!(error.code(), "container.not_running", "{error}");
    case.runtime.start_container(&id).await.unwrap();
    eventually("it is restarted", || async {
        let tried = case.runtime.exec(&id, &words(&["grep", "-q", "3", "/n"])).await;
        tried.is_ok_and(|done| done.0 == 0)
    })
    .await;
}

async fn a_tiny_init_comes_again_once_its_executable_was_replaced(case: Case) {
    let root = case.root("root");
    let mut config = root.config();
    let programs = case.suite.dir.path().join("the-first-version");
    std::fs::create_dir(&programs).unwrap();
    let theirs = config.helper_dir.clone().expect("the suite names it");
    for name in ["berth-supervisor", "berth-create"] {
        std::fs::copy(theirs.join(name), programs.join(name)).unwrap();
    }
    config.helper_dir = Some(programs.clone());
    let runtime: std::sync::Arc<dyn Runtime> =
        std::sync::Arc::new(youki_backend::YoukiRuntime::open(config).await.unwrap());
    let id = case.id_on(&runtime);
    let mut spec =
        counted(&case, "[ $n = 2 ] && exec sleep 3600; exit 9", policy(RestartKind::Always, None, 300)).await;
    spec.init = true;
    crate::support::case::start_on(&*runtime, &id, &spec).await.unwrap();
    std::fs::remove_dir_all(&programs).unwrap();
    eventually("it is restarted", || async {
        runtime.exec(&id, &words(&["grep", "-q", "2", "/n"])).await.is_ok_and(|done| done.0 == 0)
    })
    .await;
    runtime.remove_container(&id).await.unwrap();
}

async fn its_volumes_stay_its_own_and_are_synced_at_the_last_end(case: Case) {
    let mut spec = crate::volumes::spec(&case, "echo x >> /data/lines; [ $(wc -l < /data/lines) = 4 ]").await;
    spec.restart_policy = policy(RestartKind::OnFailure, None, 100);
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    crate::support::case::start_on(&*runtime, &id, &spec).await.unwrap();
    until_state(&*runtime, &id, &ContainerState::Exited { code: 0 }).await;
    eventually("the keeper synced it", || async {
        runtime.volume_status("data").await.is_ok_and(|status| status.durable_at.is_some())
    })
    .await;
    runtime.remove_container(&id).await.unwrap();
}

async fn hundreds_of_restarts_leave_nothing_behind(case: Case) {
    let number = u32::try_from(repetitions(300, 60)).unwrap();
    let mut spec = case.script("exit 1").await;
    spec.network.mode = NetworkMode::Bridge;
    spec.restart_policy =
        RestartPolicy { kind: RestartKind::OnFailure, max_attempts: Some(number), delay: Some(Duration::ZERO) };
    let id = case.start(&spec).await;
    let supervisor = resident(&id).expect("it has a supervisor");
    let (mut descriptors, mut bytes) = (0, Vec::new());
    // Its state can be asked for at any time.
    loop {
        match case.runtime.container_state(&id).await.unwrap() {
            ContainerState::Exited { code } => {
                assert_eq!(code, 1);
                break;
            }
            ContainerState::Running | ContainerState::Initializing | ContainerState::Stopping => {}
            other => panic!("{other:?}"),
        }
        let open = std::fs::read_dir(format!("/proc/{supervisor}/fd")).map_or(0, Iterator::count);
        descriptors = descriptors.max(open);
        // It may have ended since it was asked.
        bytes.extend(private_dirty_bytes(supervisor));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let inspected = case.inspected(&id).await;
    assert_eq!(inspected["restarts"], number);
    assert_eq!(inspected["earlier_attempts"].as_array().unwrap().len(), 10);
    assert!(descriptors <= 32, "{descriptors} descriptors at once");
    // The least of each half, since buffers come and go; but for the beginning, when it has not used most of what it has.
    let least = |part: &[u64]| *part.iter().min().expect("it was looked at");
    let steady = &bytes[bytes.len() / 4..];
    let (early, late) = steady.split_at(steady.len() / 2);
    let (early, late) = (least(early), least(late));
    assert!(late < early + (64 << 10), "its memory grew from {early} to {late} bytes");
}

async fn a_policy_that_cannot_be_is_refused(case: Case) {
    let mut spec = case.script("exit 1").await;
    spec.restart_policy = policy(RestartKind::OnFailure, Some(0), 1);
    let error = case.try_start(&case.id(), &spec).await.unwrap_err();
    assert!(error.to_string().contains("restart_policy.max_attempts"), "{error}");
    spec.restart_policy.max_attempts = None;
    spec.remove_on_exit = true;
    let error = case.try_start(&case.id(), &spec).await.unwrap_err();
    assert!(error.to_string().contains("restart_policy"), "{error}");
    let image = case.suite.busybox().await;
    let said = case.berth(&["run", "--rm", "--restart", "always", image, "true"]).await;
    assert!(said.code == 125 && said.stderr.contains("--restart"), "{said:?}");
    let said = case.berth(&["run", "--rm", "--restart", "no", image, "sh", "-c", "exit 4"]).await;
    assert_eq!(said.code, 4, "no policy, as docker has it: {said:?}");
}
