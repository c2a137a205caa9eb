//! What the `berth` command shows, restores and removes of a volume that belongs to a bucket.

use std::path::Path;

use aws_sdk_s3::primitives::ByteStream;

use crate::support::Case;
use crate::support::berth::{Said, berth};
use crate::support::case::eventually;
use crate::support::root::Root;
use crate::support::servers::S3_BUCKET;

crate::tests![
    rm_keeps_what_the_bucket_lacks_also_where_no_bucket_is_named,
    a_read_only_volume_is_restored_where_the_host_lacks_it,
    a_create_whose_restore_fails_leaves_nothing,
    ls_counts_what_was_never_synced,
    a_backup_put_back_without_the_mark_is_told_and_kept,
    a_volume_with_a_damaged_state_is_listed_and_removed,
    a_damaged_volume_is_not_removed_beneath_its_container_and_does_not_keep_that,
    prune_keeps_a_copy_of_what_the_bucket_has_lost,
    a_stopped_containers_volume_is_neither_removed_nor_pruned,
    a_start_during_a_stop_keeps_its_volume,
];

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

async fn a_stopped_containers_volume_is_neither_removed_nor_pruned(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let image = case.suite.busybox().await;
    let words = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sleep", "300"];
    berth(&root, &words).await.succeeded();
    berth(&root, &["exec", "web", "sh", "-c", "echo kept > /data/file"]).await.succeeded();
    berth(&root, &["stop", "-t", "0", "web"]).await.succeeded();
    let (code, message) = berth(&root, &["--json", "volume", "rm", "data"]).await.refused(1);
    assert!(code == "volume.in_use" && message.contains("web"), "{code}: {message}");
    let pruned = berth(&root, &["--json", "volume", "prune", "-f"]).await.json();
    assert_eq!(pruned["deleted"], serde_json::json!([]), "{pruned}");
    berth(&root, &["start", "web"]).await.succeeded();
    assert_eq!(berth(&root, &["exec", "web", "cat", "/data/file"]).await.succeeded(), "kept\n");
    berth(&root, &["rm", "-f", "web"]).await.succeeded();
    assert_eq!(berth(&root, &["volume", "rm", "data"]).await.succeeded(), "data\n");
}

async fn a_start_during_a_stop_keeps_its_volume(case: Case) {
    let root = case.root_with_s3("root", "p").await;
    let image = case.suite.busybox().await;
    let script = "trap 'sleep 8; exit' TERM; echo up; while :; do sleep 0.1; done";
    let words = ["run", "-d", "--name", "web", "-v", "data:/data", image, "sh", "-c", script];
    berth(&root, &words).await.succeeded();
    let up = async |times| {
        let has_said_so = async || berth(&root, &["logs", "web"]).await.stdout.lines().count() >= times;
        eventually("it is up", || has_said_so()).await;
    };
    up(1).await;
    let stopping = {
        let root = root.clone();
        tokio::spawn(async move { berth(&root, &["stop", "web"]).await.succeeded() })
    };
    let state = async || berth(&root, &["inspect", "-f", "{{.state}}", "web"]).await.stdout;
    eventually("it is being stopped", || async { state().await == "stopping\n" }).await;
    berth(&root, &["start", "web"]).await.succeeded();
    stopping.await.unwrap();
    up(2).await;
    let volume = async || berth(&root, &["volume", "inspect", "--json", "data"]).await.json();
    let inspected = volume().await;
    assert!(!inspected[0]["owner"].is_null(), "its claim was given back beneath it: {inspected}");
    berth(&root, &["exec", "web", "sh", "-c", "echo late > /data/file"]).await.succeeded();
    berth(&root, &["stop", "-t", "0", "web"]).await.succeeded();
    berth(&root, &["rm", "web"]).await.succeeded();
    let other = case.root_with_s3("other", "p").await;
    assert_eq!(run(&case, &other, "data:/data", "cat /data/file").await.succeeded(), "late\n");
}

async fn a_read_only_volume_is_restored_where_the_host_lacks_it(case: Case) {
    let (owner, reader) = (case.root_with_s3("owner", "p").await, case.root_with_s3("reader", "p").await);
    let image = case.suite.busybox().await;
    let idle = "echo first > /data/file; sleep 300";
    let words = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sh", "-c", idle];
    berth(&owner, &words).await.succeeded();
    while berth(&owner, &["exec", "web", "test", "-s", "/data/file"]).await.code != 0 {}
    berth(&owner, &["volume", "sync", "data"]).await.succeeded();
    // Another host has claimed it: that is no matter of who reads.
    let read = async || {
        run(&case, &reader, "data:/data:ro", "cat /data/file; ! echo x 2> /dev/null > /data/file").await.succeeded()
    };
    assert_eq!(read().await, "first\n");
    berth(&owner, &["exec", "web", "sh", "-c", "echo second > /data/file"]).await.succeeded();
    berth(&owner, &["stop", "-t", "0", "web"]).await.succeeded();
    berth(&owner, &["rm", "web"]).await.succeeded();
    assert_eq!(read().await, "second\n");
    assert_eq!(run(&case, &reader, "data:/data", "echo third >> /data/file").await.succeeded(), "");
    assert_eq!(run(&case, &owner, "data:/data", "cat /data/file").await.succeeded(), "second\nthird\n");
}

/// Inverts a bit in the middle of every pack of volume `data`, there and back.
async fn damage_packs(case: &Case, root: &Root) {
    let s3 = case.suite.s3().await;
    let prefix = format!("{}/data/packs/", root.s3.as_ref().unwrap().prefix);
    let listed = s3.client.list_objects_v2().bucket(S3_BUCKET).prefix(prefix).send().await.unwrap();
    for key in listed.contents().iter().filter_map(|object| object.key()) {
        let object = s3.client.get_object().bucket(S3_BUCKET).key(key).send().await.unwrap();
        let mut body = object.body.collect().await.unwrap().to_vec();
        let middle = body.len() / 2;
        body[middle] ^= 1;
        s3.client.put_object().bucket(S3_BUCKET).key(key).body(ByteStream::from(body)).send().await.unwrap();
    }
}

async fn a_create_whose_restore_fails_leaves_nothing(case: Case) {
    let (owner, other) = (case.root_with_s3("owner", "p").await, case.root_with_s3("other", "p").await);
    run(&case, &owner, "data:/data", "head -c 6000000 /dev/urandom > /data/file").await.succeeded();
    damage_packs(&case, &owner).await;
    for mount in ["data:/data", "data:/data:ro"] {
        let said = run(&case, &other, mount, "true").await;
        assert!(said.code == 125 && said.stderr.contains("volume data"), "{said:?}");
        assert_eq!(berth(&other, &["volume", "ls", "-q"]).await.succeeded(), "");
        assert!(!Path::new(&other.dir).join("volumes/data").exists(), "half a volume stayed");
    }
    // The claim made for it is given back, and what is whole again is restored.
    damage_packs(&case, &owner).await;
    run(&case, &owner, "data:/data", "echo x > /data/x").await.succeeded();
    assert_eq!(run(&case, &other, "data:/data", "wc -c < /data/file").await.succeeded(), "6000000\n");
}

async fn ls_counts_what_was_never_synced(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let without = Root { s3: None, ..root.clone() };
    let image = case.suite.busybox().await;
    let idle = "head -c 5000000 /dev/urandom > /data/file; sleep 300";
    let words = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sh", "-c", idle];
    berth(&root, &words).await.succeeded();
    let size = ["exec", "web", "sh", "-c", "[ $(stat -c %s /data/file) = 5000000 ]"];
    while berth(&root, &size).await.code != 0 {}
    let told = berth(&root, &["volume", "ls", "--json"]).await.json();
    assert_eq!(told[0]["bytes_at_risk"], 5_000_000, "{told}");
    assert!(told[0]["durable_at"].is_null() && told[0]["size_bytes"] == 5_000_000, "{told}");
    let told = berth(&without, &["volume", "inspect", "data"]).await.json();
    assert_eq!(told[0]["bytes_at_risk"], 5_000_000, "{told}");
    berth(&root, &["volume", "sync", "data"]).await.succeeded();
    assert_eq!(berth(&root, &["volume", "ls", "--json"]).await.json()[0]["bytes_at_risk"], 0);
    berth(&root, &["exec", "web", "sh", "-c", "echo more > /data/more"]).await.succeeded();
    assert_eq!(berth(&root, &["volume", "ls", "--json"]).await.json()[0]["bytes_at_risk"], 5);
    berth(&root, &["rm", "-f", "web"]).await.succeeded();
    assert_eq!(berth(&root, &["volume", "ls", "--json"]).await.json()[0]["bytes_at_risk"], 0);
}

async fn a_backup_put_back_without_the_mark_is_told_and_kept(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    let local = Root { s3: None, ..root.clone() };
    for (root, name) in [(&root, "data"), (&local, "local")] {
        let mount = format!("{name}:/data");
        run(&case, root, &mount, "echo synced > /data/file").await.succeeded();
        // As `cp -r` puts it back.
        let directory = root.dir.join("volumes").join(name);
        std::fs::remove_dir_all(directory.join("data")).unwrap();
        std::fs::create_dir(directory.join("data")).unwrap();
        std::fs::write(directory.join("data/file"), "of the backup").unwrap();
        run(&case, root, &mount, "true").await.succeeded();
        let moved = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
        let moved: Vec<_> = moved.filter(|path| path.to_str().unwrap().contains("/foreign-")).collect();
        let [aside] = moved.as_slice() else { panic!("{moved:?}") };
        let told = berth(root, &["volume", "inspect", name]).await.json();
        assert_eq!(told[0]["bytes_at_risk"], 13, "{told}");
        assert!(told[0]["last_error"].as_str().unwrap().contains(aside.to_str().unwrap()), "{told}");
        let said = berth(root, &["volume", "rm", name]).await;
        assert!(said.code == 1 && said.stderr.contains(aside.to_str().unwrap()), "{said:?}");
        assert_eq!(berth(root, &["volume", "prune", "-f", "--json"]).await.json()["deleted"], serde_json::json!([]));
        assert_eq!(std::fs::read_to_string(aside.join("file")).unwrap(), "of the backup");
        berth(root, &["volume", "rm", "-f", name]).await.succeeded();
        assert!(!directory.exists());
    }
}

async fn a_volume_with_a_damaged_state_is_listed_and_removed(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    for name in ["before", "data", "later"] {
        run(&case, &root, &format!("{name}:/data"), "echo x > /data/file").await.succeeded();
    }
    let directory = root.dir.join("volumes/data");
    std::fs::write(directory.join("state.json"), "{").unwrap();
    let told = berth(&root, &["volume", "ls", "--json"]).await.json();
    let names: Vec<_> = told.as_array().unwrap().iter().map(|status| status["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["before", "data", "later"]);
    assert!(told[1]["last_error"].as_str().unwrap().contains("state.json"), "{told}");
    assert!(told[0]["last_error"].is_null() && told[2]["last_error"].is_null(), "{told}");
    let said = berth(&root, &["volume", "rm", "data"]).await;
    assert!(said.code == 1 && said.stderr.contains("`berth volume rm -f data`") && directory.exists(), "{said:?}");
    berth(&root, &["volume", "rm", "-f", "data"]).await.succeeded();
    assert!(!directory.exists());
    assert_eq!(run(&case, &root, "data:/data", "cat /data/file").await.succeeded(), "x\n");
}

async fn a_damaged_volume_is_not_removed_beneath_its_container_and_does_not_keep_that(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    run(&case, &root, "data:/data", "echo synced > /data/file").await.succeeded();
    let image = case.suite.busybox().await;
    let idle = ["run", "-d", "--name", "web", "--network", "none", "-v", "data:/data", image, "sleep", "300"];
    berth(&root, &idle).await.succeeded();
    let directory = root.dir.join("volumes/data");
    std::fs::write(directory.join("state.json"), "{").unwrap();
    // Running or not.
    for stopped in [false, true] {
        if stopped {
            let said = berth(&root, &["stop", "-t", "0", "web"]).await;
            assert!(said.code == 0 && said.stderr.contains("state.json cannot be read"), "{said:?}");
        }
        for words in [&["volume", "rm", "-f", "data"][..], &["volume", "rm", "-f", "--remote", "data"]] {
            let said = berth(&root, words).await;
            assert!(said.code == 1 && said.stderr.contains("while in use by web-rep-0\nhint: "), "{said:?}");
        }
        assert_eq!(std::fs::read_to_string(directory.join("data/file")).unwrap(), "synced\n");
    }
    // It goes, and says that nobody knows what of its volume is elsewhere.
    let said = berth(&root, &["rm", "-f", "web"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "web\n"), "{said:?}");
    let told =
        said.stderr.contains("volume data: not durable yet: ") && said.stderr.contains("state.json cannot be read");
    assert!(told && said.stderr.contains("`berth volume rm -f data`"), "{said:?}");
    berth(&root, &["volume", "rm", "-f", "data"]).await.succeeded();
    assert_eq!(run(&case, &root, "data:/data", "cat /data/file").await.succeeded(), "synced\n");
}

async fn prune_keeps_a_copy_of_what_the_bucket_has_lost(case: Case) {
    let root = Root { keeper: false, ..case.root_with_s3("root", "p").await };
    run(&case, &root, "data:/data", "head -c 6000000 /dev/urandom > /data/file").await.succeeded();
    run(&case, &root, "data:/data", "echo second > /data/second").await.succeeded();
    let s3 = case.suite.s3().await;
    let prefix = format!("{}/data/packs/", root.s3.as_ref().unwrap().prefix);
    let listed = s3.client.list_objects_v2().bucket(S3_BUCKET).prefix(prefix).send().await.unwrap();
    let largest = listed.contents().iter().max_by_key(|object| object.size()).unwrap().key().unwrap();
    let object = s3.client.get_object().bucket(S3_BUCKET).key(largest).send().await.unwrap();
    let body = object.body.collect().await.unwrap().into_bytes();
    s3.client.delete_object().bucket(S3_BUCKET).key(largest).send().await.unwrap();
    let prune = async || berth(&root, &["volume", "prune", "-f", "--json"]).await;
    let kept = prune().await;
    assert!(kept.code == 0 && kept.stderr.contains("is gone") && kept.stderr.contains("data"), "{kept:?}");
    assert!(root.dir.join("volumes/data/data/file").exists(), "{kept:?}");
    s3.client.put_object().bucket(S3_BUCKET).key(largest).body(ByteStream::from(body)).send().await.unwrap();
    assert_eq!(prune().await.json()["deleted"], serde_json::json!(["data"]));
    assert_eq!(run(&case, &root, "data:/data", "wc -c < /data/file").await.succeeded(), "6000000\n");
}
