//! What a status tells: truly, and without a request.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Host, Memory, readonly};
use crate::AcquireOptions;

async fn at_risk(store: &crate::VolumeStore) -> u64 {
    store.status("v").await.unwrap().bytes_at_risk
}

#[tokio::test]
async fn all_that_the_bucket_lacks_is_at_risk_also_before_the_first_sync() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let without = host.without_bucket("one").await;
    host.acquire().await.unwrap();
    assert_eq!(at_risk(&host.store).await, 0);
    host.write("only here").await;
    let asked = memory.asked.load(Ordering::SeqCst);
    let status = host.store.status("v").await.unwrap();
    assert_eq!((status.bytes_at_risk, status.size_bytes, status.durable_at), (9, Some(9), None));
    // Whoever looks, and asks for a sync that it cannot have.
    assert_eq!(at_risk(&without).await, 9);
    assert_eq!(without.sync("v").await.unwrap().bytes_at_risk, 9);
    assert_eq!(host.store.list().await.unwrap()[0].bytes_at_risk, 9);
    assert_eq!(memory.asked.load(Ordering::SeqCst), asked, "a status is no request");
    host.store.sync("v").await.unwrap();
    assert_eq!(at_risk(&host.store).await, 0);
    // Since the last sync, while it is used.
    fs::write(host.data().await.join("more"), "of it").unwrap();
    let status = host.store.status("v").await.unwrap();
    assert_eq!((status.bytes_at_risk, status.size_bytes), (5, Some(14)));
    host.store.release("v", "web").await.unwrap();
    assert_eq!(at_risk(&host.store).await, 0);
    // A reader's copy is one of what is there.
    let two = Host::new("two", &memory).await;
    two.store.acquire("v", "reader", readonly()).await.unwrap();
    assert_eq!(at_risk(&two.store).await, 0);
}

#[tokio::test]
async fn nothing_is_at_risk_that_was_never_to_be_anywhere_else() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let without = host.without_bucket("one").await;
    let data = without.acquire("v", "web", AcquireOptions::default()).await.unwrap().path;
    fs::write(data.join("file"), "local").unwrap();
    let status = without.status("v").await.unwrap();
    assert_eq!((status.bytes_at_risk, status.size_bytes, status.durable_at), (0, Some(5), None));
    // With a bucket it is to be there.
    assert_eq!(at_risk(&host.store).await, 5);
}
