//! Who works with a container's network while others want something of it.

use std::fs::File;
use std::path::Path;

use runtime_core::spec::NetworkMode;
use runtime_core::{ContainerId, ServiceSpec};

use crate::networks::published;
use crate::support::Case;
use crate::support::case::{IDLE, start_on};
use crate::support::pace::patience;
use crate::support::root::Root;

crate::tests![
    who_waits_for_a_lock_of_the_networks_holds_up_no_other_task,
    who_waits_for_a_lock_of_the_networks_holds_up_no_stop,
    who_is_being_started_keeps_its_ports,
    a_start_takes_the_name_of_before_away_before_it_makes_the_hosts_file,
    an_attempt_that_is_undone_keeps_no_address,
];

/// Creates that wait at once: more than may make links.
const WAITING: usize = 6;

/// A lock file that somebody has.
fn taken(path: &Path) -> File {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    file.lock().unwrap();
    file
}

/// Returns once this process waits `often` for a lock that is [`taken`]; `work`, which is to do that, must not end before.
async fn until_waited_for<T>(lock: &Path, often: usize, work: &tokio::task::JoinHandle<T>) {
    let is_it = |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|file| file == lock);
    let begin = std::time::Instant::now();
    // Who waits has it open, as the test has.
    while std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter(is_it).count() <= often {
        let is_late = begin.elapsed() > patience(std::time::Duration::from_secs(60));
        assert!(!work.is_finished() && !is_late, "it does not wait");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// A root where nobody sees an end that is not looked at.
fn unseen(case: &Case) -> Root {
    Root { keeper: false, ..case.root("held") }
}

async fn on_bridge(case: &Case, script: &str, port: Option<u16>) -> ServiceSpec {
    let mut spec = case.script(script).await;
    spec.network.mode = NetworkMode::Bridge;
    spec.port_mappings = port.map(|port| published(Some(port), 80, None)).into_iter().collect();
    spec
}

fn leases_of(root: &Root, id: &ContainerId) -> Vec<String> {
    let entries = std::fs::read_dir(root.run_dir.join("leases/bridge")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(&format!("@{id}"))).collect()
}

async fn who_waits_for_a_lock_of_the_networks_holds_up_no_other_task(case: Case) {
    let root = unseen(&case);
    let spec = on_bridge(&case, IDLE, Some(case.suite.share.port())).await;
    let ids = [case.id_in(&root), case.id_in(&root)];
    // One thread for all, as the command has: a task that keeps it would keep this test's, too.
    let alone = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let agent = root.open().await.unwrap();
            agent.pull_image_with_policy(&spec.image.name, spec.image.pull_policy, None).await.unwrap();
            for (lock, id) in ["leases/bridge/lock", "ports/.lock"].into_iter().zip(ids) {
                let lock = root.run_dir.join(lock);
                let held = taken(&lock);
                let (other, spec, name) = (agent.clone(), spec.clone(), id.clone());
                let create = tokio::spawn(async move { other.create_container(&name, &spec).await });
                until_waited_for(&lock, 1, &create).await;
                drop(held);
                create.await.unwrap().unwrap();
                agent.remove_container(&id).await.unwrap();
            }
        });
    };
    tokio::task::spawn_blocking(alone).await.unwrap();
}

async fn who_waits_for_a_lock_of_the_networks_holds_up_no_stop(case: Case) {
    let root = unseen(&case);
    let agent = root.open().await.unwrap();
    let runs = case.id_on(&agent);
    let spec = on_bridge(&case, IDLE, None).await;
    start_on(&*agent, &runs, &spec).await.unwrap();
    // Who removes the bridge has it, and who attaches waits for it.
    let lock = root.run_dir.join("leases/bridge/bridge.lock");
    let held = taken(&lock);
    let ids: Vec<_> = (0..WAITING).map(|_| case.id_on(&agent)).collect();
    let other = agent.clone();
    let creates = tokio::spawn(async move {
        futures_util::future::join_all(ids.iter().map(|id| other.create_container(id, &spec))).await
    });
    until_waited_for(&lock, WAITING, &creates).await;
    agent.stop_container(&runs, std::time::Duration::ZERO).await.unwrap();
    agent.remove_container(&runs).await.unwrap();
    assert!(!creates.is_finished(), "they waited no longer");
    drop(held);
    for created in creates.await.unwrap() {
        created.unwrap();
    }
}

async fn who_is_being_started_keeps_its_ports(case: Case) {
    let root = unseen(&case);
    let agent = root.open().await.unwrap();
    let spec = on_bridge(&case, "true", Some(case.suite.share.port())).await;
    let (id, other) = (case.id_on(&agent), case.id_on(&agent));
    start_on(&*agent, &id, &spec).await.unwrap();
    agent.wait_container(&id).await.unwrap();
    let ports = root.run_dir.join("ports").join(id.to_string());
    // As a start has it, which reserves its ports before its attempt is on record.
    let starting = taken(&root.run_dir.join("locks").join(id.to_string()));
    let refused = agent.create_container(&other, &spec).await.unwrap_err().to_string();
    assert!(refused.contains("[port.taken]") && refused.contains(&id.to_string()), "{refused}");
    assert!(ports.exists(), "they are taken from it");
    drop(starting);
    agent.create_container(&other, &spec).await.unwrap();
    assert!(!ports.exists(), "an ended one holds them");
}

async fn a_start_takes_the_name_of_before_away_before_it_makes_the_hosts_file(case: Case) {
    let root = unseen(&case);
    let agent = root.open().await.unwrap();
    let id = case.id_on(&agent);
    start_on(&*agent, &id, &on_bridge(&case, "true", None).await).await.unwrap();
    agent.wait_container(&id).await.unwrap();
    let named = || {
        let entries = std::fs::read_dir(root.run_dir.join("names/bridge")).unwrap();
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(&format!("@{id}")))
    };
    assert!(named(), "nobody looked");
    let lock = root.run_dir.join("leases/bridge/lock");
    let held = taken(&lock);
    let (other, name) = (agent.clone(), id.clone());
    let start = tokio::spawn(async move { other.start_container(&name).await });
    until_waited_for(&lock, 1, &start).await;
    assert!(!named(), "another's join may write its hosts file");
    drop(held);
    start.await.unwrap().unwrap();
}

async fn an_attempt_that_is_undone_keeps_no_address(case: Case) {
    let root = unseen(&case);
    let agent = root.open().await.unwrap();
    let port = case.suite.share.port();
    let id = case.id_on(&agent);
    start_on(&*agent, &id, &on_bridge(&case, "true", Some(port)).await).await.unwrap();
    agent.wait_container(&id).await.unwrap();
    // After a reboot nobody has an address, and another may come first.
    let lease = leases_of(&root, &id).remove(0);
    let leases = root.run_dir.join("leases/bridge");
    let others = leases.join(lease.replace(&id.to_string(), "other-rep-0"));
    std::fs::rename(leases.join(&lease), &others).unwrap();
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let refused = agent.start_container(&id).await.unwrap_err().to_string();
    assert!(refused.contains("[port.taken]"), "{refused}");
    assert_eq!(leases_of(&root, &id), Vec::<String>::new());
    drop(listener);
    agent.start_container(&id).await.unwrap();
    assert!(leases_of(&root, &id).len() == 1 && others.exists());
    agent.wait_container(&id).await.unwrap();
    std::fs::remove_file(others).unwrap();
}
