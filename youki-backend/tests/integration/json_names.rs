//! The names that the command's JSON has: they are part of the interface, whatever the fields are called in Rust.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::Case;
use crate::support::berth::berth;
use crate::support::case::eventually;
use crate::support::root::Root;

crate::tests![json_has_the_names_of_the_interface];

/// The keys of an object.
#[track_caller]
fn has(what: &str, object: &Value, names: &str) {
    let there: BTreeSet<&str> = object.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let expected: BTreeSet<&str> = names.split_whitespace().collect();
    assert_eq!(there, expected, "{what}: {object}");
}

const CONTAINER: &str = "id name state exit_code reason pid image image_digest created_at started_at finished_at attempt \
    outcome spec mounts networks ports health cgroup_path last_stats \
    args restarts earlier_attempts port_override";
const DETAILED: &str = "cpu memory io pids network pressure disk";
const OUTCOME: &str = "exit_code reason signal finished_at";
const VOLUME: &str = "name mountpoint generation durable_at bytes_at_risk owner last_error size_bytes";
const EVENT: &str = "number time kind container image volume attempt exit_code detail";

async fn json_has_the_names_of_the_interface(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let image = case.suite.busybox().await.to_owned();
    let script = "echo x > /data/file; echo said; exec sleep 1000";
    let made = ["run", "-d", "--name", "web", "-p", "127.0.0.1::80", "-v", "data:/data", "--health-cmd", "true"];
    berth(&root, &[&made[..], &[&image, "sh", "-c", script]].concat()).await.succeeded();
    let list = async |words: &[&str]| {
        let said = berth(&root, &[&["--json"], words].concat()).await.json();
        assert_eq!(said.as_array().map(Vec::len), Some(1), "{words:?}: {said}");
        said[0].clone()
    };
    let lines = async |words: &[&str]| {
        let text = berth(&root, &[&["--json"], words].concat()).await.succeeded();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    eventually("it has said something", || async { !lines(&["logs", "web"]).await.is_empty() }).await;

    for words in [&["inspect", "web"][..], &["ps"]] {
        let web = list(words).await;
        has("a container", &web, CONTAINER);
        assert!(web["state"] == "running" && web["pid"].is_u64() && web["outcome"].is_null(), "{web}");
        has("a mount", &web["mounts"][0], "type name source target readonly");
        has("a network", &web["networks"][0], "network aliases ipv4 ipv6 mac");
        has("a port", &web["ports"][0], "container_port host_port host_ip protocol");
        has("its health", &web["health"], "status failing_streak last_output");
    }
    let stats = list(&["stats", "--no-stream"]).await;
    has(
        "statistics",
        &stats,
        "id cpu_usage_usec memory_bytes memory_limit timestamp cpu_percent memory_percent detailed",
    );
    has("all of them", &stats["detailed"], DETAILED);
    for (part, names) in [
        ("cpu", "usage_usec user_usec system_usec throttled_usec"),
        ("memory", "usage_bytes working_set_bytes peak_bytes limit_bytes swap_bytes cache_bytes oom_kills"),
        ("pids", "current limit"),
        ("io", "read_bytes write_bytes read_ops write_ops"),
        ("pressure", "cpu memory io"),
        ("disk", "writable_bytes log_bytes"),
    ] {
        has(part, &stats["detailed"][part], names);
    }
    let interface = "rx_bytes rx_packets rx_errors tx_bytes tx_packets tx_errors";
    has("an interface", &stats["detailed"]["network"]["eth0"], interface);
    has("a process", &list(&["top", "web"]).await, "pid ppid user command");
    let line = &lines(&["logs", "web"]).await[0];
    has("a line", line, "timestamp stream message source service deployment cursor partial dropped_bytes");
    assert!(line["stream"] == "stdout" && line["message"] == "said", "{line}");

    berth(&root, &["stop", "-t", "0", "web"]).await.succeeded();
    for words in [&["inspect", "web"][..], &["ps", "-a"]] {
        let web = list(words).await;
        has("an ended container", &web, CONTAINER);
        has("its outcome", &web["outcome"], OUTCOME);
        has("its last statistics", &web["last_stats"], DETAILED);
        assert!(web["state"] == "exited" && web["pid"].is_null() && web["outcome"]["reason"] == "Signal", "{web}");
    }
    let waited = list(&["wait", "web"]).await;
    has("an outcome", &waited, &format!("{OUTCOME} container"));
    assert!(waited["container"] == "web" && waited["exit_code"] == 137, "{waited}");
    for words in [&["volume", "inspect", "data"][..], &["volume", "ls"], &["volume", "sync", "data"]] {
        has("a volume", &list(words).await, VOLUME);
    }
    let history = berth(&root, &["--json", "volume", "history", "--all", "data"]).await.json();
    let kinds: BTreeSet<&str> = history.as_array().unwrap().iter().filter_map(|one| one["kind"].as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["claim", "data", "released"]), "{history}");
    for record in history.as_array().unwrap() {
        has("a record", record, "generation record epoch kind created_at host files size_bytes new_bytes");
        assert_eq!(record["generation"].is_null(), record["kind"] != "data", "{record}");
    }
    let events = lines(&["events"]).await;
    assert!(events.len() > 5, "{events:?}");
    events.iter().for_each(|event| has("an event", event, EVENT));
    has("an image", &list(&["images"]).await, "reference digest id size_bytes unique_bytes shared_bytes created");
    let pulled = berth(&root, &["--json", "pull", &image]).await.json();
    has("a pull", &pulled, "reference digest id size_bytes");
    berth(&root, &["rm", "web"]).await.succeeded();
}
