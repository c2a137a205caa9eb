//! Who reads a generation while it is pruned: it gets all of it, or is told what happened, and never a part.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use runtime_core::{Progress, RestoreOptions};

use super::prunes::{generation, is_whole, keeping_on, listed, text_of};
use super::{Host, Memory, code, readonly};
use crate::{Keep, VolumeStore, VolumesConfig};

#[tokio::test]
async fn a_generation_that_goes_while_it_is_restored_is_no_damage() {
    let memory = Arc::new(Memory::default());
    let host = Host::keeping("two", &memory, 1).await;
    let first = generation(&host, "first").await;
    generation(&host, "second").await;
    let bar = memory.before_pack.write().await;
    let asked = memory.asked.load(Ordering::SeqCst);
    let to = host._root.path().join("beside");
    let restoring = tokio::spawn({
        let (store, to) = (host.store.clone(), to.clone());
        async move {
            store.restore("v", RestoreOptions { generation: Some(first), to: Some(to), ..Default::default() }).await
        }
    });
    // Newest record, that of the generation, and the pack with its manifest.
    let waits = async || memory.before_pack.try_read().is_err() && memory.asked.load(Ordering::SeqCst) > asked;
    while !(waits().await
        && fs::read_dir(host._root.path())
            .unwrap()
            .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(".restore-")))
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let others = memory.by_another_door();
    keeping_on(&host, &others).await.prune("v").await.unwrap();
    memory.enter_by(&others);
    drop(bar);
    assert_eq!(code(restoring.await.unwrap()), "volume.generation_pruned");
    assert!(!to.exists());
}

/// The objects of a history while `second` is the newest, and after `third` has followed and the others were pruned.
async fn before_and_after() -> (u64, [BTreeMap<String, Bytes>; 2]) {
    let memory = Arc::new(Memory::default());
    let host = Host::keeping("one", &memory, 1).await;
    let first = generation(&host, "first").await;
    generation(&host, "second").await;
    let before = memory.objects.lock().unwrap().clone();
    generation(&host, "third").await;
    host.store.prune("v").await.unwrap();
    let after = memory.objects.lock().unwrap().clone();
    (first, [before, after])
}

/// A host at a server that has `before`, and so many of its requests later what is `after`.
async fn turning(
    before: &BTreeMap<String, Bytes>,
    after: &BTreeMap<String, Bytes>,
    requests: usize,
) -> (Host, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    *memory.objects.lock().unwrap() = before.clone();
    let host = Host::new("two", &memory).await;
    host.store.check_server().await.unwrap();
    *memory.turn.lock().unwrap() = Some((requests, after.clone()));
    (host, memory)
}

#[tokio::test]
async fn overtaken_at_any_request_a_restore_is_whole_or_says_that_it_was_pruned() {
    let (first, [before, after]) = before_and_after().await;
    let (mut whole, mut told, mut requests) = (0, 0, 0);
    loop {
        let (host, memory) = turning(&before, &after, requests).await;
        let to = host._root.path().join("beside");
        let options = RestoreOptions { generation: Some(first), to: Some(to.clone()), ..Default::default() };
        match host.store.restore("v", options).await {
            Ok(_) => {
                assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "first");
                whole += 1;
            }
            Err(error) => {
                let is_told = ["volume.generation_pruned", "volume.generation_not_found"].contains(&error.code());
                assert!(is_told, "after {requests} requests: {error:?}");
                assert!(error.hint().unwrap().contains("`berth volume history v`"), "{error:?}");
                assert!(fs::read_dir(host._root.path()).unwrap().all(|entry| {
                    let name = entry.unwrap().file_name();
                    name == "volumes" || name == "run"
                }));
                told += usize::from(error.code() == "volume.generation_pruned");
            }
        }
        if memory.turn.lock().unwrap().is_some() {
            break;
        }
        requests += 1;
    }
    assert!(whole >= 1 && told >= 1, "{whole} whole, {told} told");
}

#[tokio::test]
async fn overtaken_at_any_request_who_wants_the_newest_gets_one() {
    let (_, [before, after]) = before_and_after().await;
    let mut seen = std::collections::BTreeSet::new();
    for how in ["reader", "beside", "in place"] {
        let mut requests = 0;
        loop {
            let (host, memory) = turning(&before, &after, requests).await;
            let to = host._root.path().join("beside");
            let read = match how {
                "reader" => host.store.acquire("v", "reader", readonly()).await.map(|acquired| acquired.path),
                _ => {
                    let to = (how == "beside").then_some(to);
                    let options = RestoreOptions { to, ..RestoreOptions::default() };
                    host.store.restore("v", options).await.map(|report| report.path)
                }
            };
            let path = read.unwrap_or_else(|error| panic!("{how}, after {requests} requests: {error:?}"));
            let text = fs::read_to_string(path.join("file")).unwrap();
            assert!(text == "second" || text == "third", "{how}, after {requests} requests: {text}");
            seen.insert((how, text));
            if memory.turn.lock().unwrap().is_some() {
                break;
            }
            requests += 1;
        }
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[tokio::test]
async fn overtaken_at_any_request_a_verification_finds_no_damage_and_a_comparison_says_why_it_ends() {
    let (first, [before, after]) = before_and_after().await;
    let (mut requests, mut told) = (0, 0);
    loop {
        let (host, memory) = turning(&before, &after, requests).await;
        let report = host.store.verify("v", None, Progress::default()).await.unwrap();
        assert_eq!(report.damaged, [], "after {requests} requests");
        let is_over = memory.turn.lock().unwrap().is_some();
        let store = turning(&before, &after, requests).await.0.store;
        let newest = first + 3;
        for read in [
            store.verify("v", Some(first), Progress::default()).await.map(drop),
            store.diff("v", first, newest).await.map(drop),
        ] {
            let read = code(read);
            told += usize::from(read == "volume.generation_pruned");
            assert!(["ok", "volume.generation_pruned", "volume.generation_not_found"].contains(&read), "{read}");
        }
        if is_over {
            break;
        }
        requests += 1;
    }
    assert!(told > 0);
}

#[tokio::test]
async fn with_s3_away_in_the_middle_nobody_is_told_that_it_was_pruned() {
    let (first, [before, after]) = before_and_after().await;
    for requests in 0..60 {
        let (host, memory) = turning(&before, &after, requests / 2).await;
        memory.away_after.store(requests + 1, Ordering::SeqCst);
        let options = RestoreOptions { generation: Some(first), ..RestoreOptions::default() };
        let restored = code(host.store.restore("v", options).await);
        if memory.away.load(Ordering::SeqCst) {
            let codes = ["volume.s3_unreachable", "volume.generation_not_found", "volume.generation_pruned", "ok"];
            assert!(codes.contains(&restored), "after {requests} requests: {restored}");
        }
        assert_ne!(restored, "volume.corrupt", "after {requests} requests");
    }
}

/// Another process of `host`, which leaves what it prunes to readers for `grace`.
async fn patient(host: &Host, memory: &Arc<Memory>, grace: Duration) -> VolumeStore {
    let keep = Some(Keep { last: 1, ..Keep::default() });
    let config = VolumesConfig { keep, prune_grace: grace, ..super::config(host._root.path(), "one") };
    VolumeStore::open_with(config, memory.clone()).await.unwrap()
}

#[tokio::test]
async fn what_the_keeper_prunes_is_there_for_its_grace_for_who_reads_it() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    let first = generation(&one, "first").await;
    generation(&one, "second").await;
    let packs = memory.keys("/packs/");
    // A restore elsewhere is in the middle of it.
    let bar = memory.before_pack.write().await;
    let reading = {
        let (store, to) = (two.store.clone(), two._root.path().join("beside"));
        let options = RestoreOptions { generation: Some(first), to: Some(to), ..Default::default() };
        tokio::spawn(async move { store.restore("v", options).await })
    };
    let beside = || fs::read_dir(two._root.path()).unwrap().flatten();
    while !beside().any(|entry| entry.file_name().to_string_lossy().starts_with(".restore-")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (grace, others) = (Duration::from_millis(1500), memory.by_another_door());
    let keeper = patient(&one, &others, grace).await;
    let retained = keeper.retain("v").await.unwrap();
    assert_eq!(retained.pruned.removed, [first]);
    assert!(retained.unfinished.is_some_and(|left| left > grace / 2 && left <= grace), "{retained:?}");
    assert_eq!(others.keys("/packs/"), packs);
    memory.enter_by(&others);
    drop(bar);
    let restored = reading.await.unwrap().unwrap();
    assert_eq!(fs::read_to_string(restored.path.join("file")).unwrap(), "first");
    // It is decided all the same: nobody begins to read it any more, and who keeps next knows of what waits.
    assert_eq!(code(text_of(&two, first).await), "volume.generation_not_found");
    assert!(one.store.inner_root().join(".grown/v").exists());
    // Whoever else looks waits, too, and decides nothing meanwhile.
    generation(&one, "third").await;
    let keeper = patient(&one, &memory, grace).await;
    let again = keeper.retain("v").await.unwrap();
    assert!(again.unfinished.is_some() && again.pruned.removed.is_empty(), "{again:?}");
    let left = keeper.finish_prune("v").await.unwrap().expect("its time is not over");
    assert!(packs.iter().all(|pack| memory.keys("/packs/").contains(pack)));
    tokio::time::sleep(left).await;
    assert_eq!(keeper.finish_prune("v").await.unwrap(), None);
    assert!(!packs.iter().all(|pack| memory.keys("/packs/").contains(pack)));
    assert!(memory.keys("/prunes/").is_empty());
    is_whole(&two).await;
    // By hand all of it goes at once.
    let keeper = patient(&one, &memory, Duration::MAX).await;
    assert!(keeper.retain("v").await.unwrap().unfinished.is_some());
    assert!(!memory.keys("/prunes/").is_empty());
    keeper.prune("v").await.unwrap();
    assert!(memory.keys("/prunes/").is_empty());
    assert_eq!(listed(&two).await.len(), 1);
    is_whole(&two).await;
    assert_eq!(keeper.finish_prune("v").await.unwrap(), None);
}
