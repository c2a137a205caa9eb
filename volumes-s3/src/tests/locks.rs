//! Who waits for a volume, and who works with it.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::fs::FlockOperation;

use crate::lock::open_lock;
use crate::{AcquireOptions, VolumeStore, VolumesConfig};

async fn uses(store: &VolumeStore, volume: impl Fn(usize) -> String) {
    let uses = (0..16).map(|number| {
        let (store, volume) = (store.clone(), volume(number));
        tokio::spawn(async move {
            store.acquire(&volume, &number.to_string(), AcquireOptions::default()).await?;
            store.release(&volume, &number.to_string()).await
        })
    });
    for used in join_all(uses.collect::<Vec<_>>()).await {
        used.unwrap().unwrap();
    }
}

#[test]
fn who_waits_leaves_the_runtimes_threads_to_who_works() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).max_blocking_threads(4).enable_all().build().unwrap();
    let root = tempfile::tempdir().unwrap();
    let config = VolumesConfig { s3: None, ..super::config(root.path(), "one") };
    let directory = config.root.clone();
    let of_another = |number| format!("v{number}");
    let done = runtime.block_on(async {
        let store = VolumeStore::open(config).await.unwrap();
        // What another process has.
        let lock = |number| open_lock(&directory, &of_another(number), FlockOperation::LockExclusive).unwrap();
        let locks: Vec<_> = (0..16).map(lock).collect();
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { uses(&store, of_another).await }
        });
        let shared = uses(&store, |_| "shared".to_owned());
        tokio::time::timeout(Duration::from_secs(60), shared).await?;
        assert!(!waiting.is_finished());
        drop(locks);
        tokio::time::timeout(Duration::from_secs(60), waiting).await
    });
    // Its threads may hang.
    runtime.shutdown_background();
    done.unwrap().unwrap();
}

#[tokio::test]
async fn a_volume_that_somebody_works_with_is_not_idle() {
    let root = tempfile::tempdir().unwrap();
    let config = VolumesConfig { s3: None, ..super::config(root.path(), "one") };
    let directory = config.root.clone();
    let store = VolumeStore::open(config).await.unwrap();
    assert!(store.is_idle("v").await.unwrap());
    // Another process.
    let lock = open_lock(&directory, "v", FlockOperation::LockExclusive).unwrap();
    assert!(!store.is_idle("v").await.unwrap());
    drop(lock);
    // Another task of this one, though it has not asked for the file yet.
    let volume = store.lock("v").await.unwrap();
    assert!(!store.is_idle("v").await.unwrap() && store.is_idle("w").await.unwrap());
    drop(volume);
    assert!(store.is_idle("v").await.unwrap());
}
