//! A pause that meets a stop.

use std::time::Duration;

use crate::support::Case;
use crate::support::case::{eventually, seen_root, soon};

crate::tests![one_that_is_frozen_as_it_stops_can_be_let_go];

async fn one_that_is_frozen_as_it_stops_can_be_let_go(case: Case) {
    let script = "trap 'touch /told; until [ -e /go ]; do sleep 0.1; done; exit 5' TERM; echo up; \
                  while :; do sleep 3600 & wait $!; done";
    let id = case.start(&case.script(script).await).await;
    case.until_logged(&id, "up").await;
    let root = seen_root(&*case.runtime, &id).await;
    let (runtime, of) = (case.runtime.clone(), id.clone());
    let stopping = tokio::spawn(async move { runtime.stop_container(&of, Duration::from_secs(3600)).await });
    eventually("it heeds the stop", || async { root.join("told").exists() }).await;
    assert!(case.runtime.unpause(&id).await.is_err(), "there is nothing to let go");
    // As a pause leaves it whose caller is gone before it looks again.
    let shared = &case.suite.shared_if_opened().unwrap().root;
    for dir in shared.cgroups_of(&id) {
        for (file, value) in [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")] {
            if dir.join(file).exists() {
                std::fs::write(dir.join(file), value).unwrap();
            }
        }
    }
    std::fs::write(root.join("go"), "").unwrap();
    case.runtime.unpause(&id).await.unwrap();
    soon("the stop", stopping).await.unwrap().unwrap();
    assert_eq!(case.runtime.wait_container(&id).await, Ok(5));
}
