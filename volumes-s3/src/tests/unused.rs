//! What is done for a volume that nobody uses.

use std::sync::Arc;

use runtime_core::{Progress, RecordKind};

use super::{Host, Memory};

#[tokio::test]
async fn a_sync_of_what_was_changed_on_the_host_keeps_no_claim() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("by a container").await;
    one.store.release("v", "web").await.unwrap();
    one.write("by hand").await;
    let status = one.store.sync("v").await.unwrap();
    assert_eq!((status.owner, status.bytes_at_risk), (None, 0));
    let kinds: Vec<_> = one.store.history("v", true).await.unwrap().iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds[3..], [RecordKind::Claim, RecordKind::Data, RecordKind::Released]);
    assert!(one.store.owing().await.unwrap().is_empty(), "it is left to the keeper");
    two.acquire().await.unwrap();
    assert_eq!(two.read().await, "by hand");
    two.store.release("v", "web").await.unwrap();
    // Taken by hand, it is kept through a sync.
    one.store.claim("v", false, Progress::default()).await.unwrap();
    one.write("by hand again").await;
    assert_eq!(one.store.sync("v").await.unwrap().owner.as_deref(), Some("one"));
}
