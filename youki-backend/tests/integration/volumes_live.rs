//! Volumes while they are used: synced at an interval.

use std::time::Duration;

use tokio::process::Child;

use crate::support::Case;
use crate::support::berth::{Said, berth, command};
use crate::support::case::eventually;
use crate::support::root::Root;

crate::tests![what_is_used_is_synced_at_the_interval];

fn config(case: &Case, root: &Root, volumes: &str) -> String {
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
