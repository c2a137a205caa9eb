//! Local copies of what the bucket has lost.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Host, Memory, readonly};

/// Takes the packs of `v` that `which` picks, by their order, out of the bucket.
fn lose(memory: &Memory, which: impl Fn(usize) -> bool) -> Vec<(String, bytes::Bytes)> {
    let mut objects = memory.objects.lock().unwrap();
    let packs: Vec<_> = objects.keys().filter(|key| key.contains("/v/packs/")).cloned().collect();
    let lost = packs.into_iter().enumerate().filter(|(number, _)| which(*number));
    lost.map(|(_, key)| (key.clone(), objects.remove(&key).unwrap())).collect()
}

fn packs(memory: &Memory) -> usize {
    memory.objects.lock().unwrap().keys().filter(|key| key.contains("/v/packs/")).count()
}

async fn pruned(host: &Host) -> bool {
    let deleted = host.store.prune_local(&Default::default()).await.unwrap().deleted;
    assert_eq!(host.store.inner_root().join("v").exists(), deleted.is_empty());
    !deleted.is_empty()
}

#[tokio::test]
async fn a_local_copy_stays_while_the_bucket_lacks_a_pack_of_it() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    host.write("of the first").await;
    host.store.sync("v").await.unwrap();
    fs::write(data.join("more"), "of the second").unwrap();
    host.store.release("v", "web").await.unwrap();
    let count = packs(&memory);
    assert!(count >= 2, "{count} packs");
    for number in 0..count {
        let lost = lose(&memory, |other| other == number);
        assert!(!pruned(&host).await, "the only copy of pack {number} went");
        // One that is empty is none.
        memory.objects.lock().unwrap().insert(lost[0].0.clone(), bytes::Bytes::new());
        assert!(!pruned(&host).await, "the only copy of pack {number} went");
        memory.objects.lock().unwrap().extend(lost);
    }
    memory.away.store(true, Ordering::SeqCst);
    assert!(!pruned(&host).await, "S3 could not be asked");
    memory.away.store(false, Ordering::SeqCst);
    // Nothing is read for it.
    memory.hang_at_packs.store(true, Ordering::SeqCst);
    assert!(pruned(&host).await);
    memory.hang_at_packs.store(false, Ordering::SeqCst);
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "of the first");
}

#[tokio::test]
async fn of_an_older_copy_the_newest_generation_is_what_must_be_there() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.release("v", "web").await.unwrap();
    two.store.acquire("v", "reader", readonly()).await.unwrap();
    two.store.release("v", "reader").await.unwrap();
    let old = packs(&memory);
    one.acquire().await.unwrap();
    one.write("second").await;
    one.store.release("v", "web").await.unwrap();
    let lost = lose(&memory, |number| number >= old);
    assert!(!lost.is_empty());
    assert!(!pruned(&two).await, "nothing newer can be restored");
    memory.objects.lock().unwrap().extend(lost);
    assert!(pruned(&two).await);
}
