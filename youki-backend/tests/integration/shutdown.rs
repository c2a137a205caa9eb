//! `berth shutdown` with containers that do not end, and with what S3 is owed.

use std::time::{Duration, Instant};

use crate::support::Case;
use crate::support::berth::{berth, command};
use crate::support::case::eventually;
use crate::support::pace::patience;
use crate::support::root::Root;

crate::tests![one_that_never_ends_by_itself_keeps_neither_it_nor_what_others_are_owed];

/// Removes all containers of `root`.
async fn remove_all(root: &Root) {
    let all = berth(root, &["ps", "-aq"]).await.succeeded();
    berth(root, &["rm"].into_iter().chain(all.lines()).collect::<Vec<_>>()).await.succeeded();
}

async fn one_that_never_ends_by_itself_keeps_neither_it_nor_what_others_are_owed(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let image = case.suite.busybox().await;
    let deaf = "trap '' TERM; while :; do sleep 1; done";
    let words = ["run", "-d", "--name", "deaf", "--stop-timeout", "-1", "--network", "none", image, "sh", "-c", deaf];
    berth(&root, &words).await.succeeded();
    // What it has written is owed while S3 is away.
    let words = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sh", "-c"];
    berth(&root, &[&words[..], &["echo y > /data/file; sleep 300"]].concat()).await.succeeded();
    while berth(&root, &["exec", "web", "grep", "-q", "y", "/data/file"]).await.code != 0 {}
    switch.turn_off().await;
    let said = berth(&root, &["stop", "-t", "0", "web"]).await;
    assert!(said.code == 0 && said.stderr.contains("not durable yet"), "{said:?}");
    switch.turn_on().await;
    let begin = Instant::now();
    let timeout = patience(Duration::from_secs(12));
    let seconds = timeout.as_secs().to_string();
    let mut shutdown = command(&root).args(["shutdown", "--timeout", &seconds]).kill_on_drop(true).spawn().unwrap();
    let at_risk = async || berth(&root, &["volume", "inspect", "data"]).await.json()[0]["bytes_at_risk"].as_u64();
    eventually("what was owed is paid", || async { at_risk().await == Some(0) }).await;
    let paid = begin.elapsed();
    let ended = tokio::time::timeout(timeout + patience(Duration::from_secs(30)), shutdown.wait()).await;
    assert!(ended.expect("it waits for the deaf one").unwrap().success());
    assert!(begin.elapsed() >= timeout, "it did not give the deaf one its time: {:?}", begin.elapsed());
    assert!(paid < timeout, "it paid only after the deaf one: {paid:?}");
    assert_eq!(berth(&root, &["ps", "-q"]).await.succeeded(), "");
    remove_all(&root).await;
}
