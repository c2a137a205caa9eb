//! An older generation restored in place is a change made here: published like any other, and as little lost.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{RecordKind, RestoreOptions, VolumeStatus};

use super::{Host, Memory, code};
use crate::log::Log;

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
async fn its_status_says_that_it_is_not_published_until_it_is() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    fs::write(data.join("same"), "in both of them").unwrap();
    host.write("older").await;
    let old = host.store.sync("v").await.unwrap().generation.unwrap();
    host.write("new").await;
    host.store.release("v", "web").await.unwrap();
    go_back(&host, old).await;
    let asked = memory.asked.load(Ordering::SeqCst);
    // What a new host would get lacks five bytes of what is here.
    let told = |status: VolumeStatus, bytes| {
        assert_eq!(
            (status.generation, status.durable_at, status.bytes_at_risk),
            (Some(old), None, bytes),
            "{status:?}"
        );
        let said = status.last_error.as_deref().unwrap_or_default();
        assert!(
            said.contains(&format!("generation {old} was restored here")) || said.contains("unreachable"),
            "{said}"
        );
    };
    told(host.store.status("v").await.unwrap(), 5);
    told(host.store.list().await.unwrap().remove(0), 5);
    told(host.without_bucket("one").await.status("v").await.unwrap(), 5);
    assert_eq!(memory.asked.load(Ordering::SeqCst), asked, "a status is no request");
    // While it is used, and while S3 is away.
    host.acquire().await.unwrap();
    told(host.store.status("v").await.unwrap(), 5);
    fs::write(data.join("more"), "of it").unwrap();
    told(host.store.status("v").await.unwrap(), 10);
    memory.away.store(true, Ordering::SeqCst);
    assert_eq!(code(host.store.sync("v").await), "volume.s3_unreachable");
    host.store.release("v", "web").await.unwrap();
    let status = host.store.status("v").await.unwrap();
    assert_eq!((status.durable_at, status.bytes_at_risk), (None, 10), "{status:?}");
    memory.away.store(false, Ordering::SeqCst);
    host.store.retry("v").await.unwrap();
    let status = host.store.status("v").await.unwrap();
    assert!(status.generation > Some(old) && status.durable_at.is_some() && status.last_error.is_none(), "{status:?}");
    assert_eq!(status.bytes_at_risk, 0);
    // The newest restored is as durable as it was.
    go_back(&host, status.generation.unwrap()).await;
    assert_eq!(host.store.status("v").await.unwrap(), status);
}

#[tokio::test]
async fn killed_before_its_state_was_written_it_is_at_risk_and_not_undone() {
    let memory = Arc::new(Memory::default());
    let (host, generations) = with_history(&memory, &["old", "newer"]).await;
    let state = host.store.inner_root().join("v/state.json");
    let before = fs::read(&state).unwrap();
    go_back(&host, generations[0]).await;
    fs::write(&state, before).unwrap();
    let status = host.store.status("v").await.unwrap();
    assert_eq!(status.bytes_at_risk, 3, "{status:?}");
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "old");
    assert!(host.store.release("v", "web").await.unwrap().is_none());
    assert_eq!(host.store.status("v").await.unwrap().bytes_at_risk, 0);
    let other = Host::new("two", &memory).await;
    other.acquire().await.unwrap();
    assert_eq!(other.read().await, "old");
}

#[tokio::test]
async fn where_the_newest_is_damaged_all_of_it_is_at_risk() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("older").await;
    let old = host.store.sync("v").await.unwrap().generation.unwrap();
    let packs = memory.keys("/packs/");
    host.write("new").await;
    host.store.release("v", "web").await.unwrap();
    memory.objects.lock().unwrap().retain(|key, _| !key.contains("/packs/") || packs.contains(key));
    go_back(&host, old).await;
    let status = host.store.status("v").await.unwrap();
    assert_eq!((status.durable_at, status.bytes_at_risk), (None, 5), "{status:?}");
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
    assert!(host.store.prune_local(&Default::default()).await.unwrap().deleted.is_empty());
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
