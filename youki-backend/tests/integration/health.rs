//! Health checks: what is tried, what it comes to, and who tells of it.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use runtime_core::spec::{HealthCheck, HealthSpec, NetworkMode, RestartKind};
use runtime_core::{ContainerId, ContainerState, EventKind, EventsOptions, HealthDetail, Runtime, ServiceSpec};
use serde_json::json;

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::command;
use crate::support::case::{IDLE, eventually, start_on, words};
use crate::support::image::Image;
use crate::support::pace::patience;
use crate::support::process::{resident, times_woken};
use crate::support::root::Root;

crate::tests![
    a_command_makes_it_healthy_or_not_and_everybody_tells,
    while_it_may_start_failures_do_not_count,
    a_check_that_takes_too_long_is_killed_with_all_that_it_started,
    what_a_check_says_is_bounded,
    a_port_is_tried_in_every_network,
    an_answer_in_http_is_judged_by_its_status,
    an_images_check_is_carried_out_unless_the_spec_has_its_own_or_wants_none,
    an_attempt_that_follows_begins_as_starting,
    a_paused_container_is_not_checked,
    the_next_keeper_goes_on_with_what_the_last_one_found,
    a_result_that_cannot_be_read_hides_nothing_else,
    nothing_wakes_while_no_check_is_due,
    the_command_has_dockers_flags,
    a_check_that_could_not_be_tried_is_refused,
];

/// Checks often, with two failures for unhealthy.
fn often(check: HealthCheck) -> HealthSpec {
    HealthSpec {
        check,
        start_grace: Duration::ZERO,
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(20),
        retries: 2,
    }
}

fn script(line: &str) -> HealthCheck {
    HealthCheck::Command { command: words(&["sh", "-c", line]) }
}

async fn checked(case: &Case, program: &str, health: HealthSpec) -> ServiceSpec {
    ServiceSpec { health: Some(health), ..case.script(program).await }
}

async fn health(runtime: &dyn Runtime, id: &ContainerId) -> HealthDetail {
    runtime.inspect_detailed(id).await.unwrap().health.expect("it has a check")
}

/// Longer than [`eventually`] waits: the keeper of the root that tests share has a thousand other containers to look at,
/// which another test makes at once.
const PATIENCE: Duration = Duration::from_secs(120);

async fn until(runtime: &dyn Runtime, id: &ContainerId, status: &str) {
    let begin = Instant::now();
    while health(runtime, id).await.status != status {
        assert!(begin.elapsed() < patience(PATIENCE), "not within {PATIENCE:?}: {id} is {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_command_makes_it_healthy_or_not_and_everybody_tells(case: Case) {
    let check = often(script("until [ ! -e /hold ]; do sleep 0.05; done; echo looking; [ -e /well ]"));
    let (id, spec) = (case.id(), checked(&case, IDLE, check).await);
    case.runtime.pull_image(&spec.image.name).await.unwrap();
    case.runtime.create_container(&id, &spec).await.unwrap();
    assert_eq!(health(&*case.runtime, &id).await.status, "none", "nothing runs that could be well");
    case.runtime.start_container(&id).await.unwrap();
    until(&*case.runtime, &id, "unhealthy").await;
    let now = health(&*case.runtime, &id).await;
    assert!(now.failing_streak.unwrap() >= 2, "{now:?}");
    assert_eq!(now.last_output.as_deref(), Some("looking\n"));
    assert_eq!(case.runtime.container_state(&id).await.unwrap(), ContainerState::Running, "it is left alone");

    case.exec_ok(&id, "touch /well").await;
    until(&*case.runtime, &id, "healthy").await;
    assert_eq!(health(&*case.runtime, &id).await.failing_streak, Some(0));
    // Another process says the same.
    let inspected = case.berth(&["inspect", "--json", &id.to_string()]).await.json();
    assert_eq!(inspected[0]["health"], json!({"status": "healthy", "failing_streak": 0, "last_output": "looking\n"}));
    let listed = case.berth(&["ps", "--filter", &format!("name={id}")]).await.succeeded();
    assert!(listed.contains("(healthy)"), "{listed}");
    case.exec_ok(&id, "rm /well").await;
    until(&*case.runtime, &id, "unhealthy").await;

    let changes = async || {
        let all: Vec<_> = case.runtime.events(&EventsOptions::default()).await.unwrap().try_collect().await.unwrap();
        let of_it = all.into_iter().filter(|event| event.container.as_deref() == Some(&id.to_string()));
        of_it.filter(|event| event.kind == EventKind::Health).filter_map(|event| event.detail).collect::<Vec<_>>()
    };
    // Told once it is on record.
    eventually("the last change is told", || async { changes().await.len() >= 3 }).await;
    assert_eq!(changes().await, ["unhealthy", "healthy", "unhealthy"]);
    // No check of the next attempt is done before it was looked at.
    case.exec_ok(&id, "touch /hold").await;
    case.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    assert_eq!(health(&*case.runtime, &id).await.status, "unhealthy", "as it was last seen");
    case.runtime.start_container(&id).await.unwrap();
    assert_eq!(health(&*case.runtime, &id).await.status, "starting");
    case.exec_ok(&id, "rm /hold").await;
    until(&*case.runtime, &id, "unhealthy").await;
}

async fn while_it_may_start_failures_do_not_count(case: Case) {
    let line = "echo x >> /checks; [ $(wc -l < /checks) -ge 8 ]";
    let check = HealthSpec { start_grace: Duration::from_secs(3600), retries: 1, ..often(script(line)) };
    let id = case.start(&checked(&case, IDLE, check).await).await;
    eventually("it was checked", || async { case.exec(&id, "[ $(wc -l < /checks) -ge 4 ]").await.0 == 0 }).await;
    let now = health(&*case.runtime, &id).await;
    assert_eq!((now.status.as_str(), now.failing_streak), ("starting", Some(0)));
    until(&*case.runtime, &id, "healthy").await;
    // From its first success on they do.
    case.exec_ok(&id, "rm /checks").await;
    until(&*case.runtime, &id, "unhealthy").await;
}

async fn a_check_that_takes_too_long_is_killed_with_all_that_it_started(case: Case) {
    let line = "echo begun; setsid sleep 3600 & sleep 3601";
    // Long enough for it to begin.
    let timeout = patience(Duration::from_millis(300));
    let check = HealthSpec { timeout, ..often(script(line)) };
    let id = case.start(&checked(&case, "exec sleep 3600", check).await).await;
    until(&*case.runtime, &id, "unhealthy").await;
    let said = health(&*case.runtime, &id).await.last_output.unwrap();
    assert!(said.starts_with("begun\n") && said.contains(&format!("longer than {timeout:?}")), "{said:?}");
    // Of one check at most, between two of them only the init.
    for _ in 0..30 {
        let pids = case.cgroup_pids(&id);
        assert!(pids.len() <= 4, "{pids:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("only the init is left", || async { case.cgroup_pids(&id).len() == 1 }).await;
}

async fn what_a_check_says_is_bounded(case: Case) {
    let id = case.start(&checked(&case, IDLE, often(script("yes äöü | head -c 1000000"))).await).await;
    until(&*case.runtime, &id, "healthy").await;
    let said = health(&*case.runtime, &id).await.last_output.unwrap();
    assert!((4_000..=4_096).contains(&said.len()), "{} bytes", said.len());
}

async fn a_port_is_tried_in_every_network(case: Case) {
    let port = case.suite.share.port();
    let serve = format!("while [ ! -e /serve ]; do sleep 0.05; done; exec httpd -f -p {port} -h /");
    for mode in [NetworkMode::Bridge, NetworkMode::None, NetworkMode::Host] {
        let mut spec = checked(&case, &serve, often(HealthCheck::Tcp { port })).await;
        spec.network.mode = mode.clone();
        let id = case.start(&spec).await;
        until(&*case.runtime, &id, "unhealthy").await;
        let said = health(&*case.runtime, &id).await.last_output.unwrap();
        assert!(said.contains(&format!(":{port}: ")) && said.contains("refused"), "{mode}: {said:?}");
        case.exec_ok(&id, "touch /serve").await;
        until(&*case.runtime, &id, "healthy").await;
        case.runtime.remove_container(&id).await.unwrap();
    }
}

async fn an_answer_in_http_is_judged_by_its_status(case: Case) {
    let program = "mkdir /www; echo well > /www/health; exec httpd -f -p 8080 -h /www";
    let http = |url: &str, expect_status| HealthCheck::Http { url: url.to_owned(), expect_status };
    for (url, expect_status, status, said) in [
        ("http://127.0.0.1:8080/health", None, "healthy", "200"),
        ("http://localhost:8080/health?x=y", None, "healthy", "200"),
        ("http://127.0.0.1:8080/nothing", None, "unhealthy", "404"),
        ("http://127.0.0.1:8080/nothing", Some(404), "healthy", "404"),
        ("http://127.0.0.1:8080/health", Some(204), "unhealthy", "200"),
        ("http://127.0.0.1:9/", None, "unhealthy", "refused"),
    ] {
        let mut spec = checked(&case, program, often(http(url, expect_status))).await;
        // Its server may take a moment.
        spec.health.as_mut().unwrap().retries = 10;
        spec.network.mode = NetworkMode::Bridge;
        let id = case.start(&spec).await;
        until(&*case.runtime, &id, status).await;
        let output = health(&*case.runtime, &id).await.last_output.unwrap();
        assert!(output.contains(said), "{url}: {output:?}");
        case.runtime.remove_container(&id).await.unwrap();
    }
}

async fn an_images_check_is_carried_out_unless_the_spec_has_its_own_or_wants_none(case: Case) {
    let check = json!({"Test": ["CMD-SHELL", "echo of the image; exit 0"], "Interval": 100_000_000});
    let image = case.push("checked", &Image::busybox().with("Healthcheck", check)).await;
    let none = case.push("none", &Image::busybox().with("Healthcheck", json!({"Test": ["NONE"]}))).await;
    let spec = |image: &str| {
        let image = image.to_owned();
        let case = &case;
        async move {
            let mut spec = case.script(IDLE).await;
            spec.image.name = image;
            spec
        }
    };
    let id = case.start(&spec(&image).await).await;
    until(&*case.runtime, &id, "healthy").await;
    assert_eq!(health(&*case.runtime, &id).await.last_output.as_deref(), Some("of the image\n"));

    let own = ServiceSpec { health: Some(often(script("echo of the spec; exit 1"))), ..spec(&image).await };
    let id = case.start(&own).await;
    until(&*case.runtime, &id, "unhealthy").await;
    assert_eq!(health(&*case.runtime, &id).await.last_output.as_deref(), Some("of the spec\n"));

    let unwanted = ServiceSpec { no_healthcheck: true, ..spec(&image).await };
    for spec in [unwanted, spec(&none).await] {
        let id = case.start(&spec).await;
        assert_eq!(case.runtime.inspect_detailed(&id).await.unwrap().health, None);
    }
}

async fn an_attempt_that_follows_begins_as_starting(case: Case) {
    let program = "[ -e /second ] && exec sleep 3600; touch /second; while [ ! -e /end ]; do sleep 0.05; done; exit 1";
    let mut spec = checked(&case, program, often(script("[ ! -e /end ]"))).await;
    spec.restart_policy = crate::restarts::policy(RestartKind::OnFailure, None, 10);
    let id = case.start(&spec).await;
    until(&*case.runtime, &id, "healthy").await;
    case.exec(&id, "touch /end").await; // it may be killed with the attempt that it ends
    let changes = async || {
        let all: Vec<_> = case.runtime.events(&EventsOptions::default()).await.unwrap().try_collect().await.unwrap();
        let of_it = all.into_iter().filter(|event| event.container.as_deref() == Some(&id.to_string()));
        of_it
            .filter(|event| event.kind == EventKind::Health)
            .map(|event| (event.attempt.unwrap(), event.detail.unwrap()))
            .collect::<Vec<_>>()
    };
    // The first attempt may have ended before a second check failed.
    let last = (2, "unhealthy".to_owned());
    eventually("the second one is checked", || async { changes().await.last() == Some(&last) }).await;
    assert_eq!(changes().await.first(), Some(&(1, "healthy".to_owned())));
    assert_eq!(changes().await.iter().filter(|change| change.0 == 2).count(), 1, "it began as starting");
}

async fn a_paused_container_is_not_checked(case: Case) {
    // Once too long, a check would make it unhealthy: one that was under way, too.
    let timeout = patience(Duration::from_secs(4));
    let check = HealthSpec { timeout, retries: 1, ..often(script("touch /begun; sleep 0.5; rm /begun")) };
    let id = case.start(&checked(&case, IDLE, check).await).await;
    until(&*case.runtime, &id, "healthy").await;
    case.exec_ok(&id, "until [ -e /begun ]; do sleep 0.01; done").await;
    case.runtime.pause(&id).await.unwrap();
    tokio::time::sleep(timeout * 3 / 2).await;
    assert_eq!(health(&*case.runtime, &id).await.status, "healthy");
    case.runtime.unpause(&id).await.unwrap();
    assert_eq!(health(&*case.runtime, &id).await.failing_streak, Some(0));
}

async fn the_next_keeper_goes_on_with_what_the_last_one_found(case: Case) {
    let root = case.root("root");
    let (mut agent, id) = (Agent::start(&root, &[]).await, case.id_in(&root));
    let mut check = often(script("echo x >> /checks; [ -e /well ]"));
    check.retries = 1_000;
    let spec = Box::new(checked(&case, IDLE, check).await);
    agent.ask(&Request::Run { id: id.clone(), spec }).await.unwrap();
    // Not the keeper: it only looks.
    let looking = Root { keeper: false, ..root.clone() }.open().await.unwrap();
    let streak = async || health(&*looking, &id).await.failing_streak.unwrap_or(0);
    eventually("the agent checks", || async { streak().await >= 3 }).await;
    agent.kill().await;
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let at_death = streak().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(streak().await, at_death, "nobody checks");
    let keeper = root.open().await.unwrap();
    eventually("the next one checks", || async { streak().await > at_death + 2 }).await;
    let most = at_death + u32::try_from(begun.elapsed().as_millis() / 100).unwrap();
    assert!(streak().await <= most, "it is checked twice as often");
    looking.exec(&id, &words(&["touch", "/well"])).await.unwrap();
    until(&*looking, &id, "healthy").await;
    keeper.remove_container(&id).await.unwrap();
}

async fn a_result_that_cannot_be_read_hides_nothing_else(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    let seldom = HealthSpec { interval: Duration::from_secs(3600), ..often(script("true")) };
    start_on(&*runtime, &id, &checked(&case, IDLE, seldom).await).await.unwrap();
    let result = root.run_dir.join("containers").join(id.to_string()).join("health.json");
    for text in ["", "{", "[1]", "{\"status\":\"well\"}"] {
        std::fs::write(&result, text).unwrap();
        assert_eq!(health(&*runtime, &id).await.status, "starting", "{text:?}");
        let listed = case.berth_on(&root, &["ps", "--format", "{{.Names}} {{.State}}"]).await.succeeded();
        assert_eq!(listed, format!("{} running\n", id.service), "{text:?}");
    }
    runtime.remove_container(&id).await.unwrap();
}

async fn nothing_wakes_while_no_check_is_due(case: Case) {
    let root = Root { keeper: false, ..case.root("root") };
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    let check = HealthSpec { interval: Duration::from_secs(3_600), ..often(script("exit 0")) };
    let mut keeper = command(&root).arg("keeper").kill_on_drop(true).spawn().unwrap();
    start_on(&*runtime, &id, &checked(&case, "exec sleep 3600", check).await).await.unwrap();
    let (supervisor, keeper_pid) = (resident(&id).expect("it has a supervisor"), keeper.id().unwrap());
    let seen = || [supervisor, keeper_pid].map(times_woken);
    // What it heard of the start it looks at, and threads that did so end after ten seconds.
    let (begin, mut since, mut before) = (Instant::now(), Instant::now(), seen());
    while since.elapsed() < Duration::from_secs(11) {
        assert!(begin.elapsed() < patience(PATIENCE), "it wakes with nothing to do");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = seen();
        if now != before {
            (since, before) = (Instant::now(), now);
        }
    }
    keeper.kill().await.unwrap();
    runtime.remove_container(&id).await.unwrap();
}

async fn the_command_has_dockers_flags(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let id = case.id();
    let name = id.service.clone();
    let flags = [
        "--health-cmd",
        "[ -e /well ]",
        "--health-interval",
        "100ms",
        "--health-timeout",
        "20s",
        "--health-retries",
        "1",
        "--health-start-period",
        "0s",
    ];
    let mut args = vec!["run", "-d", "--name", &name, "--network", "none"];
    args.extend(flags);
    args.extend([image.as_str(), "sleep", "3600"]);
    case.berth(&args).await.succeeded();
    until(&*case.runtime, &id, "unhealthy").await;
    case.exec_ok(&id, "touch /well").await;
    until(&*case.runtime, &id, "healthy").await;
    for wrong in [
        &["--health-interval", "1s"][..],
        &["--health-cmd", "x", "--no-healthcheck"],
        &["--health-cmd", "x", "--health-timeout", "soon"],
    ] {
        let mut args = vec!["run", "--network", "none"];
        args.extend(wrong);
        args.extend([image.as_str(), "true"]);
        let said = case.berth(&args).await;
        assert_eq!(said.code, 125, "{wrong:?}: {said:?}");
    }
}

async fn a_check_that_could_not_be_tried_is_refused(case: Case) {
    let http = HealthCheck::Http { url: "http://example.org/".to_owned(), expect_status: None };
    for (check, field) in [
        (HealthCheck::Command { command: Vec::new() }, "health.check.command"),
        (HealthCheck::Tcp { port: 0 }, "health.check.port"),
        (http, "health.check.url"),
    ] {
        let id = case.id();
        let error = start_on(&*case.runtime, &id, &checked(&case, "true", often(check)).await).await.unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        assert!(case.runtime.container_state(&id).await.is_err(), "it was created");
    }
}
