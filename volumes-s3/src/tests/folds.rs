//! A log of renewals is cut off also where no retention is configured; every tree stays.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime_core::{RecordKind, RestoreOptions};

use super::prunes::{is_whole, listed, text_of};
use super::{Host, Memory, code};
use crate::log::{Append, Log};
use crate::pack::Digest;
use crate::prune::{LONG_LOG, MOST_KEPT};
use crate::record::{PruneSummary, Record};
use crate::{VolumeStore, VolumesConfig};

/// A host that would renew its claims, in an hour.
async fn renewing(name: &str, memory: &Arc<Memory>) -> Host {
    let host = Host::new(name, memory).await;
    let take_over_after = Some(Duration::from_secs(3 * 3600));
    let config = VolumesConfig { take_over_after, ..super::config(host._root.path(), name) };
    Host { store: VolumeStore::open_with(config, memory.clone()).await.unwrap(), _root: host._root }
}

/// So many renewals by `host`, as it makes them in days.
async fn renew(memory: &Arc<Memory>, host: &str, count: usize) {
    let log = Log::new(memory.clone(), "p/v/".into());
    let mut head = log.head(None).await.unwrap().unwrap();
    for _ in 0..count {
        head = Record::after(Some(&head), RecordKind::Claim, host);
        assert!(matches!(log.append(&head).await.unwrap(), Append::Won));
    }
}

#[tokio::test]
async fn a_long_log_of_renewals_is_cut_off_and_every_tree_stays() {
    let memory = Arc::new(Memory::default());
    let host = renewing("one", &memory).await;
    host.acquire().await.unwrap();
    let mut generations = Vec::new();
    for text in ["first", "second"] {
        host.write(text).await;
        generations.extend(host.store.sync("v").await.unwrap().generation);
        renew(&memory, "one", LONG_LOG / 2 - 10).await;
    }
    // Not long yet: that costs some requests, whatever the log holds, and puts nothing.
    let (asked, puts) = (memory.asked.load(Ordering::SeqCst), memory.puts.load(Ordering::SeqCst));
    let retained = host.store.retain("v").await.unwrap();
    assert!(retained.unfinished.is_none() && retained.pruned.removed.is_empty());
    let asked = memory.asked.load(Ordering::SeqCst) - asked;
    assert!(asked < 20 && memory.puts.load(Ordering::SeqCst) == puts, "{asked} requests");
    let asked = memory.asked.load(Ordering::SeqCst);
    host.store.retain("v").await.unwrap();
    let asked = memory.asked.load(Ordering::SeqCst) - asked;
    assert!(asked < 8, "{asked} requests to see that nothing is due");
    renew(&memory, "one", 20).await;
    // Who renews nothing cuts nothing off.
    let other = Host { store: super::open(host._root.path(), "one", &memory, |s3| s3).await, _root: host._root };
    other.store.retain("v").await.unwrap();
    assert!(memory.keys("/log/").len() > LONG_LOG);
    let host = Host { store: renewing_on(&other, &memory).await, _root: other._root };
    let retained = host.store.retain("v").await.unwrap();
    assert_eq!((retained.unfinished, retained.pruned.removed.len()), (None, 0));
    assert_eq!(retained.pruned.kept, generations);
    assert_eq!((memory.keys("/log/").len(), memory.keys("/prunes/").len()), (1, 0));
    assert!(!host.store.inner_root().join(".grown/v").exists());
    // Its owner owns it still, and goes on; so does the next.
    host.write("third").await;
    generations.extend(host.store.sync("v").await.unwrap().generation);
    renew(&memory, "one", LONG_LOG).await;
    assert_eq!(host.store.retain("v").await.unwrap().pruned.kept, generations);
    assert_eq!((memory.keys("/log/").len(), memory.keys("/kept/").len()), (1, 3));
    assert!(host.store.release("v", "web").await.unwrap().is_none());
    let two = renewing("two", &memory).await;
    two.acquire().await.unwrap();
    assert_eq!((two.read().await.as_str(), listed(&two).await), ("third", generations.clone()));
    for (generation, text) in generations.iter().zip(["first", "second", "third"]) {
        assert_eq!(text_of(&two, *generation).await.unwrap(), text);
    }
    is_whole(&two).await;
    super::model::check_log(&Log::new(memory.clone(), "p/v/".into()).all().await.unwrap());
}

async fn renewing_on(host: &Host, memory: &Arc<Memory>) -> VolumeStore {
    let take_over_after = Some(Duration::from_secs(3 * 3600));
    let config = VolumesConfig { take_over_after, ..super::config(host._root.path(), "one") };
    VolumeStore::open_with(config, memory.clone()).await.unwrap()
}

#[tokio::test]
async fn a_cut_that_is_cut_off_anywhere_loses_nothing_and_is_finished_by_the_next() {
    let memory = Arc::new(Memory::default());
    let host = renewing("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("first").await;
    let first = host.store.sync("v").await.unwrap().generation.unwrap();
    renew(&memory, "one", LONG_LOG).await;
    host.write("second").await;
    let second = host.store.sync("v").await.unwrap().generation.unwrap();
    host.store.release("v", "web").await.unwrap();
    let before = memory.objects.lock().unwrap().clone();
    memory.asked.store(0, Ordering::SeqCst);
    renewing("counts", &memory).await.store.retain("v").await.unwrap();
    let all = memory.asked.load(Ordering::SeqCst);
    assert!(all > LONG_LOG, "{all} requests");
    // Each of the first and of the last ones, and some between.
    let cuts = (1..all).filter(|cut| *cut > all - 20 || *cut % 61 == 0 || *cut < 60 && *cut % 3 == 0);
    for cut in cuts.chain(LONG_LOG + 20..LONG_LOG + 50) {
        let memory = Arc::new(Memory::default());
        *memory.objects.lock().unwrap() = before.clone();
        memory.away_after.store(cut, Ordering::SeqCst);
        let cut_off = renewing("two", &memory).await.store.retain("v").await;
        memory.away_after.store(0, Ordering::SeqCst);
        memory.away.store(false, Ordering::SeqCst);
        let other = renewing("three", &memory).await;
        assert_eq!(listed(&other).await, [first, second], "after {cut} requests");
        if cut % 4 == 0 {
            other.acquire().await.unwrap();
            assert_eq!(other.read().await, "second");
            other.write("second").await;
            assert!(other.store.release("v", "web").await.unwrap().is_none());
        }
        other.store.retain("v").await.unwrap();
        assert!(memory.keys("/prunes/").is_empty(), "after {cut} requests: {cut_off:?}");
        assert!(memory.keys("/log/").len() < 5, "after {cut} requests: {cut_off:?}");
        assert_eq!(text_of(&other, first).await.unwrap(), "first", "after {cut} requests");
        is_whole(&other).await;
    }
}

#[tokio::test]
async fn who_reads_a_tree_while_its_record_moves_gets_it() {
    let memory = Arc::new(Memory::default());
    let host = renewing("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("first").await;
    let first = host.store.sync("v").await.unwrap().generation;
    renew(&memory, "one", LONG_LOG).await;
    let before = memory.objects.lock().unwrap().clone();
    host.store.retain("v").await.unwrap();
    let after = memory.objects.lock().unwrap().clone();
    let mut requests = 0;
    loop {
        let memory = Arc::new(Memory::default());
        *memory.objects.lock().unwrap() = before.clone();
        *memory.turn.lock().unwrap() = Some((requests, after.clone()));
        let reader = Host::new("two", &memory).await;
        let to = reader._root.path().join("beside");
        let options = RestoreOptions { generation: first, to: Some(to.clone()), ..Default::default() };
        let restored = reader.store.restore("v", options).await;
        assert_eq!(code(restored), "ok", "after {requests} requests");
        assert_eq!(std::fs::read_to_string(to.join("file")).unwrap(), "first");
        if memory.turn.lock().unwrap().is_some() {
            break;
        }
        requests += 1;
    }
    assert!(requests > 4, "{requests} requests");
}

#[tokio::test]
async fn as_many_trees_as_a_record_can_name_are_kept_and_with_more_the_log_stays() {
    for (trees, is_cut) in [(MOST_KEPT, true), (MOST_KEPT + 1, false)] {
        let memory = Arc::new(Memory::default());
        let host = renewing("one", &memory).await;
        host.acquire().await.unwrap();
        host.write("first").await;
        host.store.sync("v").await.unwrap();
        host.store.release("v", "web").await.unwrap();
        // As after years.
        let log = Log::new(memory.clone(), "p/v/".into());
        let mut prune = log.head(None).await.unwrap().unwrap();
        let last = 999_999_999;
        (prune.kind, prune.record, prune.pruned) = (RecordKind::Prune, last + 1, Some(last + 1));
        let kept = (0..trees as u64).rev().map(|before| last - before).collect();
        prune.prune = Some(PruneSummary { kept, generations: 0, packs: 0, list: Digest::of(b"") });
        prune.generation = Some(last);
        let key = log.key(prune.record);
        {
            let mut objects = memory.objects.lock().unwrap();
            objects.retain(|key, _| !key.contains("/log/") && !key.ends_with("latest"));
            objects.insert(key, prune.encode().unwrap().into());
        }
        renew(&memory, "one", LONG_LOG).await;
        let looker = renewing("two", &memory).await;
        let retained = looker.store.retain("v").await.unwrap();
        assert_eq!(retained.pruned.kept.len(), trees);
        assert_eq!(memory.keys("/log/").len() == 1, is_cut, "{} records", memory.keys("/log/").len());
    }
}
