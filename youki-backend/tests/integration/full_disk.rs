//! A root whose disk is full: what runs runs on, every question is answered, and a removal makes room.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime_core::spec::{ResourcesSpec, RestartKind};
use runtime_core::{ContainerId, ContainerState, Runtime, ServiceSpec, WaitReason};

use crate::support::Case;
use crate::support::berth::berth;
use crate::support::case::{eventually, soon, start_on};
use crate::support::disk::Disk;
use crate::support::image::{Image, LayerBuilder, digest_of};
use crate::support::process::{cpu_time, gone, kill, supervisor};
use crate::support::root::Root;

crate::tests![
    while_an_end_cannot_be_written_stop_wait_kill_and_state_tell_it_and_remove_makes_room,
    an_end_that_could_not_be_written_is_on_record_once_there_is_room,
    with_the_supervisor_dead_stop_says_runtime_error_and_remove_frees_all,
    the_supervisor_neither_dies_nor_spins,
    a_restart_waits_for_room_and_a_stop_does_not,
    a_pull_or_load_without_room_names_image_layer_and_root,
    an_update_that_cannot_be_written_changes_nothing,
    after_a_reboot_a_root_opens,
    images_can_be_removed_and_pruned,
];

/// A file system of its own at a root's place. It goes with this value.
pub struct SmallDisk {
    root: Root,
    disk: Disk,
}

impl SmallDisk {
    fn mount(root: &Root) -> Self {
        Self { root: root.clone(), disk: Disk::mount(&root.dir, 64 << 20) }
    }

    /// What a power cut now would leave of it.
    pub fn after_a_power_cut(&self, place: &std::path::Path) -> Option<Disk> {
        self.disk.after_a_power_cut(place)
    }

    /// Takes all room there is; returns the file that holds it.
    pub fn fill(&self) -> PathBuf {
        self.disk.fill()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody will remove it any more.
            let procs = self.root.cgroups_of(&the_container()).into_iter().map(|dir| dir.join("cgroup.procs"));
            let pids: Vec<u32> = procs
                .filter_map(|file| fs::read_to_string(file).ok())
                .flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
                .collect();
            pids.into_iter().filter(|pid| !gone(*pid)).for_each(kill);
        }
    }
}

pub async fn small(case: &Case) -> (SmallDisk, Root, Arc<dyn Runtime>) {
    let root = case.root("small");
    let disk = SmallDisk::mount(&root);
    let runtime = root.open().await.unwrap();
    (disk, root, runtime)
}

pub fn the_container() -> ContainerId {
    ContainerId::new("full", 0)
}

async fn started(case: &Case, runtime: &Arc<dyn Runtime>, script: &str) -> ContainerId {
    let id = the_container();
    let spec: ServiceSpec = case.script(script).await;
    start_on(&**runtime, &id, &spec).await.unwrap_or_else(|error| panic!("{id}: {error}"));
    id
}

const UNTIL_TERM: &str = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done";

/// Waits until attempt `attempt` has said so: before, a first process ignores TERM.
async fn up(runtime: &Arc<dyn Runtime>, id: &ContainerId, attempt: usize) {
    eventually("it is up", || async { runtime.get_logs(id).await.unwrap().len() >= attempt }).await;
}

async fn while_an_end_cannot_be_written_stop_wait_kill_and_state_tell_it_and_remove_makes_room(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let id = started(&case, &runtime, UNTIL_TERM).await;
    up(&runtime, &id, 1).await;
    let supervisor = supervisor(&*runtime, &id).await;
    let waiting = {
        let (runtime, id) = (runtime.clone(), id.clone());
        tokio::spawn(async move { runtime.wait_outcome(&id).await })
    };
    let filler = disk.fill();
    soon("stop", runtime.stop_container(&id, Duration::from_secs(10))).await.unwrap();
    assert!(!root.dir.join("containers").join(id.to_string()).join("exit.json").exists(), "the disk was not full");
    let outcome = soon("the one who waited", waiting).await.unwrap().unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (7, WaitReason::Exited));
    assert_eq!(soon("wait", runtime.wait_outcome(&id)).await.unwrap(), outcome);
    assert_eq!(soon("state", runtime.container_state(&id)).await.unwrap(), ContainerState::Exited { code: 7 });
    soon("a second stop", runtime.stop_container(&id, Duration::ZERO)).await.unwrap();
    let error = soon("kill", runtime.kill_container(&id, None)).await.unwrap_err();
    assert!(error.to_string().contains("exited"), "{error}");
    let error = soon("exec", runtime.exec(&id, &["true".to_owned()])).await.unwrap_err();
    assert!(error.to_string().contains("exited"), "{error}");
    let error = soon("start", runtime.start_container(&id)).await.unwrap_err();
    assert_eq!(error.code(), "disk.full", "{error}");
    assert_eq!(soon("logs", runtime.get_logs(&id)).await.unwrap().len(), 1);
    // Another process is told the same.
    let second = Root { keeper: false, ..root.clone() }.open().await.unwrap();
    assert_eq!(soon("wait elsewhere", second.wait_outcome(&id)).await.unwrap(), outcome);

    soon("remove", runtime.remove_container(&id)).await.unwrap();
    eventually("its supervisor ends", || async { gone(supervisor) }).await;
    let left: Vec<_> = fs::read_dir(root.dir.join("containers")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(root.cgroups_of(&id).is_empty());
    fs::remove_file(filler).unwrap();
}

async fn an_end_that_could_not_be_written_is_on_record_once_there_is_room(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let id = started(&case, &runtime, UNTIL_TERM).await;
    up(&runtime, &id, 1).await;
    let filler = disk.fill();
    soon("stop", runtime.stop_container(&id, Duration::from_secs(10))).await.unwrap();
    let record = root.dir.join("containers").join(id.to_string()).join("exit.json");
    assert!(!record.exists(), "the disk was not full");
    fs::remove_file(filler).unwrap();
    eventually("it is on record", || async { record.exists() }).await;
    // The same container once more.
    soon("start", runtime.start_container(&id)).await.unwrap();
    up(&runtime, &id, 2).await;
    soon("stop", runtime.stop_container(&id, Duration::from_secs(10))).await.unwrap();
    assert_eq!(runtime.wait_container(&id).await, Ok(7));
    runtime.remove_container(&id).await.unwrap();
}

async fn with_the_supervisor_dead_stop_says_runtime_error_and_remove_frees_all(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let id = started(&case, &runtime, UNTIL_TERM).await;
    up(&runtime, &id, 1).await;
    let supervisor = supervisor(&*runtime, &id).await;
    let filler = disk.fill();
    kill(supervisor);
    eventually("the supervisor is dead", || async { gone(supervisor) }).await;
    soon("stop", runtime.stop_container(&id, Duration::from_secs(10))).await.unwrap();
    assert!(!root.dir.join("containers").join(id.to_string()).join("exit.json").exists(), "the disk was not full");
    let outcome = soon("wait", runtime.wait_outcome(&id)).await.unwrap();
    assert_eq!((outcome.exit_code, outcome.reason), (137, WaitReason::RuntimeError));
    let state = soon("state", runtime.container_state(&id)).await.unwrap();
    assert!(matches!(state, ContainerState::Failed { .. }), "{state:?}");
    soon("remove", runtime.remove_container(&id)).await.unwrap();
    let left: Vec<_> = fs::read_dir(root.dir.join("containers")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(root.cgroups_of(&id).is_empty());
    fs::remove_file(filler).unwrap();
}

async fn the_supervisor_neither_dies_nor_spins(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let script = "trap 'exit 7' TERM; echo up; i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.01; done; \
                  echo done >&2; while :; do sleep 0.1; done";
    let id = started(&case, &runtime, script).await;
    up(&runtime, &id, 1).await;
    let supervisor = supervisor(&*runtime, &id).await;
    // Its own log lies there, and the container's, which it writes to again and again.
    let filler = disk.fill();
    soon("stop", runtime.stop_container(&id, Duration::from_secs(10))).await.unwrap();
    let (begin, before) = (Instant::now(), cpu_time(supervisor));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!gone(supervisor), "it died");
    let used = cpu_time(supervisor) - before;
    assert!(used < begin.elapsed() / 20, "it used {used:?} of {:?}", begin.elapsed());
    assert!(!root.dir.join("containers").join(id.to_string()).join("exit.json").exists(), "the disk was not full");
    assert_eq!(soon("wait", runtime.wait_container(&id)).await, Ok(7));
    fs::remove_file(filler).unwrap();
    runtime.remove_container(&id).await.unwrap();
}

async fn a_restart_waits_for_room_and_a_stop_does_not(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let id = the_container();
    let mut spec = case.script("trap 'exit 7' USR1; echo up; while :; do sleep 0.1; done").await;
    spec.restart_policy = crate::restarts::policy(RestartKind::Always, None, 1);
    start_on(&*runtime, &id, &spec).await.unwrap();
    up(&runtime, &id, 1).await;
    for attempt in 1..=2 {
        let running = || async { runtime.container_state(&id).await.unwrap() == ContainerState::Running };
        eventually("it runs", running).await;
        let restarts = case.berth_on(&root, &["inspect", &id.to_string()]).await.json()[0]["restarts"].clone();
        assert_eq!(restarts, attempt - 1, "what was not put on record is no restart");
        let waiting = {
            let (runtime, id) = (runtime.clone(), id.clone());
            tokio::spawn(async move { runtime.wait_container(&id).await })
        };
        let filler = disk.fill();
        // Its trap may not be set yet.
        eventually("it ends", || async {
            runtime.kill_container(&id, Some("USR1")).await.is_err() || !running().await
        })
        .await;
        assert_eq!(soon("the one who waited", waiting).await.unwrap(), Ok(7));
        assert_eq!(soon("state", runtime.container_state(&id)).await.unwrap(), ContainerState::Initializing);
        assert_eq!(soon("wait", runtime.wait_container(&id)).await, Ok(7));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(soon("state", runtime.container_state(&id)).await.unwrap(), ContainerState::Initializing);
        if attempt == 2 {
            soon("stop", runtime.stop_container(&id, Duration::from_secs(10))).await.unwrap();
            assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Exited { code: 7 });
        }
        fs::remove_file(filler).unwrap();
    }
    soon("remove", runtime.remove_container(&id)).await.unwrap();
    assert!(root.cgroups_of(&id).is_empty());
}

/// Once there is no room for a layer's blob, once for what is in it.
async fn a_pull_or_load_without_room_names_image_layer_and_root(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let incompressible: Vec<u8> = (0..8 << 20).map(|_| random()).collect();
    let repeated = b"full of the same. ".repeat(16 << 16);
    let filler = disk.fill();
    fs::File::options()
        .write(true)
        .open(&filler)
        .unwrap()
        .set_len(fs::metadata(&filler).unwrap().len() - (4 << 20))
        .unwrap();
    for (tag, content) in [("blob", &incompressible), ("content", &repeated)] {
        let layer = LayerBuilder::new().file("large", 0o644, content).finish();
        let digest = digest_of(&layer.gzip);
        let image = Image { layers: vec![layer], ..Image::busybox() };
        let reference = case.push(tag, &image).await;
        let expected =
            |whole: &str| format!("no room for layer {digest} of {whole}: the disk of {} is full", root.dir.display());
        let error = runtime.pull_image(&reference).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&expected(&reference)) && !text.contains("tmp-"), "{text}");
        assert_eq!(error.code(), "store.disk_full");

        let archive = case.suite.dir.path().join(format!("full-{tag}.tar"));
        let target = format!("oci-archive:{}:full", archive.display());
        let source = format!("docker://{reference}");
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &source, &target])
            .status();
        assert!(copied.unwrap().success());
        let path = archive.to_str().unwrap();
        let blobs = || -> BTreeSet<PathBuf> {
            let entries = fs::read_dir(root.dir.join("images/blobs/sha256")).unwrap().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let before = blobs();
        let said = berth(&root, &["load", "-i", path]).await;
        // An archive's members are written before they are known for layers.
        let whole = format!("no room for {path}: the disk of {} is full", root.dir.display());
        assert!(said.stderr.contains(&expected(path)) || said.stderr.contains(&whole), "{said:?}");
        assert!(said.code == 1 && !said.stderr.contains("tmp-") && said.stderr.contains("berth prune"), "{said:?}");
        let left = fs::read_dir(root.dir.join("layers")).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| name.as_encoded_bytes().starts_with(b"tmp-")).collect();
        assert!(left.is_empty(), "{left:?}");
        // Nor a blob that the pull had not brought, which was whole.
        assert!(blobs().is_subset(&before), "{:?}", blobs());
        if tag == "content" {
            fs::remove_file(&filler).unwrap();
            runtime.pull_image(&reference).await.unwrap();
        }
    }
}

async fn an_update_that_cannot_be_written_changes_nothing(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let id = the_container();
    let mut spec = case.script(UNTIL_TERM).await;
    spec.resources.pids = Some(100);
    start_on(&*runtime, &id, &spec).await.unwrap();
    let limit = || {
        let files = root.cgroups_of(&id).into_iter().map(|dir| dir.join("pids.max"));
        files.filter_map(|file| fs::read_to_string(file).ok()).next().unwrap().trim().to_owned()
    };
    let filler = disk.fill();
    let changes = ResourcesSpec { pids: Some(7), ..ResourcesSpec::default() };
    let error = runtime.update_resources(&id, &changes).await.unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(limit(), "100", "in force and nowhere on record");
    fs::remove_file(filler).unwrap();
    runtime.update_resources(&id, &changes).await.unwrap();
    assert_eq!(limit(), "7");
    runtime.remove_container(&id).await.unwrap();
}

/// What an earlier boot has marked as not yet synced is taken out of the store at the first open.
async fn after_a_reboot_a_root_opens(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let reference = case.push("reboot", &Image::busybox()).await;
    runtime.pull_image(&reference).await.unwrap();
    drop(runtime);
    let layers = || fs::read_dir(root.dir.join("layers/diff")).unwrap().flatten();
    let pulled: Vec<_> = layers().map(|entry| entry.file_name()).collect();
    assert!(!pulled.is_empty());
    let unsynced = root.dir.join("layers/unsynced");
    for boot in ["without-a-mark", "with-one"] {
        fs::create_dir_all(unsynced.join(boot)).unwrap();
    }
    fs::write(unsynced.join(format!("with-one/diff-{}", pulled[0].display())), "").unwrap();
    let filler = disk.fill();
    let second = root.open().await.unwrap();
    assert!(layers().all(|entry| entry.file_name() != pulled[0]));
    let left: Vec<_> = fs::read_dir(&unsynced).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|boot| boot == "without-a-mark" || boot == "with-one"), "{left:?}");
    drop(second);
    fs::remove_file(filler).unwrap();
}

/// As the error of a full disk says.
async fn images_can_be_removed_and_pruned(case: Case) {
    let (disk, root, runtime) = small(&case).await;
    let mut references = Vec::new();
    for tag in ["one", "two", "three"] {
        let layer = LayerBuilder::new().file("name", 0o644, tag.as_bytes()).finish();
        let image = Image { layers: vec![layer], ..Image::busybox() };
        references.push(case.push(tag, &image).await);
        runtime.pull_image(references.last().unwrap()).await.unwrap();
    }
    drop(runtime);
    for command in [&["rmi", &references[0]][..], &["rmi", &references[1]], &["prune", "-f"]] {
        let filler = disk.fill();
        let said = berth(&root, command).await;
        assert_eq!(said.code, 0, "{said:?}");
        fs::remove_file(filler).unwrap();
    }
    for place in ["layers/diff", "layers/about", "images/blobs/sha256"] {
        let left: Vec<_> = fs::read_dir(root.dir.join(place)).unwrap().collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
}
