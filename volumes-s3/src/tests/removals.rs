//! What a removal may take away, and what it may not, whatever bucket the process has that removes.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::Progress;

use super::{Host, Memory, code};
use crate::{AcquireOptions, S3Config, VolumeStore};

fn at_another_place(s3: S3Config) -> S3Config {
    S3Config { endpoint: Some("http://elsewhere".into()), ..s3 }
}

async fn use_and_write(store: &VolumeStore, text: &str) {
    let data = store.acquire("v", "web", AcquireOptions::default()).await.unwrap().path;
    fs::write(data.join("file"), text).unwrap();
    store.release("v", "web").await.unwrap();
}

#[tokio::test]
async fn who_does_not_know_the_bucket_removes_nothing_that_it_lacks() {
    let (memory, elsewhere) = (Arc::new(Memory::default()), Arc::new(Memory::default()));
    let host = Host::new("one", &memory).await;
    let without = host.without_bucket("one").await;
    let other = host.again("one", &elsewhere, at_another_place).await;
    host.acquire().await.unwrap();
    host.write("precious").await;
    memory.away.store(true, Ordering::SeqCst);
    host.store.release("v", "web").await.unwrap().expect("it is owed");
    assert_eq!(code(without.remove("v", false, false).await), "volume.unsynced");
    assert_eq!(code(other.remove("v", false, false).await), "volume.unsynced");
    assert_eq!(code(other.remove("v", true, false).await), "volume.unsynced");
    assert_eq!(host.read().await, "precious");
    memory.away.store(false, Ordering::SeqCst);
    host.store.retry("v").await.unwrap();

    // Used where no bucket is known, it is owed as well.
    use_and_write(&without, "without").await;
    assert_eq!(host.store.owing().await.unwrap(), ["v"]);
    assert!(host.store.debts().unwrap().join("v").exists(), "nobody is told that it is owed");
    assert_eq!(code(without.remove("v", false, false).await), "volume.unsynced");
    host.store.retry("v").await.unwrap();

    // A claim that only this host can give back.
    host.store.claim("v", false, Progress::default()).await.unwrap();
    assert_eq!(code(without.remove("v", false, false).await), "volume.owing");
    assert_eq!(code(other.remove("v", false, false).await), "volume.owing");
    other.remove("v", false, true).await.unwrap();
    assert!(!elsewhere.objects.lock().unwrap().keys().any(|key| key.starts_with("p/v/")), "put into another's log");

    // What the bucket holds as it is goes, whoever asks.
    use_and_write(&host.store, "synced").await;
    without.remove("v", false, false).await.unwrap();
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "synced");
    host.store.release("v", "web").await.unwrap();
    other.remove("v", false, false).await.unwrap();

    // By name, even what is nowhere else.
    host.acquire().await.unwrap();
    host.write("worthless").await;
    memory.away.store(true, Ordering::SeqCst);
    host.store.release("v", "web").await.unwrap().expect("it is owed");
    without.remove("v", false, true).await.unwrap();
    assert_eq!(code(host.store.status("v").await), "volume.not_found");
}

#[tokio::test]
async fn what_never_had_a_bucket_is_removed_where_there_is_none() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let without = host.without_bucket("one").await;
    use_and_write(&without, "local").await;
    // Here it could have been brought to S3.
    assert_eq!(code(host.store.remove("v", false, false).await), "volume.unsynced");
    without.remove("v", false, false).await.unwrap();
    assert!(without.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_removal_cut_off_anywhere_is_finished_by_the_next() {
    for requests in 1..80 {
        let memory = Arc::new(Memory::default());
        let host = Host::keeping("one", &memory, 1).await;
        for text in ["first", "second"] {
            use_and_write(&host.store, text).await;
            host.store.prune("v").await.unwrap();
        }
        assert_eq!(memory.keys("/kept/").len(), 1);
        memory.away_after.store(requests, Ordering::SeqCst);
        let is_cut = host.store.remove("v", true, false).await.is_err();
        memory.away_after.store(0, Ordering::SeqCst);
        memory.away.store(false, Ordering::SeqCst);
        if is_cut {
            host.store.remove("v", true, false).await.unwrap_or_else(|error| panic!("after {requests}: {error}"));
        }
        assert_eq!(memory.keys("p/v/"), Vec::<String>::new(), "after {requests} requests");
        if !is_cut {
            assert!(requests > 8);
            return;
        }
    }
    panic!("it was always cut off");
}
