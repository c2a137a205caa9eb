//! What a prune takes away, and what it may not, whenever it or anybody else is stopped.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{Progress, RecordKind, RestoreOptions};

use super::{Host, Memory, code, killed};
use crate::{AcquireOptions, Error};

/// So many bytes that nobody else has.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| rand::random()).collect()
}

/// Uses the volume: what is left of it is one generation, of `text` and some noise.
pub(super) async fn generation(host: &Host, text: &str) -> u64 {
    host.acquire().await.unwrap();
    host.write(text).await;
    fs::write(host.data().await.join("noise"), noise(20_000)).unwrap();
    let number = host.store.sync("v").await.unwrap().generation.unwrap();
    host.store.release("v", "web").await.unwrap();
    number
}

pub(super) async fn listed(host: &Host) -> Vec<u64> {
    host.store.history("v", false).await.unwrap().into_iter().map(|entry| entry.generation.unwrap()).collect()
}

pub(super) async fn text_of(host: &Host, generation: u64) -> crate::Result<String> {
    let to = host._root.path().join(format!("of-{generation}-{}", rand::random::<u32>()));
    let options = RestoreOptions { generation: Some(generation), to: Some(to.clone()), ..Default::default() };
    host.store.restore("v", options).await.map(|_| fs::read_to_string(to.join("file")).unwrap())
}

pub(super) async fn is_whole(host: &Host) {
    let report = host.store.verify("v", None, Progress::default()).await.unwrap();
    assert_eq!(report.damaged, []);
}

#[tokio::test]
async fn what_is_kept_restores_and_verifies_and_the_rest_is_gone() {
    let memory = Arc::new(Memory::default());
    let (host, all) = (Host::keeping("one", &memory, 2).await, Host::new("two", &memory).await);
    assert_eq!(code(host.store.prune("v").await), "volume.not_found");
    let mut numbers = Vec::new();
    for text in ["first", "second", "third", "fourth"] {
        numbers.push(generation(&host, text).await);
    }
    let [first, second, third, fourth] = numbers[..] else { panic!("{numbers:?}") };
    // Without a retention nothing goes.
    let nothing = all.store.prune("v").await.unwrap();
    assert_eq!((nothing.removed.len(), nothing.kept), (0, numbers.clone()));
    let bytes = || memory.objects.lock().unwrap().values().map(|body| body.len() as u64).sum::<u64>();
    let (before, packs) = (bytes(), memory.keys("/packs/").len() as u64);
    let pruned = host.store.prune("v").await.unwrap();
    assert_eq!((pruned.removed, pruned.kept), (vec![first, second], vec![third, fourth]));
    assert!(pruned.packs > 0 && packs - memory.keys("/packs/").len() as u64 == pruned.packs, "{packs}");
    assert!(pruned.space_reclaimed > 40_000, "{} bytes", pruned.space_reclaimed);
    assert!(bytes() < before - 30_000, "{} of {before} bytes are left", bytes());
    for gone in [first, second] {
        assert_eq!(code(text_of(&host, gone).await), "volume.generation_not_found");
        assert_eq!(code(host.store.diff("v", gone, fourth).await), "volume.generation_not_found");
        assert_eq!(code(host.store.verify("v", Some(gone), Progress::default()).await), "volume.generation_not_found");
    }
    assert_eq!(listed(&host).await, [third, fourth]);
    assert_eq!(text_of(&host, third).await.unwrap(), "third");
    is_whole(&host).await;
    let log = host.store.history("v", true).await.unwrap();
    let kinds: Vec<_> = log.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [RecordKind::Data, RecordKind::Data, RecordKind::Prune], "claims of before are folded");
    assert!(memory.keys("/prunes/").is_empty(), "it is not finished");
    // It is claimed for nobody, and goes on as before, here and elsewhere.
    assert_eq!(host.store.status("v").await.unwrap().owner, None);
    all.acquire().await.unwrap();
    assert_eq!(all.read().await, "fourth");
    all.store.release("v", "web").await.unwrap();
    let fifth = generation(&all, "fifth").await;
    assert_eq!(fifth, pruned_record(&log) + 4, "numbers go on: a claim and a release, and one more claim");
    // Nothing is due, so nothing is put.
    let puts = memory.puts.load(Ordering::SeqCst);
    let pruned = Host::keeping("three", &memory, 3).await.store.prune("v").await.unwrap();
    assert_eq!((pruned.removed, pruned.kept, pruned.packs), (vec![], vec![third, fourth, fifth], 0));
    assert_eq!(memory.puts.load(Ordering::SeqCst), puts + 1, "but for the check of the server");
    // A second prune knows what the first kept.
    host.store.prune("v").await.unwrap();
    assert_eq!(listed(&all).await, [fourth, fifth]);
    is_whole(&all).await;
    assert_eq!(memory.keys("/kept/").len(), 2);
}

fn pruned_record(log: &[runtime_core::HistoryEntry]) -> u64 {
    log.iter().find(|entry| entry.kind == RecordKind::Prune).unwrap().record
}

#[tokio::test]
async fn only_the_owner_prunes_and_a_branch_falls_out_by_the_same_rule() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::keeping("one", &memory, 2).await, Host::keeping("two", &memory, 2).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.sync("v").await.unwrap();
    assert_eq!(code(two.store.prune("v").await), "volume.in_use_elsewhere");
    one.write("never published").await;
    two.take_over().await.unwrap();
    assert_eq!(code(one.store.prune("v").await), "volume.in_use_elsewhere");
    for text in ["second", "third"] {
        two.write(text).await;
        two.store.sync("v").await.unwrap();
    }
    let Err(Error::Fenced { branch: Some(branch), .. }) = one.store.sync("v").await else { panic!("not fenced") };
    // One generation older than two others goes, the branch is newer than all of them.
    let pruned = two.store.prune("v").await.unwrap();
    assert_eq!(pruned.removed.len(), 1, "{pruned:?}");
    assert_eq!(text_of(&one, branch).await.unwrap(), "never published");
    is_whole(&one).await;
    for text in ["fourth", "fifth"] {
        two.write(text).await;
        two.store.sync("v").await.unwrap();
    }
    // The owner prunes in the middle of its use, and goes on.
    let pruned = two.store.prune("v").await.unwrap();
    assert!(pruned.removed.contains(&branch), "{pruned:?}");
    assert_eq!(code(text_of(&one, branch).await), "volume.generation_not_found");
    two.write("sixth").await;
    assert!(two.store.release("v", "web").await.unwrap().is_none());
    is_whole(&two).await;
}

#[tokio::test]
async fn a_prune_cut_off_anywhere_loses_nothing_and_is_finished_by_the_next() {
    let mut cut = 1;
    loop {
        let memory = Arc::new(Memory::default());
        let host = Host::keeping("one", &memory, 1).await;
        for text in ["first", "second", "third"] {
            generation(&host, text).await;
        }
        let all = memory.keys("/packs/");
        memory.away_after.store(cut, Ordering::SeqCst);
        let done = host.store.prune("v").await.is_ok();
        memory.away_after.store(0, Ordering::SeqCst);
        memory.away.store(false, Ordering::SeqCst);
        // What is left, by a host that knows nothing.
        let other = Host::keeping("two", &memory, 1).await;
        is_whole(&other).await;
        let newest = *listed(&other).await.last().unwrap();
        assert_eq!(text_of(&other, newest).await.unwrap(), "third");
        if cut % 2 == 0 {
            // Who comes next finds nothing else to do, or all of it.
            other.store.retain("v").await.unwrap();
            assert_eq!(listed(&other).await, [newest], "after {cut} requests");
            assert!(memory.keys("/prunes/").is_empty(), "after {cut} requests");
        }
        other.acquire().await.unwrap();
        other.write("fourth").await;
        assert!(other.store.release("v", "web").await.unwrap().is_none());
        is_whole(&other).await;
        other.store.prune("v").await.unwrap();
        assert_eq!(listed(&other).await.len(), 1, "after {cut} requests");
        is_whole(&other).await;
        let left = memory.keys("/packs/");
        assert!(left.len() < all.len() && left.len() <= 2, "after {cut} requests {left:?} are left of {all:?}");
        assert!(memory.keys("/prunes/").is_empty(), "after {cut} requests");
        assert_eq!(memory.keys("/kept/").len(), 1, "after {cut} requests");
        assert_eq!(memory.keys("/log/").len(), 1, "after {cut} requests");
        if done {
            break;
        }
        cut += 1;
    }
    assert!(cut > 30, "a prune has only {cut} requests");
}

#[tokio::test]
async fn packs_of_a_sync_that_was_cut_off_are_found() {
    let memory = Arc::new(Memory::default());
    let host = Host::keeping("one", &memory, 5).await;
    generation(&host, "first").await;
    // The pack arrives, and its process dies before that is noted anywhere.
    host.acquire().await.unwrap();
    host.write("second").await;
    let before = memory.keys("/packs/");
    let bar = memory.before_record.write().await;
    let (store, process) = (host.store.clone(), tokio::runtime::Runtime::new().unwrap());
    process.spawn(async move { store.sync("v").await });
    while memory.keys("/packs/").len() == before.len() || !host.store.inner_root().join("v/commit.json").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    killed(process).await;
    drop(bar);
    // Another host takes over: what was journaled for the number that it took is no generation.
    let two = Host::keeping("two", &memory, 5).await;
    two.take_over().await.unwrap();
    let pruned = two.store.prune("v").await.unwrap();
    assert_eq!((pruned.removed.len(), pruned.packs), (0, 1), "{pruned:?}");
    assert_eq!(memory.keys("/packs/"), before);
    is_whole(&two).await;
    // Who had sent it sends it again, into a branch.
    let Err(Error::Fenced { branch: Some(branch), .. }) = host.store.sync("v").await else { panic!("not fenced") };
    assert_eq!(text_of(&two, branch).await.unwrap(), "second");
    is_whole(&two).await;
}

#[tokio::test]
async fn who_sleeps_through_a_take_over_and_a_prune_publishes_nothing_in_between() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::keeping("one", &memory, 1).await, Host::keeping("two", &memory, 1).await);
    generation(&one, "first").await;
    one.acquire().await.unwrap();
    one.write("never published").await;
    // Everything of the new generation is there, and its record about to be put.
    let bar = memory.before_record.write().await;
    let publishing = tokio::spawn({
        let store = one.store.clone();
        async move { store.sync("v").await }
    });
    let commit = one.store.inner_root().join("v/commit.json");
    while !commit.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    // It sleeps there; everybody else goes on.
    let others = memory.by_another_door();
    let two = Host { store: keeping_on(&two, &others).await, _root: two._root };
    two.take_over().await.unwrap();
    two.write("second").await;
    two.store.sync("v").await.unwrap();
    let pruned = two.store.prune("v").await.unwrap();
    assert!(!pruned.removed.is_empty());
    memory.enter_by(&others);
    drop(bar);
    let Err(Error::Fenced { owner, branch: Some(branch), .. }) = publishing.await.unwrap() else {
        panic!("it published")
    };
    assert_eq!(owner.as_deref(), Some("two"));
    assert_eq!(text_of(&one, branch).await.unwrap(), "never published");
    is_whole(&one).await;
    assert_eq!(text_of(&one, *pruned.kept.last().unwrap()).await.unwrap(), "second");
    // What it left at a number of before the prune is in no history, and goes with the next.
    let two = Host { store: keeping_on(&two, &memory).await, _root: two._root };
    two.write("third").await;
    two.store.sync("v").await.unwrap();
    two.store.prune("v").await.unwrap();
    let first = memory.keys("/log/")[0].clone();
    let log = two.store.history("v", true).await.unwrap();
    assert!(first.ends_with(&format!("{:020}", pruned_record(&log))), "{first} is left");
    is_whole(&two).await;
}

impl Memory {
    /// The same objects where nobody bars the way.
    pub(super) fn by_another_door(&self) -> Arc<Self> {
        let others = Arc::new(Self::default());
        others.enter_by(self);
        others
    }

    /// Has from now on what `other` has.
    pub(super) fn enter_by(&self, other: &Self) {
        let objects = other.objects.lock().unwrap().clone();
        *self.objects.lock().unwrap() = objects;
    }
}

pub(super) async fn keeping_on(host: &Host, memory: &Arc<Memory>) -> crate::VolumeStore {
    let keep = Some(crate::Keep { last: 1, ..Default::default() });
    let config = crate::VolumesConfig { keep, ..super::config(host._root.path(), "two") };
    crate::VolumeStore::open_with(config, memory.clone()).await.unwrap()
}

#[tokio::test]
async fn an_older_generation_restored_here_is_whole_when_it_is_published_anew() {
    for pruner_is_here in [true, false] {
        let memory = Arc::new(Memory::default());
        let (one, two) = (Host::keeping("one", &memory, 1).await, Host::keeping("two", &memory, 1).await);
        let old = generation(&one, "old").await;
        generation(&one, "new").await;
        let options = RestoreOptions { generation: Some(old), ..Default::default() };
        one.store.restore("v", options).await.unwrap();
        // Who prunes here knows what the tree is; another does not.
        let pruner = if pruner_is_here { &one } else { &two };
        let pruned = pruner.store.prune("v").await.unwrap();
        assert_eq!(pruned.removed.contains(&old), !pruner_is_here, "{pruned:?}");
        one.store.acquire("v", "web", AcquireOptions::default()).await.unwrap();
        assert_eq!(one.read().await, "old");
        let published = one.store.sync("v").await.unwrap().generation.unwrap();
        is_whole(&one).await;
        assert_eq!(text_of(&two, published).await.unwrap(), "old");
        one.store.release("v", "web").await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_is_not_given_back_by_it_before_what_is_owed_is_synced() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::keeping("one", &memory, 1).await, Host::keeping("two", &memory, 1).await);
    generation(&one, "first").await;
    generation(&one, "second").await;
    one.acquire().await.unwrap();
    one.write("owed").await;
    memory.away.store(true, Ordering::SeqCst);
    one.store.release("v", "web").await.unwrap().expect("it is owed");
    memory.away.store(false, Ordering::SeqCst);
    assert!(!one.store.prune("v").await.unwrap().removed.is_empty());
    assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
    assert_eq!(one.store.owing().await.unwrap(), ["v"]);
    one.store.retry("v").await.unwrap();
    two.acquire().await.unwrap();
    assert_eq!(two.read().await, "owed");
}

#[tokio::test]
async fn a_damaged_manifest_makes_nothing_go() {
    let memory = Arc::new(Memory::default());
    let host = Host::keeping("one", &memory, 2).await;
    for text in ["first", "second", "third"] {
        generation(&host, text).await;
    }
    let before = memory.keys("p/v/");
    let newest = memory.objects.lock().unwrap().iter().filter(|(key, _)| key.contains("/packs/")).count();
    assert!(newest > 0);
    {
        let mut objects = memory.objects.lock().unwrap();
        objects.iter_mut().filter(|(key, _)| key.contains("/packs/")).for_each(|(_, pack)| {
            let mut bytes = pack.to_vec();
            bytes.iter_mut().for_each(|byte| *byte ^= 1);
            *pack = bytes.into();
        });
    }
    assert_eq!(code(host.store.prune("v").await), "volume.corrupt");
    assert_eq!(memory.keys("p/v/"), before);
}

#[tokio::test]
async fn who_has_nothing_but_what_was_let_go_brings_none_of_it_back() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::keeping("one", &memory, 1).await, Host::keeping("two", &memory, 1).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.sync("v").await.unwrap();
    two.take_over().await.unwrap();
    two.write("second").await;
    two.store.sync("v").await.unwrap();
    two.store.prune("v").await.unwrap();
    let Err(Error::Fenced { branch: None, .. }) = one.store.sync("v").await else { panic!("not fenced, or a branch") };
    assert_eq!(listed(&two).await.len(), 1);
}
