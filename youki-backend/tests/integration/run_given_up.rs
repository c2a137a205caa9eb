//! A foreground `run` that is told to end before its program runs: it does, in time, and leaves nothing that the next
//! command would not undo.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};

use crate::support::Case;
use crate::support::berth::{berth, command};
use crate::support::pace::patience;
use crate::support::process::signal;
use crate::support::root::Root;

crate::tests![
    a_run_that_waits_for_a_volume_heeds_the_second_signal,
    a_run_that_waits_for_a_volume_heeds_one_signal_in_time,
    a_run_that_cannot_be_undone_at_once_says_so
];

/// Two roots on one bucket: the first holds volume `data`, the second would wait so long to take it over.
async fn held_elsewhere(case: &Case, take_over_after: &str) -> (Root, Root, String) {
    let holder = Root { keeper: false, ..case.root_with_s3("holder", "p").await };
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let file = case.suite.dir.path().join(format!("{}.toml", root.name));
    std::fs::write(&file, format!("[volumes]\ntake_over_after = \"{take_over_after}\"\n")).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let image = case.suite.busybox().await;
    berth(&holder, &["--config", &file, "run", "--rm", "--network", "none", "-v", "data:/data", image, "true"])
        .await
        .succeeded();
    berth(&holder, &["--config", &file, "volume", "claim", "data"]).await.succeeded();
    berth(&root, &["pull", "-q", image]).await.succeeded();
    (holder, root, file)
}

/// A foreground `run` once it has said that it waits.
async fn waiting(case: &Case, root: &Root, file: &str) -> Child {
    let image = case.suite.busybox().await;
    let words =
        ["--config", file, "run", "--rm", "--name", "web", "--network", "none", "-v", "data:/data", image, "true"];
    let (run, mut lines) = spawned(root, &words);
    told(&mut lines, "for a sign of life").await;
    // Whatever it says further has a reader.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    run
}

/// A command, and what it writes to standard error.
fn spawned(root: &Root, words: &[&str]) -> (Child, Lines<BufReader<ChildStderr>>) {
    let mut run = command(root);
    run.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut run = run.spawn().unwrap();
    let lines = BufReader::new(run.stderr.take().unwrap()).lines();
    (run, lines)
}

/// Returns when it has said so.
async fn told(lines: &mut Lines<BufReader<ChildStderr>>, what: &str) {
    let told = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(what) {
                return;
            }
        }
        panic!("it ends without saying {what:?}");
    };
    tokio::time::timeout(patience(Duration::from_secs(30)), told)
        .await
        .unwrap_or_else(|_| panic!("it never says {what:?}"));
}

/// Its exit code, which must come within `limit`.
async fn ended_within(run: &mut Child, limit: Duration) -> Option<i32> {
    let ended = tokio::time::timeout(patience(limit), run.wait()).await;
    ended.unwrap_or_else(|_| panic!("it runs on for {limit:?}")).unwrap().code()
}

async fn nothing_is_left(root: &Root, holder: &Root, file: &str) {
    assert_eq!(berth(root, &["ps", "-aq"]).await.succeeded(), "");
    assert_eq!(berth(root, &["volume", "ls", "-q"]).await.succeeded(), "");
    // Who holds it goes on.
    berth(holder, &["--config", file, "volume", "sync", "data"]).await.succeeded();
}

async fn a_run_that_waits_for_a_volume_heeds_the_second_signal(case: Case) {
    let (holder, root, file) = held_elsewhere(&case, "10m").await;
    let mut run = waiting(&case, &root, &file).await;
    let pid = run.id().unwrap();
    signal(pid, Signal::INT);
    tokio::time::sleep(Duration::from_millis(500)).await;
    signal(pid, Signal::INT);
    assert_eq!(ended_within(&mut run, Duration::from_secs(2)).await, Some(130));
    nothing_is_left(&root, &holder, &file).await;
}

async fn a_run_that_waits_for_a_volume_heeds_one_signal_in_time(case: Case) {
    let (holder, root, file) = held_elsewhere(&case, "15s").await;
    let mut run = waiting(&case, &root, &file).await;
    signal(run.id().unwrap(), Signal::TERM);
    assert_eq!(ended_within(&mut run, Duration::from_secs(5)).await, Some(143));
    nothing_is_left(&root, &holder, &file).await;
}

/// Where it cannot go at once, because somebody else has the volume, it says so.
async fn a_run_that_cannot_be_undone_at_once_says_so(case: Case) {
    let root = Root { keeper: false, ..case.root("root") };
    let image = case.suite.busybox().await;
    berth(&root, &["pull", "-q", image]).await.succeeded();
    let lock = root.dir.join("volumes/.locks/data");
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let lock = std::fs::File::create(lock).unwrap();
    lock.lock().unwrap();
    let words = ["run", "--rm", "--name", "web", "--network", "none", "-v", "data:/data", image, "true"];
    let (mut run, mut lines) = spawned(&root, &words);
    told(&mut lines, "waiting for volume data").await;
    signal(run.id().unwrap(), Signal::INT);
    told(&mut lines, "undoing what was begun").await;
    drop(lock);
    assert_eq!(ended_within(&mut run, Duration::from_secs(8)).await, Some(130));
    assert_eq!(berth(&root, &["ps", "-aq"]).await.succeeded(), "");
    assert_eq!(berth(&root, &["volume", "ls", "-q"]).await.succeeded(), "");
}
