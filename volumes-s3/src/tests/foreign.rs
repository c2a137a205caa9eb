//! Trees that do not bear the volume's mark: a backup that was put back by a copy without extended attributes.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Host, Memory, code};
use crate::AcquireOptions;

/// Puts a copy in the place of the tree, as `cp -r` makes one: without the mark.
async fn put_back(host: &Host, text: &str) -> PathBuf {
    let data = host.data().await;
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), text).unwrap();
    data
}

fn moved_aside(host: &Host) -> PathBuf {
    let entries = fs::read_dir(host.store.inner_root().join("v")).unwrap().map(|entry| entry.unwrap().path());
    let is_foreign = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("foreign-");
    let found: Vec<_> = entries.filter(is_foreign).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[tokio::test]
async fn what_was_moved_aside_is_told_and_kept() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let without = host.without_bucket("one").await;
    host.acquire().await.unwrap();
    host.write("synced").await;
    host.store.release("v", "web").await.unwrap();
    // At once, and not only when the next use has moved it aside.
    let data = put_back(&host, "of the backup").await;
    let status = host.store.status("v").await.unwrap();
    assert_eq!(status.bytes_at_risk, 13);
    assert!(status.last_error.unwrap().contains(data.to_str().unwrap()));
    assert_eq!(code(host.store.remove("v", false, false).await), "volume.foreign");
    assert!(host.store.prune_local(&Default::default()).await.unwrap().deleted.is_empty());

    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "synced");
    host.store.release("v", "web").await.unwrap();
    let aside = moved_aside(&host);
    for store in [&host.store, &without] {
        let status = store.status("v").await.unwrap();
        assert_eq!((status.bytes_at_risk, status.size_bytes), (13, Some(6)));
        assert!(status.last_error.unwrap().contains(aside.to_str().unwrap()));
        for remote in [false, true] {
            if remote && std::ptr::eq(store, &without) {
                continue;
            }
            let error = store.remove("v", remote, false).await.unwrap_err();
            assert_eq!(error.code(), "volume.foreign");
            assert!(error.to_string().contains(aside.to_str().unwrap()), "it does not say where: {error}");
        }
    }
    assert!(host.store.prune_local(&Default::default()).await.unwrap().deleted.is_empty());
    assert_eq!(fs::read_to_string(aside.join("file")).unwrap(), "of the backup");
    // A sync is not kept from its work, and says that it is there still.
    assert_eq!(host.store.sync("v").await.unwrap().bytes_at_risk, 13);

    // Taken away by hand, nothing is told of it any more.
    fs::rename(&aside, host._root.path().join("saved")).unwrap();
    let status = host.store.status("v").await.unwrap();
    assert_eq!((status.bytes_at_risk, status.last_error), (0, None));
    fs::rename(host._root.path().join("saved"), &aside).unwrap();
    host.store.remove("v", false, true).await.unwrap();
    assert!(!host.store.inner_root().join("v").exists());
}

#[tokio::test]
async fn a_volume_without_a_bucket_keeps_it_too() {
    let host = Host::new("one", &Arc::new(Memory::default())).await;
    let without = host.without_bucket("one").await;
    let data = without.acquire("v", "web", AcquireOptions::default()).await.unwrap().path;
    fs::write(data.join("file"), "local").unwrap();
    without.release("v", "web").await.unwrap();
    let data = put_back(&host, "of the backup").await;
    assert_eq!(without.status("v").await.unwrap().bytes_at_risk, 13);
    assert_eq!(code(without.remove("v", false, false).await), "volume.foreign");
    without.acquire("v", "web", AcquireOptions::default()).await.unwrap();
    without.release("v", "web").await.unwrap();
    assert!(fs::read_dir(&data).unwrap().next().is_none(), "it was taken for the volume's own");
    assert_eq!(without.list().await.unwrap()[0].bytes_at_risk, 13);
    assert_eq!(code(without.remove("v", false, false).await), "volume.foreign");
    assert_eq!(fs::read_to_string(moved_aside(&host).join("file")).unwrap(), "of the backup");
    without.remove("v", false, true).await.unwrap();
}
