//! What the `berth` command shows, restores and removes of a volume that belongs to a bucket.

use crate::support::Case;
use crate::support::berth::{Said, berth};
use crate::support::root::Root;

crate::tests![rm_keeps_what_the_bucket_lacks_also_where_no_bucket_is_named];

/// `run --rm` with `mount`.
async fn run(case: &Case, root: &Root, mount: &str, script: &str) -> Said {
    let image = case.suite.busybox().await;
    berth(root, &["run", "--rm", "--network", "none", "-v", mount, image, "sh", "-c", script]).await
}

async fn rm_keeps_what_the_bucket_lacks_also_where_no_bucket_is_named(case: Case) {
    let (root, mut switch) = case.root_with_switch("root", "p").await;
    let without = Root { s3: None, ..root.clone() };
    run(&case, &root, "data:/data", "echo one > /data/file").await.succeeded();
    switch.turn_off().await;
    assert!(run(&case, &root, "data:/data", "echo two > /data/file").await.stderr.contains("not durable"));
    let said = berth(&without, &["volume", "rm", "data"]).await;
    assert!(said.code == 1 && said.stdout.is_empty(), "{said:?}");
    assert!(said.stderr.contains("volume data: 4 bytes here are not in S3 yet\nhint: "), "{said:?}");
    assert_eq!(run(&case, &without, "data:/data", "cat /data/file").await.succeeded(), "two\n");
    assert_eq!(berth(&without, &["volume", "rm", "-f", "data"]).await.succeeded(), "data\n");
    assert_eq!(berth(&root, &["volume", "ls", "-q"]).await.succeeded(), "");
    // What was published goes where no bucket is named, and what never had one.
    switch.turn_on().await;
    assert_eq!(run(&case, &root, "data:/data", "cat /data/file").await.succeeded(), "one\n");
    run(&case, &without, "local:/data", "echo x > /data/file").await.succeeded();
    assert_eq!(berth(&without, &["volume", "rm", "data", "local"]).await.succeeded(), "data\nlocal\n");
}
