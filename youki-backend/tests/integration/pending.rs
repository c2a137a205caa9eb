//! A container that is being created or started, beside whoever looks at it, stops it or removes it.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use runtime_core::spec::{NetworkMode, ResourcesSpec};
use runtime_core::{AgentError, ContainerId, ContainerState, Runtime, ServiceSpec};
use rustix::process::Signal;
use tokio::task::JoinHandle;
use youki_backend::{CreateOptions, YoukiRuntime};

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::{berth, command};
use crate::support::case::{IDLE, eventually, soon, start_on, words};
use crate::support::image::Image;
use crate::support::process::signal;
use crate::support::root::Root;
use crate::support::share::Share;
use crate::support::switch::Switch;
use crate::volumes::{exec_ok, spec, with_volume};

crate::tests![
    while_its_image_is_pulled_it_is_pending_and_who_removes_it_waits,
    its_network_is_in_use_and_who_removes_it_is_told_what_it_is,
    killed_while_it_pulled_it_leaves_no_container,
    what_a_killed_create_would_have_had_is_free,
    a_call_that_nobody_polls_holds_up_no_other,
    called_off_while_it_pulls_it_leaves_nothing,
    a_command_that_is_told_to_end_while_it_pulls_undoes_that,
    a_signal_that_a_command_is_to_ignore_calls_nothing_off,
    a_stop_beside_a_start_is_obeyed,
    a_removal_without_force_beside_a_start_kills_nothing,
    what_a_removal_that_was_cut_off_left_is_not_taken_on,
];

/// Bytes in a second: nothing of any size comes to its end.
const HELD_BACK: u64 = 8 << 10;
const LET_GO: u64 = u64::MAX;

/// A service whose image comes as fast as the switch lets it.
async fn of_a_slow_registry(case: &Case) -> (Switch, ServiceSpec) {
    let reference = case.push("latest", &Image::busybox()).await;
    let (host, name) = reference.split_once('/').unwrap();
    let switch = Switch::before(host).await;
    switch.slow(HELD_BACK);
    let mut spec = case.script(IDLE).await;
    spec.image.name = format!("{}/{name}", switch.endpoint().trim_start_matches("http://"));
    (switch, spec)
}

async fn while_its_image_is_pulled_it_is_pending_and_who_removes_it_waits(case: Case) {
    let root = case.root("root");
    let (one, other) = (root.open().await.unwrap(), root.open().await.unwrap());
    let (switch, spec) = of_a_slow_registry(&case).await;
    let id = case.id_in(&root);
    let creating = tokio::spawn({
        let (id, spec) = (id.clone(), spec.clone());
        async move { one.create_container(&id, &spec).await }
    });
    let is_pending = || async { matches!(other.container_state(&id).await, Ok(ContainerState::Pending)) };
    eventually("it is pending", is_pending).await;
    let listed = other.list_containers().await.unwrap();
    let listed: Vec<_> = listed.iter().map(|one| (&one.id, &one.state, &one.image)).collect();
    assert_eq!(listed, [(&id, &ContainerState::Pending, &spec.image.name)]);
    let refused = other.exec(&id, &words(&["true"])).await.unwrap_err();
    assert_eq!(refused.code(), "container.not_running", "{refused}");
    assert!(other.get_logs(&id).await.unwrap().is_empty());
    let removing = tokio::spawn({
        let (other, id) = (other.clone(), id.clone());
        async move { other.remove_container(&id).await }
    });
    assert!(!creating.is_finished() && !removing.is_finished());
    switch.slow(LET_GO);
    soon("the create", creating).await.unwrap().unwrap();
    soon("the removal", removing).await.unwrap().unwrap();
    assert!(matches!(other.container_state(&id).await, Err(AgentError::NotFound { .. })));
    // And one that comes to nothing is nothing.
    let mut unknown = spec;
    unknown.image.name.push_str("-unknown");
    let error = other.create_container(&id, &unknown).await.unwrap_err();
    assert!(matches!(error, AgentError::NotFound { .. } | AgentError::PullFailed { .. }), "{error}");
    assert!(matches!(other.container_state(&id).await, Err(AgentError::NotFound { .. })));
    assert!(!root.dir.join("containers").join(id.to_string()).exists());
}

async fn its_network_is_in_use_and_who_removes_it_is_told_what_it_is(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (switch, mut spec) = of_a_slow_registry(&case).await;
    let subnet = Share::further_subnet(&root.subnet, 0);
    berth(&root, &["network", "create", "--subnet", &subnet, "front"]).await.succeeded();
    spec.network.mode = NetworkMode::from("front".to_owned());
    let id = case.id_in(&root);
    let creating = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.create_container(&id, &spec).await }
    });
    eventually("it is pending", || async { runtime.container_state(&id).await.is_ok() }).await;
    assert_eq!(berth(&root, &["--json", "network", "rm", "front"]).await.refused(1).0, "network.in_use");
    assert_eq!(berth(&root, &["ps", "-aq", "--filter", "network=front"]).await.succeeded().trim(), id.to_string());
    let (code, message) = berth(&root, &["--json", "rm", &id.to_string()]).await.refused(1);
    assert!(code == "container.running" && message.ends_with("still pending"), "{code}: {message}");
    switch.slow(LET_GO);
    soon("the create", creating).await.unwrap().unwrap();
    runtime.remove_container(&id).await.unwrap();
    berth(&root, &["network", "rm", "front"]).await.succeeded();
}

async fn killed_while_it_pulled_it_leaves_no_container(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (_switch, spec) = of_a_slow_registry(&case).await;
    let id = case.id_in(&root);
    let mut agent = Agent::start(&root, &[]).await;
    agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec.clone()) }).await;
    let record = root.dir.join("containers").join(id.to_string()).join("container.json");
    eventually("it is on record", || async { record.exists() }).await;
    agent.kill().await;
    // Its name is free.
    start_on(&*runtime, &id, &case.script(IDLE).await).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    // Whoever looks finds that nobody creates it any more; so does the next who opens the root.
    let mut agent = Agent::start(&root, &[]).await;
    agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec) }).await;
    eventually("it is on record again", || async { record.exists() }).await;
    agent.kill().await;
    assert!(matches!(runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    assert!(!record.parent().unwrap().exists());
}

async fn what_a_killed_create_would_have_had_is_free(case: Case) {
    let root = case.root("root");
    let subnet = Share::further_subnet(&root.subnet, 0);
    berth(&root, &["network", "create", "--subnet", &subnet, "front"]).await.succeeded();
    let runtime = YoukiRuntime::open(root.config()).await.unwrap();
    let (_switch, mut spec) = of_a_slow_registry(&case).await;
    spec.network.mode = NetworkMode::from("front".to_owned());
    let id = case.id_in(&root);
    let mut agent = Agent::start(&root, &[]).await;
    agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec) }).await;
    let record = root.dir.join("containers").join(id.to_string()).join("container.json");
    eventually("it is on record", || async { record.exists() }).await;
    agent.kill().await;
    // As if it had been killed between the lease and the record of that.
    let lease = root.run_dir.join(format!("leases/front/{}.9@{id}", subnet.rsplit_once('.').unwrap().0));
    std::fs::create_dir_all(lease.parent().unwrap()).unwrap();
    std::fs::write(&lease, b"").unwrap();
    assert!(matches!(runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    assert!(!lease.exists(), "its address is taken");
    // Nor does one that nobody has looked at keep its network.
    std::fs::create_dir_all(record.parent().unwrap()).unwrap();
    let mut agent = Agent::start(&root, &[]).await;
    let (_switch, mut spec) = of_a_slow_registry(&case).await;
    spec.network.mode = NetworkMode::from("front".to_owned());
    agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec) }).await;
    eventually("it is on record again", || async { record.exists() }).await;
    agent.kill().await;
    runtime.remove_network("front").await.unwrap();
    assert!(matches!(runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
}

/// As `select!` has one by reference while the handler of another branch awaits.
async fn a_call_that_nobody_polls_holds_up_no_other(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (switch, spec) = of_a_slow_registry(&case).await;
    let id = case.id_in(&root);
    let creating = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.create_container(&id, &spec).await }
    });
    eventually("it is pending", || async { runtime.container_state(&id).await.is_ok() }).await;
    let resources = ResourcesSpec { pids: Some(100), ..ResourcesSpec::default() };
    let (mut wait, mut start) = (runtime.wait_container(&id), runtime.start_container(&id));
    let (mut update, mut stop) =
        (runtime.update_resources(&id, &resources), runtime.stop_container(&id, Duration::ZERO));
    for call in [&mut start, &mut update, &mut stop] {
        assert!(futures_util::poll!(call).is_pending());
    }
    assert!(futures_util::poll!(&mut wait).is_pending());
    // All of them wait for whoever creates it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    switch.slow(LET_GO);
    soon("the create", creating).await.unwrap().unwrap();
    soon("a stop", runtime.stop_container(&id, Duration::ZERO)).await.unwrap();
    soon("a removal", runtime.remove_container(&id)).await.unwrap();
}

async fn called_off_while_it_pulls_it_leaves_nothing(case: Case) {
    let root = case.root("root");
    let runtime = Arc::new(YoukiRuntime::open(root.config()).await.unwrap());
    let (_switch, spec) = of_a_slow_registry(&case).await;
    let (id, options) = (case.id_in(&root), CreateOptions::default());
    let called_off = options.called_off.clone();
    let creating = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.create(&id, &spec, options).await }
    });
    eventually("it is pending", || async { runtime.container_state(&id).await.is_ok() }).await;
    called_off.cancel();
    let error = soon("its end", creating).await.unwrap().unwrap_err();
    assert_eq!(error.code(), "container.called_off", "{error}");
    assert!(!root.dir.join("containers").join(id.to_string()).exists());
    assert!(runtime.list_images().await.unwrap().is_empty());
}

async fn a_command_that_is_told_to_end_while_it_pulls_undoes_that(case: Case) {
    let root = case.root("root");
    let (_switch, spec) = of_a_slow_registry(&case).await;
    let dir = root.dir.join("containers/web-rep-0");
    for words in [&["run", "--rm"][..], &["run", "-d"], &["create"]] {
        let mut command = command(&root);
        command.args(words).args(["--name", "web", "--network", "none", &spec.image.name]).kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("it is on record", || async { dir.join("container.json").exists() }).await;
        signal(child.id().unwrap(), Signal::INT);
        let output = soon("its end", child.wait_with_output()).await.unwrap();
        // A very slow machine may not let it, which is said.
        let undone = !dir.exists() || String::from_utf8_lossy(&output.stderr).contains("left before it was undone");
        assert!(output.status.code() == Some(130) && undone, "{words:?}: {output:?}");
        berth(&root, &["ps", "-aq"]).await.succeeded();
    }
}

async fn a_signal_that_a_command_is_to_ignore_calls_nothing_off(case: Case) {
    let root = case.root("root");
    let (switch, spec) = of_a_slow_registry(&case).await;
    let dir = root.dir.join("containers/web-rep-0");
    for verb in ["create", "run"] {
        switch.slow(HELD_BACK);
        let berth = command(&root);
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(berth.as_std().get_program());
        shell.args(berth.as_std().get_args());
        shell.args([verb, "--name", "web", "--network", "none", &spec.image.name, "true"]);
        shell.envs(berth.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        eventually("it is on record", || async { dir.join("container.json").exists() }).await;
        signal(child.id().unwrap(), Signal::HUP);
        switch.slow(LET_GO);
        assert!(soon("its end", child.wait()).await.unwrap().success(), "{verb}");
        assert!(dir.exists(), "{verb}");
        self::berth(&root, &["rm", "web"]).await.succeeded();
        // For the next to pull it anew.
        self::berth(&root, &["rmi", &spec.image.name]).await.succeeded();
    }
}

/// A container that has ended, whose start waits for a volume until the switch lets it go.
struct SlowStart {
    root: Root,
    runtime: Arc<dyn Runtime>,
    id: ContainerId,
    switch: Switch,
    starting: JoinHandle<runtime_core::Result<()>>,
}

impl SlowStart {
    async fn new(case: &Case) -> Self {
        let (root, switch) = case.root_with_switch("root", "p").await;
        let elsewhere = case.root_with_s3("elsewhere", "p").await.open().await.unwrap();
        let runtime = root.open().await.unwrap();
        let id = with_volume(case, &runtime).await;
        runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        // What a start has to restore.
        let there = case.id_on(&elsewhere);
        start_on(&*elsewhere, &there, &spec(case, IDLE).await).await.unwrap();
        exec_ok(&elsewhere, &there, "head -c 1000000 /dev/urandom > /data/file").await;
        elsewhere.stop_container(&there, Duration::ZERO).await.unwrap();
        switch.slow(HELD_BACK);
        let starting = tokio::spawn({
            let (runtime, id) = (runtime.clone(), id.clone());
            async move { runtime.start_container(&id).await }
        });
        // By it the keeper is called: there is no socket yet.
        let is_rung = || {
            let mut sockets = std::fs::read_dir(root.run_dir.join("sockets")).unwrap().flatten();
            sockets.any(|socket| socket.file_type().is_ok_and(|kind| kind.is_file()))
        };
        eventually("the start waits for its volume", || async { is_rung() }).await;
        assert!(matches!(runtime.container_state(&id).await.unwrap(), ContainerState::Exited { .. }));
        Self { root, runtime, id, switch, starting }
    }
}

async fn a_stop_beside_a_start_is_obeyed(case: Case) {
    let SlowStart { root: _root, runtime, id, switch, starting } = SlowStart::new(&case).await;
    let stopping = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.stop_container(&id, Duration::ZERO).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!starting.is_finished() && !stopping.is_finished());
    switch.slow(LET_GO);
    soon("the start", starting).await.unwrap().unwrap();
    soon("the stop", stopping).await.unwrap().unwrap();
    assert!(matches!(runtime.container_state(&id).await.unwrap(), ContainerState::Exited { .. }));
}

async fn a_removal_without_force_beside_a_start_kills_nothing(case: Case) {
    let SlowStart { root, runtime, id, switch, starting } = SlowStart::new(&case).await;
    let other = YoukiRuntime::open(root.config()).await.unwrap();
    let removing = tokio::spawn({
        let id = id.clone();
        async move { other.remove(&id, false).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!starting.is_finished() && !removing.is_finished());
    switch.slow(LET_GO);
    soon("the start", starting).await.unwrap().unwrap();
    let error = soon("the removal", removing).await.unwrap().unwrap_err();
    assert_eq!(error.code(), "container.running", "{error}");
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
}

async fn what_a_removal_that_was_cut_off_left_is_not_taken_on(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let id = case.id_in(&root);
    let spec = case.script("[ ! -e /old ] || echo taken on; echo x > /old; exit 3").await;
    start_on(&*runtime, &id, &spec).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await.unwrap(), 3);
    let (dir, aside) = (root.dir.join("containers").join(id.to_string()), root.dir.join("aside"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&dir, &aside);
    runtime.remove_container(&id).await.unwrap();
    copy(&aside, &dir);
    std::fs::remove_file(dir.join("container.json")).unwrap();
    std::fs::remove_dir_all(aside).unwrap();
    assert!(matches!(runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    runtime.create_container(&id, &spec).await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Initializing);
    runtime.start_container(&id).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await.unwrap(), 3);
    assert!(runtime.get_logs(&id).await.unwrap().is_empty());
}
