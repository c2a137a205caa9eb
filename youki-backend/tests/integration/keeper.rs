//! The keeper follows every container of its root, whoever started it, and is held up by no volume.

use std::fs::TryLockError;
use std::io::Read;

use tokio::process::Child;
use volumes_s3::AcquireOptions;
use youki_backend::YoukiRuntime;

use crate::support::Case;
use crate::support::agent::{Agent, Request};
use crate::support::berth::{berth, command};
use crate::support::case::{eventually, seen_root, soon};
use crate::support::root::Root;
use crate::support::switch::Switch;
use crate::volumes::spec;
use crate::volumes_live::{AFTER, config};

crate::tests![
    what_another_process_started_is_synced_when_that_process_is_dead,
    a_long_upload_at_its_begin_lets_no_claim_run_out,
    a_long_upload_does_not_keep_it_from_following,
    a_long_upload_does_not_keep_it_from_paying_what_others_owe,
];

/// At this speed [`UPLOAD_BYTES`] take longer than anything here may.
const BYTES_PER_SECOND: u64 = 64 << 10;
const UPLOAD_BYTES: u64 = 8 << 20;
/// The name of nobody's container.
const GONE: &str = "gone-rep-0";

async fn what_another_process_started_is_synced_when_that_process_is_dead(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let keeper = root.open().await.unwrap();
    let other = Root { keeper: false, ..root.clone() };
    let id = case.id_on(&keeper);
    let generation = async || keeper.volume_status("data").await.ok().and_then(|status| status.generation);

    let mut agent = Agent::start(&other, &[]).await;
    let script = "until [ -e /end ]; do sleep 0.05; done; rm /end; echo by itself >> /data/file";
    let spec = Box::new(spec(&case, script).await);
    agent.ask(&Request::Run { id: id.clone(), spec }).await.unwrap();
    let before = generation().await;
    agent.kill().await;
    let end = async || std::fs::write(seen_root(&*keeper, &id).await.join("end"), "").unwrap();
    end().await;
    assert_eq!(soon("it ends", keeper.wait_container(&id)).await, Ok(0));
    eventually("the keeper synced it", || async {
        let status = keeper.volume_status("data").await.unwrap();
        status.durable_at.is_some() && status.generation > before
    })
    .await;

    // Its next attempt, by one more process.
    let mut agent = Agent::start(&other, &[]).await;
    let before = generation().await;
    agent.ask(&Request::Start { id: id.clone() }).await.unwrap();
    agent.kill().await;
    end().await;
    assert_eq!(soon("it ends again", keeper.wait_container(&id)).await, Ok(0));
    eventually("the keeper synced that as well", || async { generation().await > before }).await;
    keeper.remove_container(&id).await.unwrap();
}

/// Leaves volume `big`, with much in it, used by a container that is no more.
async fn leave_behind(root: &Root) {
    let runtime = YoukiRuntime::open(root.config()).await.unwrap();
    let big = runtime.volumes().acquire("big", GONE, AcquireOptions::default()).await.unwrap();
    // Nothing that gets smaller by compression.
    let mut noise = std::fs::File::open("/dev/urandom").unwrap().take(UPLOAD_BYTES);
    std::io::copy(&mut noise, &mut std::fs::File::create(big.path.join("file")).unwrap()).unwrap();
}

/// Whether somebody is about to bring volume `big` to S3.
async fn is_uploading(root: &Root) -> bool {
    let lock = std::fs::File::open(root.dir.join("volumes/.locks/big")).unwrap();
    let big = berth(root, &["volume", "inspect", "big"]).await.json()[0].clone();
    big["durable_at"].is_null() && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
}

async fn is_durable(root: &Root, name: &str) -> bool {
    let status = berth(root, &["volume", "inspect", name]).await.json()[0].clone();
    !status["durable_at"].is_null() && status["last_error"].is_null()
}

/// Runs `name` with the volume of that name, by a process that ends with that.
async fn run(case: &Case, root: &Root, config: &str, name: &str, script: &str) {
    let (image, mount) = (case.suite.busybox().await, format!("{name}:/data"));
    let words = ["--config", config, "run", "-d", "--name", name, "--network", "none", "-v", &mount, image];
    berth(root, &[&words[..], &["sh", "-c", script]].concat()).await.succeeded();
}

fn keep(root: &Root, config: &str) -> Child {
    command(root).args(["--config", config, "keeper"]).kill_on_drop(true).spawn().unwrap()
}

/// A root, and one of another host on the same bucket, with claims that last for [`AFTER`].
async fn two_hosts(case: &Case) -> ((Root, String, Switch), (Root, String)) {
    let (a, switch) = case.root_with_switch("a", "p").await;
    let b = Root { keeper: false, ..case.root_with_s3("b", "p").await };
    let after = format!("take_over_after = \"{}s\"", AFTER.as_secs());
    let (on_a, on_b) = (config(case, &a, &after), config(case, &b, &after));
    ((a, on_a, switch), (b, on_b))
}

async fn a_long_upload_at_its_begin_lets_no_claim_run_out(case: Case) {
    let ((a, on_a, switch), (b, on_b)) = two_hosts(&case).await;
    leave_behind(&a).await;
    run(&case, &a, &on_a, "web", "exec sleep 300").await;
    switch.slow(BYTES_PER_SECOND);
    let mut keeper = keep(&a, &on_a);
    eventually("it uploads what was left behind", || is_uploading(&a)).await;
    let said = berth(&b, &["--config", &on_b, "volume", "claim", "web"]).await;
    assert!(said.code == 1 && said.stderr.contains("in use on host"), "{said:?}");
    assert!(is_uploading(&a).await, "the upload was no long one");
    keeper.kill().await.unwrap();
    berth(&a, &["rm", "-f", "web"]).await.succeeded();
}

async fn a_long_upload_does_not_keep_it_from_following(case: Case) {
    let ((root, config, switch), _) = two_hosts(&case).await;
    let mut keeper = keep(&root, &config);
    run(&case, &root, &config, "first", "echo x > /data/file").await;
    eventually("it follows", || is_durable(&root, "first")).await;
    leave_behind(&root).await;
    switch.slow(BYTES_PER_SECOND);
    // As one that came and went before it was looked for.
    let socket = root.run_dir.join("sockets/0123456789abcdef.sock");
    std::fs::write(&socket, "").unwrap();
    std::fs::remove_file(socket).unwrap();
    eventually("it uploads what was left behind", || is_uploading(&root)).await;
    run(&case, &root, &config, "second", "echo x > /data/file").await;
    eventually("it follows on", || is_durable(&root, "second")).await;
    assert!(is_uploading(&root).await, "the upload was no long one");
    keeper.kill().await.unwrap();
    for name in ["first", "second"] {
        berth(&root, &["rm", name]).await.succeeded();
    }
}

async fn a_long_upload_does_not_keep_it_from_paying_what_others_owe(case: Case) {
    let ((root, config, mut switch), _) = two_hosts(&case).await;
    leave_behind(&root).await;
    // One whose container is there: the keeper gives nothing back for it.
    let image = case.suite.busybox().await;
    berth(&root, &["create", "--name", "held", "--network", "none", image, "true"]).await.succeeded();
    let held = "held-rep-0";
    let runtime = YoukiRuntime::open(root.config()).await.unwrap();
    let volumes = runtime.volumes();
    let small = volumes.acquire("small", GONE, AcquireOptions::default()).await.unwrap();
    assert!(volumes.release("small", GONE).await.unwrap().is_none());
    switch.turn_off().await;
    assert!(volumes.release("big", GONE).await.unwrap().is_some(), "S3 is not away");
    switch.turn_on().await;
    switch.slow(BYTES_PER_SECOND);
    let mut keeper = keep(&root, &config);
    eventually("it pays what is owed for the big one", || is_uploading(&root)).await;
    let mut away = root.clone();
    away.s3.as_mut().unwrap().endpoint = "http://127.0.0.1:1".into();
    let runtime = YoukiRuntime::open(away.config()).await.unwrap();
    runtime.volumes().acquire("small", held, AcquireOptions::default()).await.unwrap();
    std::fs::write(small.path.join("file"), "x").unwrap();
    assert!(runtime.volumes().release("small", held).await.unwrap().is_some(), "S3 is not away");
    eventually("it pays what is owed for the small one", || is_durable(&root, "small")).await;
    assert!(is_uploading(&root).await, "the upload was no long one");
    keeper.kill().await.unwrap();
    berth(&root, &["rm", "held"]).await.succeeded();
}
