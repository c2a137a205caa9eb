//! Who only reads a volume: it needs no claim, and leaves nothing that stands in anybody's way.

use std::sync::Arc;

use runtime_core::RecordKind;

use super::{Host, Memory, code, readonly};
use crate::{Acquired, Result};

async fn read_only(host: &Host, user: &str) -> Result<Acquired> {
    host.store.acquire("v", user, readonly()).await
}

#[tokio::test]
async fn a_reader_gets_what_its_host_lacks_and_claims_nothing() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("first").await;
    one.store.release("v", "web").await.unwrap();
    let acquired = read_only(&two, "reader").await.unwrap();
    assert!(!acquired.is_new && !acquired.claimed);
    assert_eq!(two.read().await, "first");
    // Nothing is owed, and a sync puts nothing.
    two.store.sync("v").await.unwrap();
    assert!(two.store.release("v", "reader").await.unwrap().is_none());
    assert!(two.store.owing().await.unwrap().is_empty());
    let kinds: Vec<_> = one.store.history("v", true).await.unwrap().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [RecordKind::Claim, RecordKind::Data, RecordKind::Released]);
    // What it has is in S3: it goes without a word, or is written to.
    assert_eq!(two.store.prune_local(&Default::default()).await.unwrap().deleted, ["v"]);
    read_only(&two, "reader").await.unwrap();
    two.acquire().await.unwrap();
    two.write("second").await;
    two.store.release("v", "web").await.unwrap();
    two.store.release("v", "reader").await.unwrap();
    one.acquire().await.unwrap();
    assert_eq!(one.read().await, "second");
}

#[tokio::test]
async fn a_reader_gets_the_newest_generation_of_another_host_s_volume() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    for text in ["first", "second"] {
        one.write(text).await;
        one.store.sync("v").await.unwrap();
        read_only(&two, "reader").await.unwrap();
        assert_eq!(two.read().await, text);
        assert!(two.store.release("v", "reader").await.unwrap().is_none());
    }
    assert_eq!(code(two.acquire().await), "volume.in_use_elsewhere");
    // It goes on while somebody here reads: nobody's tree is taken away beneath them, and that is said.
    read_only(&two, "reader").await.unwrap();
    one.write("third").await;
    one.store.release("v", "web").await.unwrap();
    two.store.sync("v").await.unwrap();
    assert_eq!(code(read_only(&two, "other").await), "volume.in_use");
    assert_eq!(code(two.acquire().await), "volume.in_use");
    assert_eq!(two.read().await, "second");
    // The reader itself, which does not run yet when it asks again, gets it.
    read_only(&two, "reader").await.unwrap();
    assert_eq!(two.read().await, "third");
    assert!(two.store.release("v", "reader").await.unwrap().is_none());
    assert!(two.acquire().await.unwrap().claimed);
    two.write("fourth").await;
    assert!(two.store.release("v", "web").await.unwrap().is_none());
    let kinds: Vec<_> = one.store.history("v", false).await.unwrap().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [RecordKind::Data; 4]);
}
