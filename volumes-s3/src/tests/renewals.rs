//! Claims that last as long as they are renewed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use runtime_core::{Progress, RecordKind};
use tokio_util::sync::CancellationToken;

use super::{Host, Memory, code};
use crate::log::Log;
use crate::{AcquireOptions, Error, VolumeStore, VolumesConfig};

/// Short for a claim, and long for whatever is done in memory, also on a machine that is busy with other things.
const AFTER: Duration = Duration::from_secs(6);

async fn lasting(root: &Path, name: &str, memory: &Arc<Memory>) -> VolumeStore {
    let config = VolumesConfig { take_over_after: Some(AFTER), ..super::config(root, name) };
    VolumeStore::open_with(config, memory.clone()).await.unwrap()
}

async fn host(name: &str, memory: &Arc<Memory>) -> Host {
    let host = Host::new(name, memory).await;
    let store = lasting(host._root.path(), name, memory).await;
    Host { store, _root: host._root }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_renews_keeps_its_claim_and_who_is_silent_loses_it() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (host("one", &memory).await, host("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.sync("v").await.unwrap();
    // It lives, whatever it does: here it is in the middle of a long sync.
    let lock = one.store.lock("v").await.unwrap();
    for _ in 0..2 {
        let begin = Instant::now();
        assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
        assert!(begin.elapsed() < AFTER, "told after {:?}", begin.elapsed());
    }
    drop(lock);
    let records = |log: Vec<runtime_core::HistoryEntry>| {
        log.into_iter().map(|entry| (entry.kind, entry.epoch)).collect::<Vec<_>>()
    };
    let log = records(one.store.history("v", true).await.unwrap());
    assert_eq!(log[..2], [(RecordKind::Claim, 1), (RecordKind::Data, 1)]);
    assert!(log.len() > 2 && log[2..].iter().all(|record| *record == (RecordKind::Claim, 1)), "{log:?}");
    // It publishes after its renewals as before.
    one.write("second").await;
    one.store.sync("v").await.unwrap();
    one.write("never published").await;
    // Its process dies. Somebody who only reads, or has no such time, is not concerned.
    let Host { store, _root } = one;
    drop(store);
    let without = Host::new("three", &memory).await;
    assert_eq!(code(without.acquire().await), "volume.in_use_elsewhere");
    let begin = Instant::now();
    assert!(two.acquire().await.unwrap().claimed);
    assert!(begin.elapsed() >= AFTER, "taken over after {:?}", begin.elapsed());
    assert_eq!(two.read().await, "second");
    // Back again, it is fenced, and loses nothing.
    let one = Host { store: super::open(_root.path(), "one", &memory, |s3| s3).await, _root };
    let Err(Error::Fenced { branch: Some(_), .. }) = one.store.sync("v").await else { panic!("not fenced") };
    super::model::check_log(&Log::new(memory.clone(), "p/v/".into()).all().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_called_off_as_it_waits_takes_nothing() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (host("one", &memory).await, host("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("kept").await;
    one.store.sync("v").await.unwrap();
    let Host { store, _root } = one;
    drop(store);
    let before = two.store.history("v", true).await.unwrap();
    let options = AcquireOptions::default();
    let called_off = options.called_off.clone();
    let begin = Instant::now();
    let waiting = two.store.acquire("v", "web", options);
    let calling_off = async {
        tokio::time::sleep(AFTER / 6).await;
        called_off.cancel();
    };
    assert_eq!(code(tokio::join!(waiting, calling_off).0), "volume.called_off");
    assert!(begin.elapsed() < AFTER, "told after {:?}", begin.elapsed());
    // Nor who waits for somebody that works with it here.
    let lock = two.store.lock("v").await.unwrap();
    let (options, called_off) =
        (AcquireOptions { readonly: true, ..AcquireOptions::default() }, CancellationToken::new());
    let waiting = two.store.acquire("v", "web", AcquireOptions { called_off: called_off.clone(), ..options });
    called_off.cancel();
    drop(lock);
    assert_eq!(code(waiting.await), "volume.called_off");
    assert_eq!(two.store.history("v", true).await.unwrap(), before);
    assert!(two.store.names().await.unwrap().is_empty(), "something of it is here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_says_nothing_of_its_time_is_never_taken_over_by_time() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, host("two", &memory).await);
    one.acquire().await.unwrap();
    let begin = Instant::now();
    assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
    assert!(begin.elapsed() < AFTER);
    // A process that keeps, and has the time, renews it, and says so.
    let keeping = keep(one._root.path(), &memory).await;
    assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
    keeping.abort();
    assert!(two.acquire().await.unwrap().claimed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_of_life_at_the_last_moment_counts() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (host("one", &memory).await, host("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    let Host { store, _root } = one;
    drop(store);
    // The time has run out, and the claim is about to be put.
    let bar = memory.before_record.write().await;
    let asked = memory.asked.load(Ordering::SeqCst);
    let taking = tokio::spawn({
        let store = two.store.clone();
        async move { store.acquire("v", "web", AcquireOptions::default()).await.map(drop) }
    });
    tokio::time::sleep(AFTER + AFTER / 2).await;
    assert!(memory.asked.load(Ordering::SeqCst) > asked);
    let others = memory.by_another_door();
    keep(_root.path(), &others).await.abort();
    memory.enter_by(&others);
    drop(bar);
    assert_eq!(code(taking.await.unwrap()), "volume.in_use_elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_by_hand_waits_as_a_create_does_and_is_renewed_then() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (host("one", &memory).await, host("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.sync("v").await.unwrap();
    let claim = async |host: &Host| host.store.claim("v", false, Progress::default()).await;
    let begin = Instant::now();
    assert_eq!(code(claim(&two).await), "volume.in_use_elsewhere");
    assert!(begin.elapsed() < AFTER, "told after {:?}", begin.elapsed());
    assert!(two.store.list().await.unwrap().is_empty(), "something is left of it");
    let Host { store, _root } = one;
    drop(store);
    // Who has no such time does not wait.
    let begin = Instant::now();
    assert_eq!(code(claim(&Host::new("three", &memory).await).await), "volume.in_use_elsewhere");
    assert!(begin.elapsed() < AFTER, "told after {:?}", begin.elapsed());
    let begin = Instant::now();
    assert_eq!(claim(&two).await.unwrap().owner.as_deref(), Some("two"));
    assert!(begin.elapsed() >= AFTER, "taken over after {:?}", begin.elapsed());
    assert_eq!(two.read().await, "first");
    // It is kept by the process that made it, too.
    let three = host("three", &memory).await;
    assert_eq!(code(three.acquire().await), "volume.in_use_elsewhere");
    drop(two);
    assert!(three.acquire().await.unwrap().claimed);
    super::model::check_log(&Log::new(memory.clone(), "p/v/".into()).all().await.unwrap());
}

/// A process of host `one` that keeps its claims, and has renewed one.
async fn keep(root: &Path, memory: &Arc<Memory>) -> tokio::task::JoinHandle<()> {
    let keeper = lasting(root, "one", memory).await;
    let keeping = tokio::spawn(async move { keeper.renew_claims().await });
    let log = Log::new(memory.clone(), "p/v/".into());
    let before = log.head(None).await.unwrap().unwrap().record;
    loop {
        let newest = log.head(None).await.unwrap().unwrap();
        if newest.record > before && newest.lasts_ms.is_some() {
            return keeping;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_time_too_short_to_be_renewed_in_is_refused() {
    let root = tempfile::TempDir::new().unwrap();
    let config =
        VolumesConfig { take_over_after: Some(Duration::from_millis(10)), ..super::config(root.path(), "one") };
    assert_eq!(VolumeStore::open(config).await.unwrap_err().code(), "config.invalid");
}
