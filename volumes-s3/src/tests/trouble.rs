//! What is cut off, hangs, lies, or moves: nothing of it is taken for what it is not.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{RecordKind, RestoreOptions};

use super::{Host, Memory, code, killed};
use crate::{AcquireOptions, S3Config};

/// Only root may set the mark that these are about.
fn may_mark() -> bool {
    rustix::process::geteuid().is_root()
}

fn to_fill() -> AcquireOptions {
    AcquireOptions { fill: true, ..AcquireOptions::default() }
}

#[tokio::test]
async fn a_volume_that_was_not_filled_to_its_end_is_begun_anew() {
    if !may_mark() {
        return;
    }
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    // The creator dies half-way: nothing is undone.
    let first = host.store.acquire("v", "web", to_fill()).await.unwrap();
    assert!(first.is_new);
    fs::write(first.path.join("half"), "of what the image has").unwrap();
    assert_eq!(code(host.store.sync("v").await), "volume.being_filled");
    assert_eq!(code(host.store.acquire("v", "other", to_fill()).await), "volume.being_filled");
    assert_eq!(host.store.users("v").await.unwrap(), ["web"]);
    let second = host.store.acquire("v", "web", to_fill()).await.unwrap();
    assert!(second.is_new, "half of it was taken as whole");
    assert_eq!(fs::read_dir(&second.path).unwrap().count(), 0, "it was not emptied");
    fs::write(second.path.join("all"), "of it").unwrap();
    crate::mark_filled(fs::File::open(&second.path).unwrap()).unwrap();
    assert!(!host.store.acquire("v", "other", to_fill()).await.unwrap().is_new);
    host.store.give_up_filling("v", "web").await.unwrap();
    assert_eq!(host.store.users("v").await.unwrap(), ["other", "web"], "a full volume has nobody who fills it");
    host.store.sync("v").await.unwrap();
    assert_eq!(fs::read_to_string(second.path.join("all")).unwrap(), "of it");
    // The mark is this host's: it is in no generation.
    let to = host._root.path().join("beside");
    host.store.restore("v", RestoreOptions { to: Some(to.clone()), ..Default::default() }).await.unwrap();
    assert!(!crate::is_unfilled(fs::File::open(to).unwrap()).unwrap());
}

#[tokio::test]
async fn a_new_volume_of_an_undone_create_is_taken_back() {
    if !may_mark() {
        return;
    }
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let path = host.store.acquire("v", "web", to_fill()).await.unwrap().path;
    fs::write(path.join("half"), "of it").unwrap();
    crate::mark_filled(fs::File::open(&path).unwrap()).unwrap();
    // It goes whatever S3 says, and the claim as soon as that can be said.
    memory.away.store(true, Ordering::SeqCst);
    assert!(host.store.undo("v", "web").await.unwrap().is_some());
    assert!(!path.exists());
    memory.away.store(false, Ordering::SeqCst);
    host.store.retry("v").await.unwrap();
    assert_eq!(code(host.store.status("v").await), "volume.not_found");
    assert!(!host.store.inner_root().join("v").exists());
    let kinds: Vec<_> = host.store.history("v", true).await.unwrap_or_default();
    assert_eq!(kinds.last().map(|entry| entry.kind), Some(RecordKind::Released));
    // Another may have it now, and begins with nothing.
    let two = Host::new("two", &memory).await;
    assert!(two.store.acquire("v", "web", to_fill()).await.unwrap().is_new);
    assert_eq!(two.store.release("v", "web").await.unwrap().map(|error| error.code()), None);
    assert!(two.store.list().await.unwrap().is_empty(), "what was never full was kept");
    // What somebody else has used, or a user that ran, is theirs.
    let path = two.store.acquire("v", "web", to_fill()).await.unwrap().path;
    crate::mark_filled(fs::File::open(&path).unwrap()).unwrap();
    two.store.acquire("v", "other", to_fill()).await.unwrap();
    two.store.release("v", "other").await.unwrap();
    two.store.undo("v", "web").await.unwrap();
    assert!(path.exists());
    two.store.acquire("v", "web", to_fill()).await.unwrap();
    two.store.undo("v", "web").await.unwrap();
    assert!(path.exists());
}

#[tokio::test]
async fn what_is_owed_is_journaled_before_s3_is_asked() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("precious").await;
    // A server that answers nothing: the release is still at it when its process dies.
    memory.hang.store(true, Ordering::SeqCst);
    let (store, process) = (host.store.clone(), tokio::runtime::Runtime::new().unwrap());
    process.spawn(async move { store.release("v", "web").await });
    let owed = async {
        while host.store.status("v").await.unwrap().last_error.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), owed).await.expect("nothing is journaled");
    assert!(host.store.users("v").await.unwrap().is_empty());
    assert_eq!(host.store.status("v").await.unwrap().bytes_at_risk, 8, "what waits for an answer is not durable");
    let debt = host.store.debts().unwrap().join("v");
    assert!(debt.exists(), "nobody is told that it is owed");
    killed(process).await;
    memory.hang.store(false, Ordering::SeqCst);
    let another = host.again("one", &memory, |s3| s3).await;
    assert_eq!(another.owing().await.unwrap(), ["v"]);
    another.retry("v").await.unwrap();
    let status = another.status("v").await.unwrap();
    assert_eq!((status.last_error, status.generation.is_some(), status.owner), (None, true, None));
    assert!(status.bytes_at_risk == 0 && !debt.exists());
}

#[tokio::test]
async fn who_does_not_use_a_volume_any_more_asks_nothing_of_s3() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("x").await;
    memory.away.store(true, Ordering::SeqCst);
    assert_eq!(host.store.release("v", "web").await.unwrap().unwrap().code(), "volume.s3_unreachable");
    let asked = memory.asked.load(Ordering::SeqCst);
    assert!(host.store.release("v", "web").await.unwrap().is_none(), "said twice");
    assert_eq!(memory.asked.load(Ordering::SeqCst), asked);
    assert!(host.store.status("v").await.unwrap().last_error.is_some(), "forgotten");
}

#[tokio::test]
async fn a_commit_that_was_cut_off_is_settled_once_its_fate_is_known() {
    for requests in 1..40 {
        let memory = Arc::new(Memory::default());
        let host = Host::new("one", &memory).await;
        host.acquire().await.unwrap();
        host.write("first").await;
        host.store.sync("v").await.unwrap();
        host.write("second").await;
        memory.away_after.store(requests, Ordering::SeqCst);
        let is_cut = host.store.sync("v").await.is_err();
        memory.away_after.store(0, Ordering::SeqCst);
        // Its host boots, and has no credentials yet.
        memory.refuses.store(true, Ordering::SeqCst);
        memory.away.store(true, Ordering::SeqCst);
        let again = host.again("one", &memory, |s3| s3).await;
        assert_eq!(code(again.sync("v").await), "volume.s3_credentials");
        memory.away.store(false, Ordering::SeqCst);
        let status = again.sync("v").await.unwrap_or_else(|error| panic!("after {requests} requests: {error}"));
        assert_eq!(status.bytes_at_risk, 0);
        let kinds: Vec<_> = again.history("v", true).await.unwrap().into_iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [RecordKind::Claim, RecordKind::Data, RecordKind::Data], "after {requests} requests");
        if !is_cut {
            assert!(requests > 3);
            return;
        }
    }
    panic!("it was always cut off");
}

#[tokio::test]
async fn one_place_by_another_address_is_the_same_place() {
    let memory = Arc::new(Memory::default());
    let at = |url: &str| {
        let url = url.to_owned();
        move |s3| S3Config { endpoint: Some(url), ..s3 }
    };
    let host = Host::with("one", &memory, at("http://127.0.0.1:9000")).await;
    host.acquire().await.unwrap();
    host.write("first").await;
    let first = host.store.sync("v").await.unwrap();
    let moved = host.again("one", &memory, at("https://s3.example.net")).await;
    assert_eq!(moved.sync("v").await.unwrap().generation, first.generation, "read or sent again");
    host.write("second").await;
    let second = moved.sync("v").await.unwrap();
    assert_eq!((second.generation, second.last_error), (first.generation.map(|number| number + 1), None));
    // Another place is another one, whatever it is called: nothing of the first one's history holds there.
    let elsewhere = Arc::new(Memory::default());
    let other = host.again("one", &elsewhere, at("http://elsewhere")).await;
    assert_eq!(other.sync("v").await.unwrap().generation, Some(2));
    assert!(elsewhere.objects.lock().unwrap().keys().any(|key| key.contains("/packs/")));
}

#[tokio::test]
async fn a_server_that_crowns_two_is_refused_unless_permitted_by_name() {
    let memory = Arc::new(Memory::default());
    memory.racy.store(true, Ordering::SeqCst);
    let host = Host::new("one", &memory).await;
    assert_eq!(host.store.check_server().await.unwrap().winners, 16);
    assert_eq!(code(host.acquire().await), "volume.racy_server");
    assert!(host.store.list().await.unwrap().is_empty());
    let permitted = Host::with("two", &memory, |s3| S3Config { allow_racy_put: true, ..s3 }).await;
    assert!(permitted.acquire().await.unwrap().claimed);
}

#[tokio::test]
async fn what_a_kill_left_half_written_is_tidied_up() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("kept").await;
    let root = host.store.inner_root().to_owned();
    fs::write(root.join("v/state.json.tmp"), "{").unwrap();
    fs::create_dir_all(root.join("v/restore-0123/half")).unwrap();
    fs::write(root.join("v/scan.restored"), "").unwrap();
    fs::write(root.join("v/scan.entries"), "").unwrap();
    fs::create_dir(root.join("never")).unwrap();
    fs::write(root.join("never/state.json.tmp"), "").unwrap();
    let again = host.again("one", &memory, |s3| s3).await;
    let mut left: Vec<_> =
        fs::read_dir(root.join("v")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, ["data", "state.json"]);
    assert!(!root.join("never").exists());
    assert_eq!(again.list().await.unwrap().len(), 1);
    assert_eq!(host.read().await, "kept");
}

#[tokio::test]
async fn a_restore_that_a_kill_cut_off_is_forgotten_with_its_claim() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("kept").await;
    one.store.release("v", "web").await.unwrap();
    // It has claimed, and is restoring, when its process dies.
    memory.hang_at_packs.store(true, Ordering::SeqCst);
    let (store, process) = (two.store.clone(), tokio::runtime::Runtime::new().unwrap());
    process.spawn(async move { store.acquire("v", "web", AcquireOptions::default()).await.map(drop) });
    let claimed = async {
        while two.store.status("v").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), claimed).await.expect("it claims nothing");
    killed(process).await;
    memory.hang_at_packs.store(false, Ordering::SeqCst);
    let again = two.again("two", &memory, |s3| s3).await;
    assert_eq!(again.owing().await.unwrap(), ["v"]);
    again.retry("v").await.unwrap();
    assert!(!again.inner_root().join("v").exists(), "half a volume stayed");
    assert!(one.acquire().await.unwrap().claimed);
}

#[tokio::test]
async fn a_restore_that_was_killed_before_its_state_was_written_is_no_change_made_here() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    let old = two.store.inner_root().join("v/state.json");
    for text in ["first", "second"] {
        one.acquire().await.unwrap();
        one.write(text).await;
        one.store.release("v", "web").await.unwrap();
        let before = fs::read(&old).ok();
        let readonly = AcquireOptions { readonly: true, ..AcquireOptions::default() };
        two.store.acquire("v", "web", readonly).await.unwrap();
        assert_eq!(two.read().await, text);
        // As it was when the tree was put into place.
        match before {
            Some(before) => fs::write(&old, before).unwrap(),
            None => fs::remove_file(&old).unwrap(),
        }
        assert!(two.acquire().await.unwrap().claimed);
        assert_eq!(two.read().await, text);
        assert_eq!(two.store.sync("v").await.unwrap().bytes_at_risk, 0);
        two.store.release("v", "web").await.unwrap();
    }
    // What somebody did change is one.
    one.acquire().await.unwrap();
    one.write("third").await;
    one.store.release("v", "web").await.unwrap();
    two.write("by hand").await;
    assert_eq!(code(two.acquire().await), "volume.conflict");
}

#[tokio::test]
async fn a_damaged_scan_record_costs_a_try_and_no_more() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    fs::write(data.join("file"), "first").unwrap();
    host.store.sync("v").await.unwrap();
    let scan = data.with_file_name("scan");
    let mut bytes = fs::read(&scan).unwrap();
    bytes[4] = 0xff; // what the first frame is
    fs::write(&scan, bytes).unwrap();
    fs::write(data.join("file"), "second").unwrap();
    assert_eq!(code(host.store.sync("v").await), "volume.interrupted");
    assert!(!scan.exists());
    host.store.sync("v").await.unwrap();
    let other = Host::new("two", &memory).await;
    host.store.release("v", "web").await.unwrap();
    let restored = other.acquire().await.unwrap().path;
    assert_eq!(fs::read_to_string(restored.join("file")).unwrap(), "second");
}
