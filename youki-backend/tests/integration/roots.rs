//! What a root owns on its host, and what becomes of it where that is another's, or the disk has failed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use runtime_core::spec::{RestartKind, RestartPolicy};
use runtime_core::{ContainerId, ContainerState, WaitReason};

use crate::full_disk;
use crate::support::Case;
use crate::support::berth::{berth, command};
use crate::support::case::{IDLE, eventually, pids_beneath, soon, start_on};
use crate::support::process::{gone, kill, supervisor};
use crate::support::root::Root;

crate::tests![
    a_second_root_on_one_cgroup_parent_is_refused,
    a_second_root_on_one_run_directory_is_refused,
    another_run_directory_for_one_root_is_refused_and_its_containers_run_on,
    a_copy_of_a_root_leaves_the_originals_containers_alone,
    on_a_disk_that_became_read_only_containers_are_stopped_and_their_logs_read,
    after_a_reboot_containers_are_known_to_have_stopped_and_their_volumes_are_synced,
    a_power_cut_costs_no_outcome_that_was_told_before,
    a_power_cut_costs_no_outcome_between_restarts,
    records_that_a_power_cut_has_emptied_cost_an_outcome_and_no_container,
    a_power_cut_after_its_first_open_leaves_a_root_that_says_what_it_is,
    a_version_file_that_cannot_be_read_is_named_and_can_be_put_back,
    after_a_reboot_that_made_its_layers_doubtful_a_container_starts,
];

async fn a_second_root_on_one_cgroup_parent_is_refused(case: Case) {
    let first = case.root("first");
    let _first = first.open().await.unwrap();
    let mut second = case.root("second");
    second.cgroup_parent = first.cgroup_parent.clone();
    let error = second.open().await.err().expect("a second root on one cgroup parent was opened");
    assert!(error.to_string().contains(&first.cgroup_parent), "{error}");
    assert!(!second.dir.exists() && !second.run_dir.exists(), "a refused root was made");
    // Also one whose path is not whole.
    let mut berth = command(&Root { dir: "relative".into(), ..second });
    let there = tempfile::tempdir().unwrap();
    let said = berth.arg("ps").current_dir(there.path()).output().await.unwrap();
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && told.contains(&first.cgroup_parent), "{told}");
    assert_eq!(std::fs::read_dir(there.path()).unwrap().count(), 0, "a refused root was made");
}

async fn a_second_root_on_one_run_directory_is_refused(case: Case) {
    let first = case.root("first");
    drop(first.open().await.unwrap());
    let second = Root { run_dir: first.run_dir.clone(), ..case.root("second") };
    let error = second.open().await.err().expect("a second root on one run directory was opened").to_string();
    let (run_dir, root) = (first.run_dir.to_str().unwrap(), first.dir.to_str().unwrap());
    assert!(error.contains(run_dir) && error.contains(root) && error.contains("--run-dir"), "{error}");
    assert!(!second.dir.exists(), "a refused root was made");
    // A root that is gone has none. What it has on the host nobody would find any more.
    youki_backend::YoukiRuntime::open(first.config()).await.unwrap().dismantle().await.unwrap();
    first.wipe();
    drop(second.open().await.unwrap());
    youki_backend::YoukiRuntime::open(second.config()).await.unwrap().dismantle().await.unwrap();
}

async fn another_run_directory_for_one_root_is_refused_and_its_containers_run_on(case: Case) {
    let root = case.root("used");
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &case.script(IDLE).await).await.unwrap();
    let other = Root { run_dir: case.root("elsewhere").run_dir, dir: root.dir.clone(), ..case.root("same") };
    let (code, message) = berth(&other, &["--json", "ps"]).await.refused(2);
    let named = [&root.dir, &root.run_dir].iter().all(|path| message.contains(path.to_str().unwrap()));
    assert!(code == "config.invalid" && named && message.contains("--run-dir"), "{code}: {message}");
    assert!(!other.run_dir.exists(), "a refused run directory was made");
    assert_eq!(runtime.container_state(&id).await, Ok(ContainerState::Running));
    // Through a link it is the same.
    let link = case.suite.dir.path().join("link-to-used");
    std::os::unix::fs::symlink(&root.run_dir, &link).unwrap();
    let linked =
        Root { run_dir: link, dir: root.dir.clone(), cgroup_parent: root.cgroup_parent.clone(), ..case.root("linked") };
    assert!(berth(&linked, &["ps", "-q"]).await.succeeded().contains(&id.to_string()));
    runtime.remove_container(&id).await.unwrap();
}

async fn a_copy_of_a_root_leaves_the_originals_containers_alone(case: Case) {
    let original = case.root("original");
    let runtime = original.open().await.unwrap();
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &case.script(IDLE).await).await.unwrap();
    let copy = case.root("copy");
    let copied = Command::new("cp").arg("-a").arg(&original.dir).arg(&copy.dir).status().unwrap();
    assert!(copied.success());
    let second = copy.open().await.unwrap();
    let state = second.container_state(&id).await.unwrap();
    assert!(matches!(state, ContainerState::Failed { .. }), "the copy's has no process: {state:?}");
    second.remove_container(&id).await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    assert_eq!(runtime.exec(&id, &["true".to_owned()]).await.unwrap().0, 0);
    runtime.remove_container(&id).await.unwrap();
}

async fn on_a_disk_that_became_read_only_containers_are_stopped_and_their_logs_read(case: Case) {
    let (disk, root, runtime) = full_disk::small(&case).await;
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &case.script("echo logged; while :; do sleep 1; done").await).await.unwrap();
    eventually("it has written", || async { !runtime.get_logs(&id).await.unwrap().is_empty() }).await;
    let supervisor = supervisor(&*runtime, &id).await;
    drop(runtime);
    // As the kernel does when it finds the file system damaged.
    let aborted = Command::new("mount").args(["-o", "remount,abort"]).arg(&root.dir).status().unwrap();
    assert!(aborted.success());
    eventually("it takes nothing", || async { std::fs::write(root.dir.join("probe"), "").is_err() }).await;
    // Older kernels let files that are there be opened all the same, and then nobody sees it who has nothing to write.
    let is_seen = std::fs::OpenOptions::new().write(true).open(root.dir.join("berth-root.json")).is_err();
    let name = id.to_string();
    for command in [&["logs", name.as_str()][..], &["ps"], &["inspect", &name], &["exec", &name, "true"]] {
        let said = berth(&root, command).await;
        assert_eq!(said.code, 0, "{command:?}: {said:?}");
        assert!(said.stderr.contains("read-only") || command[0] == "exec" || !is_seen, "{said:?}");
    }
    assert_eq!(berth(&root, &["logs", &name]).await.stdout, "logged\n");
    let stopped = soon("stop", berth(&root, &["stop", "-t", "0", &name])).await;
    assert_eq!(stopped.code, 0, "{stopped:?}");
    let processes = || root.cgroups_of(&id).iter().any(|dir| !pids_beneath(dir).is_empty());
    eventually("its processes are gone", || async { !processes() }).await;
    // Its supervisor waits for a disk that takes its end, and nothing can be removed from this one.
    kill(supervisor);
    eventually("the supervisor is gone", || async { gone(supervisor) }).await;
    drop(disk);
    std::fs::remove_dir_all(&root.run_dir).unwrap();
    root.cgroups_of(&id).iter().for_each(|dir| remove_cgroup(dir));
}

/// With what a killed supervisor left of an exec beneath it.
fn remove_cgroup(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    std::fs::remove_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
}

/// What a reboot leaves: the data root, with another boot's id in the records, and nothing else.
async fn after_a_reboot_containers_are_known_to_have_stopped_and_their_volumes_are_synced(case: Case) {
    let root = case.root_with_s3("rebooted", "reboot").await;
    // A keeper would see the supervisor end.
    let runtime = Root { keeper: false, ..root.clone() }.open().await.unwrap();
    let id = case.id_on(&runtime);
    let mut spec = case.script(&format!("echo kept > /data/file; {IDLE}")).await;
    spec.storage = vec![crate::volumes::named("reboot-data", "/data")];
    start_on(&*runtime, &id, &spec).await.unwrap();
    let written = ["test", "-s", "/data/file"].map(str::to_owned);
    eventually("it has written", || async { runtime.exec(&id, &written).await.unwrap().0 == 0 }).await;
    let supervisor = supervisor(&*runtime, &id).await;
    drop(runtime);
    kill(supervisor);
    let cgroups = root.cgroups_of(&id);
    eventually("all its processes are gone", || async {
        gone(supervisor) && cgroups.iter().all(|dir| pids_beneath(dir).is_empty())
    })
    .await;
    cgroups.iter().for_each(|dir| remove_cgroup(dir));
    std::fs::remove_dir_all(&root.run_dir).unwrap();
    in_another_boot(&root.dir.join("containers").join(id.to_string()).join("container.json"));

    let runtime = root.open().await.unwrap();
    let state = runtime.container_state(&id).await.unwrap();
    assert_eq!(state, ContainerState::Failed { reason: "lost: host rebooted".to_owned() });
    let outcome = runtime.wait_outcome(&id).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::RuntimeError));
    eventually("its volume is durable", || async {
        runtime.volume_status("reboot-data").await.is_ok_and(|status| status.durable_at.is_some())
    })
    .await;
    runtime.start_container(&id).await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    runtime.remove_container(&id).await.unwrap();
}

async fn records_that_a_power_cut_has_emptied_cost_an_outcome_and_no_container(case: Case) {
    let root = case.root("cut-off");
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &case.script("echo x >> /attempts; exit $(wc -l < /attempts)").await).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(1));
    runtime.start_container(&id).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(2));
    drop(runtime);
    let dir = root.dir.join("containers").join(id.to_string());
    in_another_boot(&dir.join("container.json"));
    for name in ["exit.json", "attempts.json"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    let runtime = root.open().await.unwrap();
    let state = runtime.container_state(&id).await.unwrap();
    assert_eq!(state, ContainerState::Failed { reason: "lost: host rebooted".to_owned() });
    runtime.start_container(&id).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(3), "its root is there");
}

/// Makes the record of a container that of a former boot.
fn in_another_boot(record: &Path) {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = std::fs::read_to_string(record).unwrap();
    assert!(text.contains(boot_id.trim()));
    std::fs::write(record, text.replace(boot_id.trim(), "00000000-0000-0000-0000-000000000000")).unwrap();
}

async fn a_power_cut_costs_no_outcome_that_was_told_before(case: Case) {
    let (disk, root, runtime) = full_disk::small(&case).await;
    let id = full_disk::the_container();
    start_on(&*runtime, &id, &case.script("exit 7").await).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(7));
    until_on_disk(&root, &disk, &id, &["\"exit_code\":7"]).await;
    runtime.remove_container(&id).await.unwrap();
    assert!(!root.dir.join("containers").join(id.to_string()).exists());
}

/// Its supervisor, and the socket by which the keeper knows it, stay between attempts.
async fn a_power_cut_costs_no_outcome_between_restarts(case: Case) {
    let (disk, root, runtime) = full_disk::small(&case).await;
    let id = full_disk::the_container();
    let delay = Some(Duration::from_secs(600));
    let mut spec = case.script("sleep 2; exit 7").await;
    spec.restart_policy = RestartPolicy { kind: RestartKind::Always, delay, ..RestartPolicy::default() };
    start_on(&*runtime, &id, &spec).await.unwrap();
    // What the start has is synced by then.
    assert_eq!(runtime.wait_container(&id).await, Ok(7));
    until_on_disk(&root, &disk, &id, &["\"exit_code\":7", "\"restarting\":true"]).await;
    runtime.remove_container(&id).await.unwrap();
}

/// Returns when a cut of the power would leave the container's record whole, and `told` in how its last attempt ended.
async fn until_on_disk(root: &Root, disk: &full_disk::SmallDisk, id: &ContainerId, told: &[&str]) {
    let (dir, begin) = (Path::new("containers").join(id.to_string()), std::time::Instant::now());
    let mut cuts = 0;
    loop {
        cuts += 1;
        let place = root.dir.with_file_name(format!("{}-after-a-power-cut-{cuts}", root.name));
        let cut = disk.after_a_power_cut(&place);
        // Of a copy that could not be mounted there is nothing to read.
        let read = |name: &str| std::fs::read_to_string(place.join(&dir).join(name)).unwrap_or_default();
        let (record, exit) = (read("container.json"), read("exit.json"));
        drop(cut);
        if record.ends_with("}\n") && told.iter().all(|told| exit.contains(told)) {
            return;
        }
        // The kernel by itself takes some 30 s.
        assert!(begin.elapsed() < Duration::from_secs(15), "after {:?}: {record:?} {exit:?}", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn a_power_cut_after_its_first_open_leaves_a_root_that_says_what_it_is(case: Case) {
    let (disk, root, runtime) = full_disk::small(&case).await;
    let place = root.dir.with_file_name(format!("{}-after-a-power-cut", root.name));
    // A copy beside which something was written cannot always be mounted.
    let cut = (0..5).find_map(|_| disk.after_a_power_cut(&place)).expect("a copy of the disk");
    let version = std::fs::read_to_string(place.join("berth-root.json")).unwrap_or_default();
    drop((cut, runtime));
    assert!(version.starts_with("{\"format\":1,") && version.ends_with("}\n"), "{version:?}");
}

async fn a_version_file_that_cannot_be_read_is_named_and_can_be_put_back(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await;
    berth(&root, &["create", "--name", "there", "--network", "none", image, "true"]).await.succeeded();
    let file = root.dir.join("berth-root.json");
    for text in ["", "{", "{}", "{\"format\":\"one\"}", "\0\0\0\0"] {
        std::fs::write(&file, text).unwrap();
        let said = berth(&root, &["--json", "ps", "-a"]).await;
        let (code, message) = said.refused(1);
        assert!(code == "root.corrupt" && message.contains(file.to_str().unwrap()), "{text:?}: {code}: {message}");
        assert!(said.stderr.contains(r#"{\"format\":1}"#), "no word of what it holds: {said:?}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "it was written to");
    }
    std::fs::write(&file, r#"{"format":1}"#).unwrap();
    assert_eq!(berth(&root, &["ps", "-aq"]).await.succeeded(), "there-rep-0\n");
    berth(&root, &["rm", "there"]).await.succeeded();
}

/// As where the power was cut before the layers of a pull were on the disk.
async fn after_a_reboot_that_made_its_layers_doubtful_a_container_starts(case: Case) {
    let root = case.root("doubtful");
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    let spec = case.script(IDLE).await;
    start_on(&*runtime, &id, &spec).await.unwrap();
    soon("stop", runtime.stop_container(&id, std::time::Duration::ZERO)).await.unwrap();
    drop(runtime);
    let layers = || {
        let of_kind = |kind: &'static str| {
            let entries = std::fs::read_dir(root.dir.join("layers").join(kind)).unwrap().flatten();
            entries.map(move |entry| format!("{kind}-{}", entry.file_name().display()))
        };
        ["diff", "chain"].into_iter().flat_map(of_kind).collect::<Vec<_>>()
    };
    let reboot = || {
        let marks = root.dir.join("layers/unsynced/00000000-0000-0000-0000-000000000000");
        std::fs::create_dir_all(&marks).unwrap();
        layers().iter().for_each(|layer| std::fs::write(marks.join(layer), "").unwrap());
    };
    assert!(!layers().is_empty());
    reboot();
    let runtime = root.open().await.unwrap();
    assert!(layers().is_empty(), "they were trusted");
    soon("start", runtime.start_container(&id)).await.unwrap();
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    soon("stop", runtime.stop_container(&id, std::time::Duration::ZERO)).await.unwrap();
    drop(runtime);
    // Its image is there for as long as it is, by whatever name.
    berth(&root, &["rmi", "-f", &spec.image.name]).await.succeeded();
    reboot();
    let runtime = root.open().await.unwrap();
    soon("start", runtime.start_container(&id)).await.unwrap();
    soon("stop", runtime.stop_container(&id, std::time::Duration::ZERO)).await.unwrap();
    drop(runtime);
    // There is nothing left to make them of.
    for blob in std::fs::read_dir(root.dir.join("images/blobs/sha256")).unwrap().flatten() {
        std::fs::remove_file(blob.path()).unwrap();
    }
    reboot();
    let runtime = root.open().await.unwrap();
    let error = soon("start", runtime.start_container(&id)).await.unwrap_err();
    assert!(error.code() == "image.not_present" && error.to_string().contains("sha256:"), "{error}");
    runtime.pull_image(&spec.image.name).await.unwrap();
    soon("start", runtime.start_container(&id)).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
}
