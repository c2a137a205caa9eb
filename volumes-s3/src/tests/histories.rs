//! What a history tells, and who owns it: comparison, verification, claims by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{Change, Progress, RecordKind};

use super::whole_trees::fill;
use super::{Host, Memory, code};
use crate::Error;

#[tokio::test]
async fn a_comparison_tells_each_change_and_nothing_else() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    for directory in 0..40 {
        fs::create_dir(data.join(format!("d{directory}"))).unwrap();
        for file in 0..50 {
            fs::write(data.join(format!("d{directory}/f{file}")), format!("{directory} {file}")).unwrap();
        }
    }
    let huge = vec![7; 3 << 20];
    fs::write(data.join("huge"), &huge).unwrap();
    std::os::unix::fs::symlink("d1", data.join("link")).unwrap();
    let old = host.store.sync("v").await.unwrap().generation.unwrap();
    assert!(host.store.diff("v", old, old).await.unwrap().is_empty());
    fs::write(data.join("d0/f0"), "more than before").unwrap();
    fs::remove_file(data.join("d39/f49")).unwrap();
    fs::write(data.join("d5-new"), "x").unwrap();
    fs::set_permissions(data.join("d20/f7"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(data.join("link")).unwrap();
    std::os::unix::fs::symlink("d2", data.join("link")).unwrap();
    // The same again is no change of its data.
    fs::write(data.join("huge"), &huge).unwrap();
    let new = host.store.sync("v").await.unwrap().generation.unwrap();
    let found = host.store.diff("v", old, new).await.unwrap();
    let told: Vec<_> = found.iter().map(|entry| (entry.path.as_str(), entry.change)).collect();
    let (content, attributes) = (Change::Content, Change::Attributes);
    let expected = [
        ("d0/f0", content),
        ("d20/f7", attributes),
        ("d39/f49", Change::Removed),
        ("d5-new", Change::Added),
        ("huge", attributes),
        ("link", content),
    ];
    assert_eq!(told, expected);
    assert_eq!((found[0].old_size_bytes, found[0].new_size_bytes), (Some(3), Some(16)));
    assert_eq!((found[2].old_size_bytes, found[2].new_size_bytes), (Some(5), None));
    // The other way round.
    let back = host.store.diff("v", new, old).await.unwrap();
    assert_eq!(back.iter().find(|entry| entry.path == "d5-new").unwrap().change, Change::Removed);
    assert_eq!(code(host.store.diff("v", old, 99).await), "volume.generation_not_found");
    // A record that holds no tree is no generation.
    assert_eq!(code(host.store.diff("v", 1, new).await), "volume.generation_not_found");
}

#[tokio::test]
async fn a_verification_reads_each_chunk_once_and_names_what_is_damaged() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    let data = host.acquire().await.unwrap().path;
    fill(&data);
    fs::write(data.join("first"), vec![1; 100_000]).unwrap();
    let first = host.store.sync("v").await.unwrap().generation.unwrap();
    fs::write(data.join("second"), "of the second generation").unwrap();
    let second = host.store.sync("v").await.unwrap().generation.unwrap();
    let whole = host.store.verify("v", None, Progress::default()).await.unwrap();
    assert_eq!((whole.generations, whole.damaged.len()), (2, 0), "{whole:?}");
    let one = host.store.verify("v", Some(second), Progress::default()).await.unwrap();
    assert!(one.generations == 1 && one.chunks < whole.chunks && one.stored_bytes > 0, "{one:?} of {whole:?}");
    assert_eq!(code(host.store.verify("v", Some(99), Progress::default()).await), "volume.generation_not_found");
    assert_eq!(code(host.store.verify("other", None, Progress::default()).await), "volume.not_found");
    // One bit of a file of the second generation: the first is whole, and the second told of by the file's name.
    let damage = |wanted: &[u8], change: fn(&mut Vec<u8>, usize)| {
        let mut objects = memory.objects.lock().unwrap();
        let find = |body: &[u8]| body.windows(wanted.len()).position(|window| window == wanted);
        let (_, pack) = objects.iter_mut().find(|(key, body)| key.contains("/packs/") && find(body).is_some()).unwrap();
        let (at, before) = (find(pack).unwrap(), pack.clone());
        let mut bytes = pack.to_vec();
        change(&mut bytes, at);
        *pack = bytes.into();
        before
    };
    let before = damage(b"of the second generation", |bytes, at| bytes[at] ^= 1);
    let report = host.store.verify("v", None, Progress::default()).await.unwrap();
    let told: Vec<_> = report.damaged.iter().map(|damage| (damage.generation, damage.path.as_deref())).collect();
    assert_eq!(told, [(second, Some("second"))], "{report:?}");
    assert!(host.store.verify("v", Some(first), Progress::default()).await.unwrap().damaged.is_empty());
    // A pack that is cut off there: what lies before is still whole.
    {
        let mut objects = memory.objects.lock().unwrap();
        let key = objects.iter().find(|(key, body)| key.contains("/packs/") && body.len() == before.len()).unwrap().0;
        let key = key.clone();
        objects.insert(key, before);
    }
    damage(b"of the second generation", |bytes, at| bytes.truncate(at + 3));
    let report = host.store.verify("v", None, Progress::default()).await.unwrap();
    assert!(
        !report.damaged.is_empty() && report.damaged.iter().all(|damage| damage.generation == second),
        "{report:?}"
    );
    // S3 that is away is no damage.
    memory.away.store(true, Ordering::SeqCst);
    assert_eq!(code(host.store.verify("v", None, Progress::default()).await), "volume.s3_unreachable");
}

#[tokio::test]
async fn a_claim_by_hand_is_kept_until_it_was_used() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    assert_eq!(code(two.store.claim("v", false, Progress::default()).await), "volume.not_found");
    one.acquire().await.unwrap();
    one.write("published").await;
    one.store.sync("v").await.unwrap();
    one.write("unsynced").await;
    let Err(error) = two.store.claim("v", false, Progress::default()).await else { panic!("it has an owner") };
    assert!(error.code() == "volume.in_use_elsewhere" && error.hint().unwrap().contains("--take-over"), "{error}");
    let status = two.store.claim("v", true, Progress::default()).await.unwrap();
    assert_eq!(status.owner.as_deref(), Some("two"));
    assert_eq!(two.read().await, "published");
    // Who retries leaves it alone, and so does a second claim.
    assert!(two.store.owing().await.unwrap().is_empty());
    two.store.claim("v", false, Progress::default()).await.unwrap();
    assert!(two.store.prune_local(&Default::default()).await.unwrap().deleted.is_empty());
    assert_eq!(code(one.store.claim("v", false, Progress::default()).await), "volume.in_use_elsewhere");
    // The former owner may no longer publish: its tree becomes a branch.
    let Err(Error::Fenced { branch: Some(_), .. }) = one.store.sync("v").await else { panic!("not fenced") };
    two.acquire().await.unwrap();
    two.write("by two").await;
    two.store.release("v", "web").await.unwrap();
    assert_eq!(two.store.status("v").await.unwrap().owner, None, "it was used, and is free");
    let kinds: Vec<_> = two.store.history("v", true).await.unwrap().iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == RecordKind::Claim).count(), 2, "{kinds:?}");
    // With S3 away nobody is told that it is theirs.
    memory.away.store(true, Ordering::SeqCst);
    assert_eq!(code(two.store.claim("v", true, Progress::default()).await), "volume.s3_unreachable");
    memory.away.store(false, Ordering::SeqCst);
    // Given back by hand: the local copy goes, and the claim with it.
    two.store.claim("v", false, Progress::default()).await.unwrap();
    two.store.remove("v", false, false).await.unwrap();
    assert!(one.store.history("v", true).await.unwrap().last().unwrap().kind == RecordKind::Released);
}
