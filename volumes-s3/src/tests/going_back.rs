//! An older generation restored in place is a change made here: published like any other, and as little lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::VolumeStatus;

use super::{Host, Memory, code};
use crate::RestoreOptions;
use crate::log::Log;
use crate::record::RecordKind;

/// A host whose volume has the generations that these write, and no user.
async fn with_history(memory: &Arc<Memory>, texts: &[&str]) -> (Host, Vec<u64>) {
    let host = Host::new("one", memory).await;
    let mut generations = Vec::new();
    host.acquire().await.unwrap();
    for text in texts {
        host.write(text).await;
        generations.extend(host.store.sync("v").await.unwrap().generation);
    }
    host.store.release("v", "web").await.unwrap();
    (host, generations)
}

async fn go_back(host: &Host, generation: u64) {
    let options = RestoreOptions { generation: Some(generation), ..RestoreOptions::default() };
    assert_eq!(host.store.restore("v", options).await.unwrap().generation, generation);
}

fn kept(status: &VolumeStatus) -> (Option<u64>, u64, Option<&str>) {
    (status.generation, status.bytes_at_risk, status.owner.as_deref())
}

#[tokio::test]
async fn the_next_sync_publishes_it_and_sends_nothing_again() {
    let memory = Arc::new(Memory::default());
    let (host, generations) = with_history(&memory, &["old", "new"]).await;
    let [old, new] = generations[..] else { panic!("{generations:?}") };
    go_back(&host, old).await;
    let packs = |memory: &Memory| memory.objects.lock().unwrap().keys().filter(|key| key.contains("/packs/")).count();
    let before = packs(&memory);
    let status = host.store.sync("v").await.unwrap();
    let published = status.generation.unwrap();
    assert!(published > new, "nothing was published: {status:?}");
    assert_eq!(kept(&status), (Some(published), 0, None));
    let newest = Log::new(memory.clone(), "p/v/".into()).read(published).await.unwrap().unwrap();
    let tree = newest.tree.unwrap();
    assert_eq!((newest.kind, tree.parent, tree.new_bytes), (RecordKind::Data, Some(new), 0));
    assert_eq!(packs(&memory), before, "sent again");
    let other = Host::new("two", &memory).await;
    other.acquire().await.unwrap();
    assert_eq!(other.read().await, "old");
    other.store.release("v", "web").await.unwrap();

    // The newest is what is there already.
    let records = memory.puts.load(Ordering::SeqCst);
    go_back(&host, published).await;
    assert_eq!(host.store.sync("v").await.unwrap().generation, Some(published));
    assert_eq!(memory.puts.load(Ordering::SeqCst), records, "published for nothing");
}

#[tokio::test]
async fn a_branch_goes_the_same_way() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.sync("v").await.unwrap();
    one.write("of the branch").await;
    two.take_over().await.unwrap();
    two.write("second").await;
    two.store.release("v", "web").await.unwrap();
    let Err(crate::Error::Fenced { branch: Some(branch), .. }) = one.store.sync("v").await else { panic!("no branch") };
    one.store.release("v", "web").await.unwrap();
    go_back(&two, branch).await;
    let published = two.store.sync("v").await.unwrap().generation.unwrap();
    assert!(published > branch, "nothing was published");
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "of the branch");
    one.store.release("v", "web").await.unwrap();
}

#[tokio::test]
async fn it_is_not_undone_in_silence() {
    let memory = Arc::new(Memory::default());
    let (host, generations) = with_history(&memory, &["old", "new"]).await;
    go_back(&host, generations[0]).await;
    assert!(host.store.prune_local().await.unwrap().deleted.is_empty());
    assert_eq!(code(host.store.remove("v", false, false).await), "volume.unpublished");
    // Somebody else has gone on meanwhile.
    let other = Host::new("two", &memory).await;
    other.acquire().await.unwrap();
    assert_eq!(other.read().await, "new");
    other.write("newer").await;
    other.store.release("v", "web").await.unwrap();
    assert_eq!(code(host.store.sync("v").await), "volume.fenced");
    assert_eq!(code(host.acquire().await), "volume.conflict");
    assert_eq!(host.read().await, "old");
    // All of it is in S3: what is there may be taken without more words.
    host.store.restore("v", RestoreOptions::default()).await.unwrap();
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "newer");
}
