//! Named volumes when things go wrong on this host: creates that are cut off, a lost claim. Each is told as it is, and
//! nothing is lost or taken for whole that is not.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use runtime_core::spec::{NetworkMode, StorageSpec};
use runtime_core::{AgentError, ContainerState, ServiceSpec};

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::berth;
use crate::support::case::{IDLE, eventually, start_on};
use crate::support::image::{Image, LayerBuilder};
use crate::support::pace::patience;
use crate::support::process::{eldest, gone, kill};
use crate::support::root::Root;
use crate::volumes::{exec_ok, named, spec, with_volume};

crate::tests![
    an_undone_create_takes_its_new_volumes_back,
    a_create_killed_while_it_waits_for_a_volume_gives_back_what_it_has,
    a_volume_whose_creator_was_killed_is_filled_anew_by_the_next,
    who_fills_a_volume_dies_with_its_supervisor,
    creates_at_once_all_get_a_new_volume_whole,
    a_fenced_stop_says_where_the_data_is,
    a_start_that_fails_gives_its_volume_back_and_says_why,
    a_start_that_is_killed_gives_its_volume_back_while_a_keeper_runs,
    mounted_read_only_and_writable_it_is_claimed,
];

/// Files that an image has at `/data`: enough that a fill can be caught in the middle.
pub const FILES: usize = 6000;
const STOP: Duration = Duration::from_secs(10);

/// With many files at `/data`, which tells how many it sees.
pub async fn full_spec(case: &Case) -> ServiceSpec {
    let mut layer = LayerBuilder::new().dir("data", 0o750);
    for number in 0..FILES {
        layer = layer.file(&format!("data/{number}"), 0o644, &[b'x'; 2000]);
    }
    let mut spec = spec(case, "ls /data | wc -l; stat -c %a /data").await;
    spec.image.name = case.push("full", &Image::busybox().layer(layer.finish())).await;
    spec
}

fn count(data: &Path) -> usize {
    std::fs::read_dir(data).map_or(0, Iterator::count)
}

/// What the volume `data` of `root` holds once its filling has begun.
pub async fn half_filled(root: &Root) -> std::path::PathBuf {
    let data = root.dir.join("volumes/data/data");
    let begin = Instant::now();
    while count(&data) == 0 {
        assert!(begin.elapsed() < patience(Duration::from_secs(60)), "the volume is not filled");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    data
}

/// The supervisor of a container that is being created, and its helper.
fn supervisor_and_helper(root: &Root) -> (u32, u32) {
    let dir = root.dir.to_str().unwrap().to_owned();
    let begin = Instant::now();
    loop {
        if let Some(supervisor) = eldest(|command| command.starts_with("berth-supervisor") && command.contains(&dir)) {
            let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"));
            let first = children.unwrap_or_default().split_whitespace().next().and_then(|pid| pid.parse().ok());
            if let Some(helper) = first {
                return (supervisor, helper);
            }
        }
        assert!(begin.elapsed() < patience(Duration::from_secs(20)), "no supervisor, or no helper of it");
    }
}

async fn an_undone_create_takes_its_new_volumes_back(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let mut bad = full_spec(&case).await;
    bad.user = Some("nobody-of-that-name".into());
    runtime.pull_image(&bad.image.name).await.unwrap();
    runtime.create_container(&case.id_on(&runtime), &bad).await.unwrap_err();
    assert_eq!(runtime.list_volumes().await.unwrap().len(), 0, "its volume stayed");
    // One that fails between two volumes has not kept the first.
    let mut bad = spec(&case, "true").await;
    bad.storage.push(StorageSpec::Bind { source: "/no/such/source".into(), target: "/b".into(), readonly: false });
    runtime.create_container(&case.id_on(&runtime), &bad).await.unwrap_err();
    assert_eq!(runtime.list_volumes().await.unwrap().len(), 0, "its volume stayed");
    // Not held by a claim either: another host may have it.
    let other = case.root_with_s3("other", "p").await.open().await.unwrap();
    let id = with_volume(&case, &other).await;
    exec_ok(&other, &id, "echo x > /data/x").await;
}

async fn a_create_killed_while_it_waits_for_a_volume_gives_back_what_it_has(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let runtime = root.open().await.unwrap();
    let mut spec = spec(&case, "echo x > /data/file; dd if=/dev/urandom of=/late/file bs=1M count=2").await;
    spec.storage.push(named("late", "/late"));
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &spec).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(0));
    runtime.stop_container(&id, STOP).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    berth(&root, &["volume", "rm", "late"]).await.succeeded();
    let owner = async |name| runtime.volume_status(name).await.ok().and_then(|status| status.owner);
    assert_eq!(owner("data").await, None);

    // It has one of its volumes, and waits for the other.
    switch.slow(50_000);
    let mut agent = Agent::start(&root, &[]).await;
    agent.send(&Request::CreateOnly { id: id.clone(), spec: Box::new(spec) }).await;
    // The claim is the first of what it does for a volume; so by then it has the one before.
    eventually("it has a volume, and claims the next", || async { owner("late").await.is_some() }).await;
    assert!(owner("data").await.is_some());
    agent.kill().await;
    let error = runtime.container_state(&id).await.unwrap_err();
    assert_eq!(error.code(), "container.not_found", "{error}");
    switch.turn_on().await;
    let next = root.open().await.unwrap();
    // An open waits no longer than two seconds for that.
    eventually("what it had is given back", || async { owner("data").await.is_none() }).await;
    drop(next);
    // What it was about to have is claimed for nobody: the keeper's to settle.
    let _keeper = Root { keeper: true, ..root.clone() }.open().await.unwrap();
    eventually("the other is given back", || async { owner("late").await.is_none() }).await;
    berth(&root, &["volume", "rm", "data"]).await.succeeded();
}

async fn a_volume_whose_creator_was_killed_is_filled_anew_by_the_next(case: Case) {
    let root = case.root("root");
    let spec = full_spec(&case).await;
    let mut agent = Agent::start(&root, &[]).await;
    agent.ask(&Request::Pull { image: spec.image.name.clone(), auth: None }).await.unwrap();
    let killed = case.id_in(&root);
    agent.send(&Request::Create { id: killed.clone(), spec: Box::new(spec.clone()) }).await;
    let data = half_filled(&root).await;
    agent.kill().await;
    let half = count(&data);
    assert!(half < FILES, "{half} files: it was not caught in the middle");
    // What is nobody's and would be seen if it were kept.
    std::fs::write(data.join("of the half"), "x").unwrap();

    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &spec).await.unwrap();
    let lines = crate::support::case::finish_on(&*runtime, &id).await.succeeded();
    assert_eq!(lines, [FILES.to_string(), "750".to_owned()]);
    runtime.remove_container(&id).await.unwrap();
    let _cut_off_or_never_there = runtime.remove_container(&killed).await;
    // Full, it is data: a create that does not fill it keeps what is there.
    std::fs::write(data.join("of the user"), "x").unwrap();
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &spec).await.unwrap();
    let lines = crate::support::case::finish_on(&*runtime, &id).await.succeeded();
    assert_eq!(lines[0], (FILES + 1).to_string());
}

async fn who_fills_a_volume_dies_with_its_supervisor(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let spec = full_spec(&case).await;
    runtime.pull_image(&spec.image.name).await.unwrap();
    let id = case.id_on(&runtime);
    let creating = {
        let (runtime, id, spec) = (runtime.clone(), id.clone(), spec.clone());
        tokio::spawn(async move { runtime.create_container(&id, &spec).await })
    };
    let data = half_filled(&root).await;
    // Held open, its number is no other's meanwhile.
    let half = std::fs::File::open(&data).unwrap();
    let (supervisor, helper) = supervisor_and_helper(&root);
    kill(supervisor);
    eventually("the helper is gone", || async { gone(helper) }).await;
    let error = creating.await.unwrap().unwrap_err();
    assert!(matches!(&error, AgentError::CreateFailed { id: named, .. } if *named == id.to_string()), "{error:?}");
    let text = error.to_string();
    assert_eq!(error.code(), "supervisor.unreachable", "{text}");
    assert!(text.contains(&format!("{id}: the supervisor ended before the container was made ready")), "{text}");
    assert!(!data.exists(), "the half of a volume stayed");
    runtime.create_container(&id, &spec).await.unwrap();
    assert_ne!(std::fs::metadata(&data).unwrap().ino(), half.metadata().unwrap().ino());
    assert_eq!(count(&data), FILES);
}

async fn creates_at_once_all_get_a_new_volume_whole(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let mut spec = full_spec(&case).await;
    // Two volumes, named in either order: who waits for the other must not be waited for.
    let mut turned = spec.clone();
    spec.storage = vec![named("data", "/data"), named("more", "/more")];
    turned.storage = vec![named("more", "/more"), named("data", "/data")];
    runtime.pull_image(&spec.image.name).await.unwrap();
    let ids: Vec<_> = (0..4).map(|_| case.id_on(&runtime)).collect();
    let runs = ids.iter().enumerate().map(|(number, id)| {
        let (runtime, spec) = (runtime.clone(), if number % 2 == 0 { spec.clone() } else { turned.clone() });
        async move {
            start_on(&*runtime, id, &spec).await.unwrap_or_else(|error| panic!("{id}: {error}"));
            crate::support::case::finish_on(&*runtime, id).await.succeeded()
        }
    });
    for lines in futures_util::future::join_all(runs).await {
        assert_eq!(lines[0], FILES.to_string(), "it saw a part of the volume");
    }
}

async fn a_fenced_stop_says_where_the_data_is(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let a = Root { keeper: false, ..a };
    let (here, other) = (a.open().await.unwrap(), b.open().await.unwrap());
    let id = with_volume(&case, &here).await;
    exec_ok(&here, &id, "echo unsynced > /data/file").await;
    let mut take_over = spec(&case, IDLE).await;
    let StorageSpec::Named { take_over: flag, .. } = &mut take_over.storage[0] else { unreachable!("a named volume") };
    *flag = true;
    start_on(&*other, &case.id_on(&other), &take_over).await.unwrap();
    let said = berth(&a, &["stop", &id.to_string()]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!said.stderr.contains("not durable"), "it is in S3: {said:?}");
    assert!(said.stderr.contains("no longer owns it") && said.stderr.contains("kept as generation"), "{said:?}");
    // Where it says.
    let number = said.stderr.split("--generation ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    let to = case.suite.dir.path().join("branch");
    let to = to.to_str().unwrap();
    berth(&a, &["volume", "restore", "data", "--generation", &number, "--to", to]).await.succeeded();
    assert_eq!(std::fs::read_to_string(Path::new(to).join("file")).unwrap(), "unsynced\n");
}

async fn mounted_read_only_and_writable_it_is_claimed(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let mut spec = spec(&case, IDLE).await;
    let StorageSpec::Named { readonly, .. } = &mut spec.storage[0] else { unreachable!("a named volume") };
    *readonly = true;
    spec.storage.push(named("data", "/writable"));
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &spec).await.unwrap();
    assert!(runtime.volume_status("data").await.unwrap().owner.is_some(), "written to without a claim");
    exec_ok(&runtime, &id, "echo x > /writable/file; cat /data/file; ! echo y > /data/file").await;
    runtime.stop_container(&id, STOP).await.unwrap();
    // By the stop; by the keeper, if the server was busy.
    let durable = || async { runtime.volume_status("data").await.unwrap().durable_at.is_some() };
    eventually("it is durable", durable).await;
}

async fn a_start_that_fails_gives_its_volume_back_and_says_why(case: Case) {
    let (first, second) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (here, there) = (first.open().await.unwrap(), second.open().await.unwrap());
    let source = case.suite.dir.path().join("bound-and-gone");
    std::fs::create_dir(&source).unwrap();
    let mut spec = spec(&case, "echo kept > /data/file").await;
    let bound = StorageSpec::Bind { source: source.display().to_string(), target: "/bound".into(), readonly: false };
    spec.storage.push(bound);
    let id = case.id_on(&here);
    start_on(&*here, &id, &spec).await.unwrap();
    assert_eq!(here.wait_container(&id).await, Ok(0));
    here.stop_container(&id, STOP).await.unwrap();
    std::fs::remove_dir(&source).unwrap();
    let error = here.start_container(&id).await.unwrap_err();
    let named = source.display().to_string();
    assert!(error.to_string().contains(&named), "{error}");
    let state = here.container_state(&id).await.unwrap();
    assert!(matches!(&state, ContainerState::Failed { reason } if reason.contains(&named)), "{state:?}");
    let other = with_volume(&case, &there).await;
    assert_eq!(exec_ok(&there, &other, "cat /data/file").await, "kept\n");
    let told = berth(&first, &["inspect", &id.to_string()]).await.json();
    assert_eq!(told[0]["earlier_attempts"][0]["outcome"]["exit_code"], 0, "{told}");
}

async fn a_start_that_is_killed_gives_its_volume_back_while_a_keeper_runs(case: Case) {
    let (first, second) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (here, there) = (first.open().await.unwrap(), second.open().await.unwrap());
    let id = case.id_on(&here);
    let mut spec = spec(&case, "echo kept > /data/file").await;
    spec.network.mode = NetworkMode::Bridge;
    start_on(&*here, &id, &spec).await.unwrap();
    assert_eq!(here.wait_container(&id).await, Ok(0));
    here.stop_container(&id, STOP).await.unwrap();
    let mut agent = Agent::start(&first, &[]).await;
    // Once it has its volume it takes the network's address.
    let leases = std::fs::File::open(first.run_dir.join("leases/bridge/lock")).unwrap();
    leases.lock().unwrap();
    agent.send(&Request::Start { id: id.clone() }).await;
    let claimed = || async {
        let told = berth(&second, &["volume", "history", "data", "--all", "--json"]).await.json();
        told.as_array().unwrap().iter().filter(|entry| entry["kind"] == "claim").count() == 2
    };
    eventually("it has claimed its volume", claimed).await;
    agent.kill().await;
    drop(leases);
    eventually("the claim is given back", || async {
        let id = case.id_on(&there);
        start_on(&*there, &id, &spec).await.is_ok()
    })
    .await;
}
