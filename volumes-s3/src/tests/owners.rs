//! One owner at a time, and nothing lost of any other.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{RecordKind, RestoreOptions};

use super::{Host, Memory, code};
use crate::Error;

#[tokio::test]
async fn one_host_at_a_time_and_the_loser_keeps_a_branch() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.sync("v").await.unwrap();
    assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
    one.write("never published").await;
    two.take_over().await.unwrap();
    assert_eq!(two.read().await, "first");
    two.write("second").await;
    two.store.sync("v").await.unwrap();
    let Err(Error::Fenced { owner, branch: Some(branch), .. }) = one.store.sync("v").await else {
        panic!("not fenced")
    };
    assert_eq!(owner.as_deref(), Some("two"));
    let to = one._root.path().join("beside");
    let options = RestoreOptions { generation: Some(branch), to: Some(to.clone()), ..Default::default() };
    one.store.restore("v", options).await.unwrap();
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "never published");
    // Nothing is owed for what is in a branch.
    assert!(one.store.owing().await.unwrap().is_empty());
    // The owner is not disturbed by the branch.
    two.write("third").await;
    two.store.sync("v").await.unwrap();
    two.store.release("v", "web").await.unwrap();
    one.store.release("v", "web").await.unwrap();
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "third");
}

#[tokio::test]
async fn with_s3_away_what_is_here_starts_and_what_is_not_is_refused() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.release("v", "web").await.unwrap();
    memory.away.store(true, Ordering::SeqCst);
    assert_eq!(code(two.acquire().await), "volume.s3_unreachable");
    assert!(!one.acquire().await.unwrap().claimed);
    one.write("second").await;
    assert_eq!(code(one.store.sync("v").await), "volume.s3_unreachable");
    let status = one.store.status("v").await.unwrap();
    assert_eq!((status.bytes_at_risk, status.last_error.is_some()), (6, true));
    one.store.release("v", "web").await.unwrap();
    assert_eq!(code(one.store.remove("v", false, false).await), "volume.s3_unreachable");
    memory.away.store(false, Ordering::SeqCst);
    assert_eq!(one.store.owing().await.unwrap(), ["v"]);
    one.store.retry("v").await.unwrap();
    assert_eq!(one.store.status("v").await.unwrap().bytes_at_risk, 0);
    assert!(one.store.owing().await.unwrap().is_empty());
    two.acquire().await.unwrap();
    assert_eq!(two.read().await, "second");
}

#[tokio::test]
async fn a_lost_answer_is_no_defeat() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    memory.lose_answer.store(true, Ordering::SeqCst);
    // The race of the server check loses an answer, which it must see through; then the claim does.
    assert_eq!(host.store.check_server().await.unwrap().winners, 1);
    memory.lose_answer.store(true, Ordering::SeqCst);
    assert!(host.acquire().await.unwrap().claimed);
    host.write("first").await;
    memory.lose_answer.store(true, Ordering::SeqCst);
    assert_eq!(host.store.sync("v").await.unwrap().generation, Some(2));
    memory.lose_answer.store(true, Ordering::SeqCst);
    host.store.release("v", "web").await.unwrap();
    let kinds: Vec<_> = host.store.history("v", true).await.unwrap().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [RecordKind::Claim, RecordKind::Data, RecordKind::Released]);
}

#[tokio::test]
async fn two_changes_of_one_generation_are_a_conflict() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.release("v", "web").await.unwrap();
    two.acquire().await.unwrap();
    two.write("second").await;
    two.store.release("v", "web").await.unwrap();
    one.write("by hand").await;
    assert_eq!(code(one.acquire().await), "volume.conflict");
    assert_eq!(code(one.store.restore("v", RestoreOptions::default()).await), "volume.unsynced");
    assert_eq!(one.read().await, "by hand");
    let options = RestoreOptions { discard_local: true, ..Default::default() };
    one.store.restore("v", options).await.unwrap();
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "second");
}

#[tokio::test]
async fn an_older_generation_is_restored_and_published_anew() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("old").await;
    let old = host.store.sync("v").await.unwrap().generation;
    host.write("new").await;
    host.store.release("v", "web").await.unwrap();
    let options = RestoreOptions { generation: old, ..Default::default() };
    host.store.restore("v", options).await.unwrap();
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "old");
    let generation = host.store.sync("v").await.unwrap().generation;
    assert!(generation > old);
    assert_eq!(code(host.store.remove("v", false, true).await), "volume.in_use");
    host.store.release("v", "web").await.unwrap();
    assert_eq!(host.store.prune_local(&Default::default()).await.unwrap().deleted, ["v"]);
    host.acquire().await.unwrap();
    assert_eq!(host.read().await, "old");
    host.store.release("v", "web").await.unwrap();
    host.store.remove("v", true, false).await.unwrap();
    assert!(!memory.objects.lock().unwrap().keys().any(|key| key.starts_with("p/v/")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn several_first_users_of_a_server_do_not_get_in_each_others_way() {
    let host = Host::new("one", &Arc::new(Memory::default())).await;
    let checks = (0..64).map(|_| {
        let store = host.store.clone();
        tokio::spawn(async move { store.check_server().await })
    });
    for check in futures_util::future::join_all(checks).await {
        assert_eq!(check.unwrap().unwrap().winners, 1);
    }
}

/// Begins a use for which `memory` is away after so many `requests`; whether that ended it.
async fn cut_off_after(host: &Host, memory: &Arc<Memory>, requests: usize) -> bool {
    memory.away_after.store(requests, Ordering::SeqCst);
    let acquired = host.acquire().await;
    memory.away_after.store(0, Ordering::SeqCst);
    memory.away.store(false, Ordering::SeqCst);
    acquired.is_err()
}

#[tokio::test]
async fn a_use_that_is_cut_off_anywhere_leaves_no_claim_and_no_branch() {
    uses_cut_off_anywhere(false).await;
    // Nor where its credentials expire.
    uses_cut_off_anywhere(true).await;
}

async fn uses_cut_off_anywhere(refused: bool) {
    for requests in 1..40 {
        let memory = Arc::new(Memory::default());
        memory.refuses.store(refused, Ordering::SeqCst);
        let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
        for (host, text) in [(&one, "first"), (&two, "second")] {
            host.acquire().await.unwrap();
            host.write(text).await;
            host.store.release("v", "web").await.unwrap();
        }
        let is_cut = cut_off_after(&one, &memory, requests).await;
        if is_cut {
            for name in one.store.owing().await.unwrap() {
                one.store.retry(&name).await.unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
            }
        } else {
            one.store.release("v", "web").await.unwrap();
        }
        let log = crate::log::Log::new(memory.clone(), "p/v/".into()).all().await.unwrap();
        assert_eq!(log.last().unwrap().owner, None, "after {requests} requests");
        assert!(!log.iter().any(|record| record.kind == RecordKind::Branch), "after {requests} requests");
        two.acquire().await.unwrap();
        if !is_cut && requests > 20 {
            return;
        }
    }
    panic!("it was always cut off");
}

#[tokio::test]
async fn a_claim_is_journaled_before_it_is_made() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    for host in [&one, &two] {
        host.acquire().await.unwrap();
        host.write("text").await;
        host.store.release("v", "web").await.unwrap();
    }
    // The process that makes it is killed before it hears of that: what it writes to disk afterwards is taken back.
    let state = one._root.path().join("volumes/v/state.json");
    let bar = memory.before_record.write().await;
    let (store, claiming) = (one.store.clone(), Arc::new(tokio::sync::Notify::new()));
    let done = claiming.clone();
    let acquiring = tokio::spawn(async move {
        drop(store.acquire("v", "web", crate::AcquireOptions::default()).await);
        done.notify_one();
    });
    let mut journaled = String::new();
    for _ in 0..500 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        journaled = fs::read_to_string(&state).unwrap();
        if !journaled.contains("\"epoch\": null") {
            break;
        }
    }
    drop(bar);
    claiming.notified().await;
    acquiring.await.unwrap();
    fs::write(&state, journaled).unwrap();
    let again = one.again("one", &memory, |s3| s3).await;
    assert_eq!(again.owing().await.unwrap(), ["v"], "nobody knows of the claim");
    assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
    again.retry("v").await.unwrap();
    two.acquire().await.unwrap();
    let log = crate::log::Log::new(memory.clone(), "p/v/".into()).all().await.unwrap();
    assert!(!log.iter().any(|record| record.kind == RecordKind::Branch), "a branch of a tree that is in the log");
}

#[tokio::test]
async fn a_claim_that_was_owed_and_is_not_needed_any_more_is_owed_no_longer() {
    let memory = Arc::new(Memory::default());
    let one = Host::new("one", &memory).await;
    one.acquire().await.unwrap();
    one.write("text").await;
    one.store.release("v", "web").await.unwrap();
    memory.away.store(true, Ordering::SeqCst);
    assert!(!one.acquire().await.unwrap().claimed);
    one.store.release("v", "web").await.unwrap();
    memory.away.store(false, Ordering::SeqCst);
    assert_eq!(one.store.owing().await.unwrap(), ["v"]);
    one.store.retry("v").await.unwrap();
    assert!(one.store.owing().await.unwrap().is_empty(), "it would be tried for ever");
}

#[tokio::test]
async fn a_claim_of_who_was_killed_before_it_could_fill_is_given_back() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    let options = crate::AcquireOptions { fill: true, ..crate::AcquireOptions::default() };
    one.store.acquire("v", "web", options).await.unwrap();
    // As it was before the user was written down.
    let path = one._root.path().join("volumes/v/state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state["users"] = serde_json::json!({});
    fs::write(&path, state.to_string()).unwrap();
    let again = one.again("one", &memory, |s3| s3).await;
    assert_eq!(again.owing().await.unwrap(), ["v"]);
    again.retry("v").await.unwrap();
    two.acquire().await.unwrap();
}
