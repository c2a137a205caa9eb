//! Named volumes on one host: synced, durable, restored, never lost.

use std::sync::Arc;
use std::time::Duration;

use runtime_core::spec::StorageSpec;
use runtime_core::{ContainerId, ContainerState, Runtime, ServiceSpec};

use crate::support::Case;
use crate::support::case::{IDLE, eventually, finish_on, soon, start_on, words};
use crate::support::root::Root;

crate::tests![
    stop_makes_a_volume_durable,
    sync_answers_when_the_data_is_durable,
    a_wiped_root_gets_its_volume_back_whole,
    a_tree_deeper_than_a_path_may_be_long_comes_back_from_s3,
    an_unchanged_volume_costs_no_new_data,
    without_named_volumes_or_without_a_bucket_sync_is_ok,
    a_volume_of_a_container_that_exited_by_itself_is_synced_by_the_keeper,
    remove_keeps_unsynced_data,
    a_deleted_file_is_deleted_in_the_next_generation,
];

const STOP: Duration = Duration::from_secs(10);

pub fn named(name: &str, target: &str) -> StorageSpec {
    StorageSpec::Named {
        name: name.into(),
        target: target.into(),
        readonly: false,
        tier: None,
        size: None,
        take_over: false,
    }
}

/// A container on `runtime` that idles with volume `data` at `/data`.
pub async fn with_volume(case: &Case, runtime: &Arc<dyn Runtime>) -> ContainerId {
    let id = case.id_on(runtime);
    start_on(&**runtime, &id, &spec(case, IDLE).await).await.unwrap_or_else(|error| panic!("{id}: {error}"));
    id
}

pub async fn spec(case: &Case, script: &str) -> ServiceSpec {
    let mut spec = case.script(script).await;
    spec.storage = vec![named("data", "/data")];
    spec
}

pub async fn exec_ok(runtime: &Arc<dyn Runtime>, id: &ContainerId, script: &str) -> String {
    let (code, stdout, stderr) = runtime.exec(id, &words(&["sh", "-c", script])).await.unwrap();
    assert_eq!(code, 0, "{script}: {stderr}");
    stdout
}

/// What `script` says in a new container once all that `root` held is wiped: what it finds came from S3.
pub async fn after_a_wipe(case: &Case, root: &Root, runtime: Arc<dyn Runtime>, script: &str) -> String {
    drop(runtime);
    root.wipe();
    let runtime = root.open().await.unwrap();
    let id = with_volume(case, &runtime).await;
    exec_ok(&runtime, &id, script).await
}

/// Bytes of all objects of `root` in the bucket.
async fn stored_bytes(case: &Case, root: &Root) -> u64 {
    case.suite.s3().await.bytes(&root.s3.as_ref().expect("a root with S3").prefix).await
}

async fn stop_makes_a_volume_durable(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo precious > /data/file").await;
    let before = chrono::Utc::now();
    runtime.stop_container(&id, STOP).await.unwrap();
    let status = runtime.volume_status("data").await.unwrap();
    assert!(status.generation.is_some(), "{status:?}");
    assert!(status.durable_at.is_some_and(|at| at >= before - chrono::Duration::seconds(1)), "{status:?}");
    assert_eq!((status.bytes_at_risk, status.last_error), (0, None));
    assert!(stored_bytes(&case, &root).await > 0, "nothing is in the bucket");
}

async fn sync_answers_when_the_data_is_durable(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo one > /data/file").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    let first = runtime.volume_status("data").await.unwrap();
    assert!(first.durable_at.is_some() && first.generation.is_some(), "{first:?}");
    exec_ok(&runtime, &id, "echo two > /data/file").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    let second = runtime.volume_status("data").await.unwrap();
    assert!(second.generation > first.generation, "{first:?} then {second:?}");
    assert_eq!(runtime.container_state(&id).await.unwrap(), ContainerState::Running);
    // The machine burns down: no stop, no agent, no root.
    runtime.remove_container(&id).await.unwrap();
    assert_eq!(after_a_wipe(&case, &root, runtime, "cat /data/file").await, "two\n");
}

/// 300 directories within one another, of 200 bytes each, with a file in each; put one around the other and taken out
/// again, for busybox goes no deeper than a path may be long.
async fn a_tree_deeper_than_a_path_may_be_long_comes_back_from_s3(case: Case) {
    let begin = "cd /data; n=$(printf %0200d 0)";
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    let wrap = "mkdir w && mv t w/$n && echo $i > w/f && mv w t || exit 1";
    exec_ok(&runtime, &id, &format!("{begin}; mkdir t; for i in $(seq 1 300); do {wrap}; done")).await;
    runtime.stop_container(&id, STOP).await.unwrap();
    let status = runtime.volume_status("data").await.unwrap();
    assert_eq!((status.bytes_at_risk, status.last_error), (0, None));
    runtime.remove_container(&id).await.unwrap();
    let unwrap = "[ $(cat t/f) = $i ] && mv t/$n w && rm t/f && rmdir t && mv w t || exit 1";
    let look = format!("{begin}; for i in $(seq 300 -1 1); do {unwrap}; done; ls t; ls");
    assert_eq!(after_a_wipe(&case, &root, runtime, &look).await, "t\n");
}

/// Makes one of everything a volume keeps beneath `/data`.
const TREE: &str = r"
    cd /data; mkdir -p dir/empty private; chmod 1777 dir; chmod 700 private
    echo text > dir/file; chown 70000:80000 dir/file; chmod 4750 dir/file
    ln dir/file dir/hard; ln -s ../dir/file private/soft; ln -s /nowhere dangling
    mkfifo pipe; : > empty; printf 'x' > 'na me '
    dd if=/dev/urandom of=big bs=1M count=5 2>/dev/null
    dd if=/dev/zero of=sparse bs=1 count=1 seek=52428800 2>/dev/null
    touch -d '2001-02-03 04:05:06' dir/file; touch -d '1999-01-02 03:04:05' dir/empty
    chown 7:8 .; chmod 751 .";

/// Everything of that tree that must come back.
const LIST: &str = r#"
    cd /data; find . | sort | while IFS= read -r f; do stat -c '%n|%F|%a|%u|%g|%Y' "$f"; done
    stat -c '%h' dir/file; [ $(stat -c %b sparse) -lt 1024 ] && echo sparse
    readlink private/soft dangling; find . -type f -print0 | sort -z | xargs -0 md5sum"#;

async fn a_wiped_root_gets_its_volume_back_whole(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, TREE).await;
    let before = exec_ok(&runtime, &id, LIST).await;
    assert!(before.contains("./dir/file|regular file|4750|70000|80000|981173106"), "{before}");
    runtime.stop_container(&id, STOP).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    let after = after_a_wipe(&case, &root, runtime, LIST).await;
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&before), lines(&after));
}

async fn an_unchanged_volume_costs_no_new_data(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "dd if=/dev/urandom of=/data/big bs=1M count=8 2>/dev/null").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    let (first, bytes) = (runtime.volume_status("data").await.unwrap(), stored_bytes(&case, &root).await);
    runtime.sync_container_volumes(&id).await.unwrap();
    let (second, again) = (runtime.volume_status("data").await.unwrap(), stored_bytes(&case, &root).await);
    assert_eq!(first.generation, second.generation, "a generation for nothing");
    assert!(again < bytes + (64 << 10), "{} bytes for nothing", again - bytes);
    // One byte of eight million changed, or a file moved: far less than all of it goes up.
    exec_ok(
        &runtime,
        &id,
        "printf x | dd of=/data/big bs=1 seek=4000000 conv=notrunc 2>/dev/null; mv /data/big /data/moved",
    )
    .await;
    runtime.sync_container_volumes(&id).await.unwrap();
    let changed = stored_bytes(&case, &root).await - again;
    assert!(changed < 5 << 20, "{changed} bytes went up for one");
}

async fn without_named_volumes_or_without_a_bucket_sync_is_ok(case: Case) {
    let id = case.idle().await;
    case.runtime.sync_container_volumes(&id).await.unwrap();
    let root = case.root("local");
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo x > /data/x").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    runtime.stop_container(&id, STOP).await.unwrap();
    assert_eq!(runtime.volume_status("data").await.unwrap().durable_at, None);
}

async fn a_volume_of_a_container_that_exited_by_itself_is_synced_by_the_keeper(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = case.id_on(&runtime);
    start_on(&*runtime, &id, &spec(&case, "echo by itself > /data/file").await).await.unwrap();
    assert_eq!(finish_on(&*runtime, &id).await.outcome.exit_code, 0);
    eventually("the keeper made it durable", || async {
        runtime.volume_status("data").await.is_ok_and(|status| status.durable_at.is_some())
    })
    .await;
    runtime.remove_container(&id).await.unwrap();
    assert_eq!(after_a_wipe(&case, &root, runtime, "cat /data/file").await, "by itself\n");
}

async fn remove_keeps_unsynced_data(case: Case) {
    let root = case.root("local");
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo kept > /data/file").await;
    runtime.remove_container(&id).await.unwrap();
    let id = with_volume(&case, &runtime).await;
    assert_eq!(exec_ok(&runtime, &id, "cat /data/file").await, "kept\n");
}

async fn a_deleted_file_is_deleted_in_the_next_generation(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let runtime = root.open().await.unwrap();
    let id = with_volume(&case, &runtime).await;
    exec_ok(&runtime, &id, "echo a > /data/a; echo b > /data/b; mkdir /data/d; echo c > /data/d/c").await;
    runtime.sync_container_volumes(&id).await.unwrap();
    exec_ok(&runtime, &id, "rm -r /data/a /data/d").await;
    soon("stop", runtime.stop_container(&id, STOP)).await.unwrap();
    runtime.remove_container(&id).await.unwrap();
    assert_eq!(after_a_wipe(&case, &root, runtime, "ls /data").await, "b\n");
}
