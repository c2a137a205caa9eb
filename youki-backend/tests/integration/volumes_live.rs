//! Volumes while they are used: synced at an interval, and claimed for as long as somebody shows that it lives.

use std::time::{Duration, Instant};

use tokio::process::Child;

use crate::support::Case;
use crate::support::berth::{Said, berth, command};
use crate::support::case::eventually;
use crate::support::pace::patience;
use crate::support::root::Root;

crate::tests![
    what_is_used_is_synced_at_the_interval,
    a_round_that_fails_is_told_once_and_so_is_the_next_that_does_not,
    a_claim_not_renewed_is_taken_over_and_a_renewed_one_is_not,
];

/// How long a claim lasts here: several renewals, also where each of them takes seconds.
pub const AFTER: Duration = Duration::from_secs(12);

/// A config file for `berth` with these lines on volumes.
pub fn config(case: &Case, root: &Root, volumes: &str) -> String {
    let file = case.suite.dir.path().join(format!("{}-live.toml", root.name));
    std::fs::write(&file, format!("[volumes]\n{volumes}\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

fn keeper(root: &Root, config: &str) -> Child {
    command(root).args(["--config", config, "keeper"]).kill_on_drop(true).spawn().unwrap()
}

async fn generations(root: &Root) -> usize {
    let history = berth(root, &["volume", "history", "data", "--json"]).await;
    if history.code == 0 { history.json().as_array().unwrap().len() } else { 0 }
}

/// Runs `web` with volume `data` in the background.
async fn run(case: &Case, root: &Root, config: &str, script: &str) -> Said {
    let image = case.suite.busybox().await;
    let mount = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sh", "-c", script];
    berth(root, &[&["--config", config][..], &mount].concat()).await
}

async fn what_is_used_is_synced_at_the_interval(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let config = config(&case, &root, "live_sync = \"1s\"");
    let mut keeper = keeper(&root, &config);
    run(&case, &root, &config, "echo first > /data/file; exec sleep 300").await.succeeded();
    eventually("it is synced", || async { generations(&root).await >= 1 }).await;
    let write = async |text: &str| {
        let script = format!("echo {text} > /data/file");
        berth(&root, &["exec", "web", "sh", "-c", &script]).await.succeeded();
    };
    write("second").await;
    let synced = || async { berth(&root, &["volume", "inspect", "data"]).await.json()[0]["bytes_at_risk"] == 0 };
    eventually("and again", synced).await;
    // Unchanged, it makes no generation: three intervals later there is none.
    let before = generations(&root).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(generations(&root).await, before);
    // The host burns down: what it wrote is elsewhere.
    write("third").await;
    eventually("and once more", || async { generations(&root).await > before }).await;
    keeper.kill().await.unwrap();
    let to = case.suite.dir.path().join("live-beside");
    berth(&root, &["volume", "restore", "data", "--to", to.to_str().unwrap()]).await.succeeded();
    assert_eq!(std::fs::read_to_string(to.join("file")).unwrap(), "third\n");
    std::fs::remove_dir_all(to).unwrap();
    // Nobody syncs any more.
    let before = generations(&root).await;
    write("fourth").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(generations(&root).await, before);
    berth(&root, &["rm", "-f", "web"]).await.succeeded();
}

async fn a_round_that_fails_is_told_once_and_so_is_the_next_that_does_not(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let config = config(&case, &root, "live_sync = \"1s\"");
    let mut keeper = keeper(&root, &config);
    run(&case, &root, &config, "echo first > /data/file; exec sleep 300").await.succeeded();
    let told = async || {
        let words = ["events", "--filter", "volume=data", "--format", "{{.detail}}"];
        let text = berth(&root, &words).await.succeeded();
        text.lines().map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    eventually("it is synced", || async { told().await == ["durable"] }).await;
    switch.turn_off().await;
    berth(&root, &["exec", "web", "sh", "-c", "echo second > /data/file"]).await.succeeded();
    eventually("it is told", || async { told().await == ["durable", "not durable"] }).await;
    // Some rounds more.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(told().await, ["durable", "not durable"]);
    switch.turn_on().await;
    // By the round, or by whoever pays what is owed; maybe by both.
    eventually("it is durable", || async { told().await.split_off(2).starts_with(&["durable".to_owned()]) }).await;
    keeper.kill().await.unwrap();
    berth(&root, &["rm", "-f", "web"]).await.succeeded();
}

async fn a_claim_not_renewed_is_taken_over_and_a_renewed_one_is_not(case: Case) {
    let (a, b) = (case.root_with_s3("a", "p").await, case.root_with_s3("b", "p").await);
    let (a, b) = (Root { keeper: false, ..a }, Root { keeper: false, ..b });
    let after = format!("take_over_after = \"{}s\"", AFTER.as_secs());
    let (on_a, on_b) = (config(&case, &a, &after), config(&case, &b, &after));
    let mut keeper = keeper(&a, &on_a);
    run(&case, &a, &on_a, "echo synced > /data/file; exec sleep 300").await.succeeded();
    while berth(&a, &["exec", "web", "test", "-s", "/data/file"]).await.code != 0 {}
    berth(&a, &["volume", "sync", "data"]).await.succeeded();
    // Longer than a claim lasts.
    let begin = Instant::now();
    while begin.elapsed() < AFTER * 3 / 2 {
        let said = run(&case, &b, &on_b, "true").await;
        assert!(said.code == 125 && said.stderr.contains("in use on host"), "{said:?}");
        assert!(said.stderr.contains("for a sign of life"), "{said:?}");
        let said = berth(&b, &["--config", &on_b, "volume", "claim", "data"]).await;
        assert!(said.code == 1 && said.stderr.contains("for a sign of life"), "{said:?}");
        assert!(said.stderr.contains("in use on host"), "{said:?}");
    }
    berth(&a, &["exec", "web", "sh", "-c", "echo unsynced > /data/other"]).await.succeeded();
    keeper.kill().await.unwrap();
    let begin = Instant::now();
    berth(&b, &["--config", &on_b, "volume", "claim", "data"]).await.succeeded();
    let took = begin.elapsed();
    assert!(took >= AFTER && took < patience(AFTER * 4), "taken over after {took:?}");
    run(&case, &b, &on_b, "echo from b >> /data/file; exec sleep 300").await.succeeded();
    berth(&b, &["stop", "-t", "0", "web"]).await.succeeded();
    // Who was silent is fenced; what it had is kept beside.
    let said = berth(&a, &["--config", &on_a, "volume", "sync", "data"]).await;
    assert!(said.code == 1 && said.stderr.contains("no longer owns it"), "{said:?}");
    let history = berth(&b, &["volume", "history", "data", "--json"]).await.json();
    let kinds: Vec<_> = history.as_array().unwrap().iter().map(|entry| entry["kind"].clone()).collect();
    assert_eq!(kinds, ["data", "data", "branch"], "{history}");
    for root in [&a, &b] {
        berth(root, &["rm", "-f", "web"]).await.succeeded();
    }
}
