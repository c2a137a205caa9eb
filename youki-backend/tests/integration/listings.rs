//! What `berth ps` finds by its filters.

use crate::support::Case;
use crate::support::berth::berth;
use crate::support::case::eventually;

crate::tests![
    ancestors_are_found_however_their_name_is_written,
    what_cannot_be_read_hides_no_other_and_is_no_success,
    one_that_waits_for_its_next_attempt_is_restarting_and_neither_created_nor_exited,
];

async fn ancestors_are_found_however_their_name_is_written(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await;
    berth(&root, &["pull", "-q", image]).await.succeeded();
    // As it is named when it comes from Docker Hub.
    berth(&root, &["tag", image, "busybox:latest"]).await.succeeded();
    berth(&root, &["create", "--name", "here", "--network", "none", image, "true"]).await.succeeded();
    berth(&root, &["create", "--name", "hub", "--network", "none", "busybox", "true"]).await.succeeded();
    let untagged = image.rsplit_once(':').unwrap().0;
    let digest = berth(&root, &["inspect", "-f", "{{.image_digest}}", "hub"]).await.succeeded().trim().to_owned();
    let hex = digest.strip_prefix("sha256:").unwrap();
    let found = async |text: &str| {
        let filter = format!("ancestor={text}");
        let mut ids: Vec<String> =
            berth(&root, &["ps", "-aq", "--filter", &filter]).await.succeeded().lines().map(str::to_owned).collect();
        ids.sort();
        ids.join(" ")
    };
    let id = berth(&root, &["images", "-q"]).await.succeeded().lines().next().unwrap().to_owned();
    let hub = ["busybox", "busybox:latest", "library/busybox", "docker.io/busybox", "docker.io/library/busybox:latest"];
    // One image of two names: whose name is asked for does not matter.
    for text in hub.into_iter().chain([image, untagged, &digest, &digest[..20], hex, &hex[..12], &id]) {
        assert_eq!(found(text).await, "here-rep-0 hub-rep-0", "{text}");
    }
    // Once a name is gone, it is that of the containers made by it.
    berth(&root, &["rmi", "-f", "busybox:latest"]).await.succeeded();
    for text in hub {
        assert_eq!(found(text).await, "hub-rep-0", "{text}");
    }
    for text in ["busybox:other", "busy", "a", "b", "nginx", "0000000000000"] {
        assert_eq!(found(text).await, "", "{text}");
    }
    for bad in ["ancestor=", "ancestor=BAD NAME"] {
        let said = berth(&root, &["ps", "-a", "--filter", bad]).await;
        assert!(said.code == 2 && said.stderr.contains("--filter"), "{bad}: {said:?}");
    }
    berth(&root, &["rm", "here", "hub"]).await.succeeded();
}

async fn what_cannot_be_read_hides_no_other_and_is_no_success(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await;
    for name in ["whole", "broken"] {
        berth(&root, &["create", "--name", name, "--network", "none", image, "true"]).await.succeeded();
    }
    let record = root.dir.join("containers/broken-rep-0/container.json");
    let away = record.with_extension("away");
    std::fs::rename(&record, &away).unwrap();
    // To read it is an error of the system's.
    std::fs::create_dir(&record).unwrap();
    for args in [&["ps", "-a"][..], &["ps", "-aq"], &["ps", "-a", "--json"], &["ps", "-a", "--format", "{{.ID}}"]] {
        let said = berth(&root, args).await;
        assert!(said.code == 1 && said.stdout.contains("whole-rep-0") && said.stderr.contains("broken"), "{said:?}");
    }
    std::fs::remove_dir(&record).unwrap();
    std::fs::rename(&away, &record).unwrap();
    assert_eq!(berth(&root, &["ps", "-aq"]).await.succeeded().lines().count(), 2);
    berth(&root, &["rm", "whole", "broken"]).await.succeeded();
}

async fn one_that_waits_for_its_next_attempt_is_restarting_and_neither_created_nor_exited(case: Case) {
    let root = case.root("root");
    let image = case.suite.busybox().await;
    berth(&root, &["create", "--name", "new", "--network", "none", image, "true"]).await.succeeded();
    let words =
        ["run", "-d", "--name", "again", "--restart", "always", "--network", "none", image, "sh", "-c", "exit 3"];
    berth(&root, &words).await.succeeded();
    let found = async |filter: &str| berth(&root, &["ps", "-aq", "--filter", filter]).await.succeeded();
    eventually("it is restarting", || async { found("status=restarting").await == "again-rep-0\n" }).await;
    assert_eq!(found("status=created").await, "new-rep-0\n");
    assert_eq!(found("exited=3").await, "");
    berth(&root, &["stop", "again"]).await.succeeded();
    // 3, unless the stop came while an attempt ran.
    let code = berth(&root, &["inspect", "-f", "{{.exit_code}}", "again"]).await.succeeded();
    assert_eq!(found(&format!("exited={}", code.trim())).await, "again-rep-0\n");
    berth(&root, &["rm", "-f", "new", "again"]).await.succeeded();
}
