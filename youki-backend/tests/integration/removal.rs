//! A removal answers when everything but the files is free; those are deleted behind it, whoever dies.

use std::path::Path;

use runtime_core::AgentError;
use runtime_core::spec::StorageSpec;

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::case::eventually;

crate::tests![
    it_answers_before_the_files_are_deleted,
    what_a_killed_agent_was_deleting_the_next_one_deletes,
    one_whose_record_is_damaged_hides_no_other_and_is_removed_whole,
    one_whose_ports_are_damaged_holds_up_no_other_and_is_removed_whole,
    what_a_killed_create_left_in_the_run_directory_goes_at_the_next_open,
];

/// Deleting them takes some hundred times as long as looking whether they are there.
const MANY_FILES: &str = "mkdir /many; cd /many; i=0; while [ $i -lt 30000 ]; do : > $i; i=$((i+1)); done";

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

async fn it_answers_before_the_files_are_deleted(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (id, spec) = (case.id_on(&runtime), case.script(MANY_FILES).await);
    crate::support::case::start_on(&*runtime, &id, &spec).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(0));
    runtime.remove_container(&id).await.unwrap();
    let left = entries(&root.dir.join("trash"));
    assert_eq!(left, 1, "it waited for the deletion, or this machine deletes 30,000 files at once");
    assert_eq!(entries(&root.dir.join("containers")), 0);
    assert!(matches!(runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    // Its name is free, and so is what it had.
    let again = case.script("[ ! -e /many ]").await;
    crate::support::case::start_on(&*runtime, &id, &again).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(0));
    runtime.remove_container(&id).await.unwrap();
    eventually("all is deleted", || async { entries(&root.dir.join("trash")) == 0 }).await;
}

async fn what_a_killed_agent_was_deleting_the_next_one_deletes(case: Case) {
    let root = case.root("root");
    let mut agent = Agent::start(&root, &[]).await;
    let (id, spec) = (case.id_in(&root), case.script(MANY_FILES).await);
    agent.ask(&Request::Run { id: id.clone(), spec: Box::new(spec) }).await.unwrap();
    agent.ask(&Request::Wait { id: id.clone() }).await.unwrap();
    agent.ask(&Request::Remove { id: id.clone() }).await.unwrap();
    agent.kill().await;
    assert_eq!(entries(&root.dir.join("trash")), 1, "it was killed too late");
    let runtime = root.open().await.unwrap();
    assert!(matches!(runtime.container_state(&id).await, Err(AgentError::NotFound { .. })));
    eventually("all is deleted", || async { entries(&root.dir.join("trash")) == 0 }).await;
}

async fn one_whose_ports_are_damaged_holds_up_no_other_and_is_removed_whole(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (damaged, other) = (case.id_on(&runtime), case.id_on(&runtime));
    let mut spec = case.spec(&["sleep", "1000"]).await;
    spec.network.mode = runtime_core::spec::NetworkMode::Bridge;
    spec.port_mappings = vec![crate::networks::published(None, 80, None)];
    crate::support::case::start_on(&*runtime, &damaged, &spec).await.unwrap();
    let file = root.run_dir.join("ports").join(damaged.to_string());
    std::fs::write(&file, "x{").unwrap();
    drop(root.open().await.unwrap());
    crate::support::case::start_on(&*runtime, &other, &spec).await.unwrap();
    runtime.remove_container(&damaged).await.unwrap();
    assert!(!file.exists(), "it would be met by every open");
    let port = runtime.inspect_detailed(&other).await.unwrap().ports[0].host_port.unwrap();
    let rules = std::process::Command::new("nft")
        .args(["list", "map", "inet", &crate::support::leftovers::table(&root), "tcp4"])
        .output()
        .unwrap();
    let rules = String::from_utf8(rules.stdout).unwrap();
    let led = rules.split_once("elements = {").unwrap().1;
    assert!(led.matches(" : ").count() == 1 && led.contains(&format!(" {port} : ")), "{rules}");
    // Nobody knows of a container that one is left of.
    std::fs::write(root.run_dir.join("ports/gone-rep-0"), "x{").unwrap();
    drop(root.open().await.unwrap());
    assert!(!root.run_dir.join("ports/gone-rep-0").exists());
    runtime.remove_container(&other).await.unwrap();
}

async fn one_whose_record_is_damaged_hides_no_other_and_is_removed_whole(case: Case) {
    let root = case.root("root");
    let runtime = root.open().await.unwrap();
    let (damaged, other) = (case.id_on(&runtime), case.id_on(&runtime));
    for id in [&damaged, &other] {
        let mut spec = case.spec(&["sleep", "1000"]).await;
        spec.network.mode = runtime_core::spec::NetworkMode::Bridge;
        let named = StorageSpec::Named {
            name: "data".into(),
            target: "/data".into(),
            readonly: false,
            tier: None,
            size: None,
            take_over: false,
        };
        spec.storage = vec![named];
        crate::support::case::start_on(&*runtime, id, &spec).await.unwrap();
    }
    let pid = runtime.get_container_pid(&damaged).await.unwrap().unwrap();
    let record = root.dir.join("containers").join(damaged.to_string()).join("container.json");
    for text in ["{", "[1, 2]", "not at all"] {
        std::fs::write(&record, text).unwrap();
        drop(root.open().await.unwrap());
        let listed = runtime.list_containers().await.unwrap();
        assert_eq!(listed.into_iter().map(|one| one.id).collect::<Vec<_>>(), std::slice::from_ref(&other), "{text}");
        let error = runtime.container_state(&damaged).await.unwrap_err();
        assert_eq!(error.code(), "root.corrupt", "{text}: {error}");
    }
    runtime.remove_container(&damaged).await.unwrap();
    eventually("its process is gone", || async { !Path::new(&format!("/proc/{pid}")).exists() }).await;
    assert!(root.cgroups_of(&damaged).is_empty());
    assert!(matches!(runtime.container_state(&damaged).await, Err(AgentError::NotFound { .. })));
    // The volume has one user left, and the name is free.
    assert!(runtime.get_container_ip(&other).await.unwrap().is_some());
    crate::support::case::start_on(&*runtime, &damaged, &case.spec(&["true"]).await).await.unwrap();
    assert_eq!(runtime.wait_container(&damaged).await, Ok(0));
    for id in [&damaged, &other] {
        runtime.remove_container(id).await.unwrap();
    }
}

async fn what_a_killed_create_left_in_the_run_directory_goes_at_the_next_open(case: Case) {
    let root = case.root("root");
    drop(root.open().await.unwrap());
    let left = root.run_dir.join("containers/never-made-rep-0");
    std::fs::create_dir_all(left.join("state")).unwrap();
    drop(root.open().await.unwrap());
    assert!(!left.exists());
    assert!(!root.run_dir.join("locks/never-made-rep-0").exists());
}
