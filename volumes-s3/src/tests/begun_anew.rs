//! A history that was deleted and begun anew is another one, however like the old one it looks.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{Progress, RecordKind};

use super::{Host, Memory, code};
use crate::log::{Append, Log};
use crate::record::Record;

async fn use_and_write(host: &Host, text: &str) {
    host.acquire().await.unwrap();
    host.write(text).await;
    assert!(host.store.release("v", "web").await.unwrap().is_none());
}

/// What `one` has used, and `two` has removed and used since: as many records, of the same kinds.
async fn begun_anew(memory: &Arc<Memory>) -> (Host, Host) {
    let (one, two) = (Host::new("one", memory).await, Host::new("two", memory).await);
    use_and_write(&one, "old").await;
    two.store.remove("v", true, false).await.unwrap();
    use_and_write(&two, "new").await;
    (one, two)
}

fn log(memory: &Arc<Memory>) -> Log {
    Log::new(memory.clone(), "p/v/".into())
}

#[tokio::test]
async fn with_as_many_records_it_is_another_one() {
    let memory = Arc::new(Memory::default());
    let (one, two) = begun_anew(&memory).await;
    assert_eq!(code(one.acquire().await), "volume.conflict");
    assert_eq!(one.read().await, "old");
    let records = log(&memory).all().await.unwrap();
    assert_eq!(records.len(), 3);
    super::model::check_log(&records);
    // Without the old tree there is only the new one.
    fs::remove_dir_all(one.data().await).unwrap();
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "new");
    one.write("newer").await;
    one.store.sync("v").await.unwrap();
    one.store.release("v", "web").await.unwrap();
    two.acquire().await.unwrap();
    assert_eq!(two.read().await, "newer");
    assert_eq!(two.store.verify("v", None, Progress::default()).await.unwrap().damaged, []);
}

#[tokio::test]
async fn begun_anew_while_it_is_claimed_it_is_another_one() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    use_and_write(&one, "old").await;
    // It has seen the newest record, and sleeps before it puts its own.
    let bar = memory.before_record.write().await;
    let store = one.store.clone();
    let claiming = tokio::spawn(async move { store.acquire("v", "web", crate::AcquireOptions::default()).await });
    let state = one.store.inner_root().join("v/state.json");
    while !fs::read_to_string(&state).unwrap().contains("\"epoch\": 2") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let others = memory.by_another_door();
    let two = Host { store: two.again("two", &others, |s3| s3).await, _root: two._root };
    two.store.remove("v", true, false).await.unwrap();
    use_and_write(&two, "new").await;
    memory.enter_by(&others);
    drop(bar);
    assert_eq!(code(claiming.await.unwrap()), "volume.conflict");
    let records = log(&memory).all().await.unwrap();
    assert_eq!(records.len(), 3, "a record of the old one is left");
    super::model::check_log(&records);
    // Nothing of it is believed here any more.
    assert!(one.store.owing().await.unwrap().is_empty());
    assert_eq!(one.read().await, "old");
}

#[tokio::test]
async fn who_slept_through_it_leaves_no_record_of_the_old_one() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    use_and_write(&host, "old").await;
    let old = log(&memory).head(None).await.unwrap().unwrap();
    host.store.remove("v", true, false).await.unwrap();
    use_and_write(&host, "new").await;
    let late = Record::after(Some(&old), RecordKind::Claim, "late");
    assert!(matches!(log(&memory).append(&late).await.unwrap(), Append::Lost));
    let records = log(&memory).all().await.unwrap();
    assert_eq!(records.len(), 3);
    super::model::check_log(&records);
    assert_ne!(log(&memory).head(Some(old)).await.unwrap().unwrap().volume, late.volume);
}

/// Removes the history, and holds it up at the first deletion of a `kind`; `meanwhile` happens then.
async fn removing(memory: &Arc<Memory>, host: &Host, kind: &'static str, meanwhile: impl AsyncFnOnce()) {
    *memory.delete_waits_at.lock().unwrap() = kind;
    memory.deletes_waiting.store(0, Ordering::SeqCst);
    let bar = memory.before_delete.write().await;
    let removing = tokio::spawn({
        let store = host.store.clone();
        async move { store.remove("v", true, true).await }
    });
    while memory.deletes_waiting.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    meanwhile().await;
    drop(bar);
    removing.await.unwrap().unwrap();
}

async fn is_whole(host: &Host) {
    let report = host.store.verify("v", None, Progress::default()).await.unwrap();
    assert!(report.damaged.is_empty() && report.generations > 0, "{report:?}");
}

#[tokio::test]
async fn what_is_begun_while_the_old_one_is_deleted_stays() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    use_and_write(&one, "old").await;
    removing(&memory, &one, "/packs/", async || {
        two.acquire().await.unwrap();
        two.write("new").await;
        two.store.sync("v").await.unwrap();
    })
    .await;
    assert_eq!(log(&memory).all().await.unwrap().len(), 2);
    is_whole(&two).await;
    let packs = memory.keys("/packs/");
    two.write("newer").await;
    assert!(two.store.release("v", "web").await.unwrap().is_none());
    assert!(!packs.is_empty() && packs.iter().all(|pack| memory.keys("/packs/").contains(pack)));
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "newer");
}

#[tokio::test]
async fn who_claims_the_old_one_while_it_is_deleted_begins_it_anew() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    use_and_write(&one, "old").await;
    use_and_write(&two, "newer").await;
    removing(&memory, &one, "/log/", async || {
        two.acquire().await.unwrap();
        two.write("newest").await;
        two.store.sync("v").await.unwrap();
    })
    .await;
    assert_eq!(memory.keys("/log/"), Vec::<String>::new());
    two.store.sync("v").await.unwrap();
    is_whole(&two).await;
    assert!(two.store.release("v", "web").await.unwrap().is_none());
    super::model::check_log(&log(&memory).all().await.unwrap());
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "newest");
}

#[tokio::test]
async fn who_sent_its_tree_when_it_was_deleted_sends_all_of_it_again() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    use_and_write(&one, "old").await;
    one.acquire().await.unwrap();
    fs::write(one.data().await.join("more"), "and what was sent now").unwrap();
    let bar = memory.before_record.write().await;
    let store = one.store.clone();
    let publishing = tokio::spawn(async move { store.sync("v").await });
    while !one.store.inner_root().join("v/commit.json").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let others = memory.by_another_door();
    let two = Host { store: two.again("two", &others, |s3| s3).await, _root: two._root };
    two.store.remove("v", true, true).await.unwrap();
    use_and_write(&two, "new").await;
    memory.enter_by(&others);
    drop(bar);
    let Err(crate::Error::Fenced { branch: Some(_), .. }) = publishing.await.unwrap() else { panic!("published") };
    is_whole(&one).await;
}
