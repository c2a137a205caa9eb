//! What is refused for what it is, by its code, and leaves all as it was.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use runtime_core::{Progress, RestoreOptions};

use super::{Host, Memory, code, config};
use crate::VolumeStore;
use crate::record::FORMAT;

#[tokio::test]
async fn without_a_bucket_nothing_is_asked_of_one() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.store.release("v", "web").await.unwrap();
    let without = host.without_bucket("one").await;
    assert_eq!(code(without.history("v", true).await), "volume.no_bucket");
    assert_eq!(code(without.restore("v", RestoreOptions::default()).await), "volume.no_bucket");
    assert_eq!(code(without.remove("v", true, true).await), "volume.no_bucket");
    assert_eq!(code(without.check_server().await), "volume.no_bucket");
    assert_eq!(host.store.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_newer_version_wrote_is_not_guessed_at() {
    let memory = Arc::new(Memory::default());
    let (one, two) = (Host::new("one", &memory).await, Host::new("two", &memory).await);
    one.acquire().await.unwrap();
    one.write("kept").await;
    one.store.release("v", "web").await.unwrap();
    // With a space in files, without one in the bucket.
    let version = |between: &str, format: u32| format!("\"format\":{between}{format}");
    let with = |text: &str, between| text.replacen(&version(between, FORMAT), &version(between, FORMAT + 1), 1);
    let newer = |text: &str| with(&with(text, " "), "");
    // Of this host.
    let file = one.store.inner_root().join("v/state.json");
    let before = fs::read_to_string(&file).unwrap();
    let after = newer(&before);
    assert_ne!(after, before);
    fs::write(&file, &after).unwrap();
    for error in [one.store.status("v").await.unwrap_err(), one.acquire().await.unwrap_err()] {
        assert_eq!(error.code(), "volume.unsupported_format", "{error}");
        let expected = format!("state.json has format {}; this version reads up to {FORMAT}", FORMAT + 1);
        assert!(error.to_string().contains(&expected), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), after, "it was written to");
    // Of the bucket.
    {
        let mut objects = memory.objects.lock().unwrap();
        let (_, record) = objects.iter_mut().rfind(|(key, _)| key.contains("/log/")).unwrap();
        *record = newer(std::str::from_utf8(record).unwrap()).into();
    }
    let error = two.acquire().await.unwrap_err();
    assert_eq!(error.code(), "volume.unsupported_format", "{error}");
    assert!(two.store.list().await.unwrap().is_empty(), "something was made");
}

#[tokio::test]
async fn a_restore_overwrites_nothing() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("published").await;
    host.store.sync("v").await.unwrap();
    let to = host._root.path().join("beside");
    let restore = async || host.store.restore("v", RestoreOptions { to: Some(to.clone()), ..Default::default() }).await;
    fs::write(&to, "a file").unwrap();
    assert_eq!(code(restore().await), "volume.target_exists");
    assert_eq!(fs::read_to_string(&to).unwrap(), "a file");
    fs::remove_file(&to).unwrap();
    fs::create_dir_all(to.join("something")).unwrap();
    let error = restore().await.unwrap_err();
    assert_eq!(error.code(), "volume.target_exists", "{error}");
    assert!(error.to_string().contains(to.to_str().unwrap()), "{error}");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    fs::remove_dir(to.join("something")).unwrap();
    restore().await.unwrap();
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "published");
    let left = fs::read_dir(host._root.path()).unwrap().flatten().map(|entry| entry.file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(".restore-")));
}

#[tokio::test]
async fn a_place_that_cannot_be_is_named() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("volumes"), "a file").unwrap();
    let config = crate::VolumesConfig { s3: None, ..config(root.path(), "one") };
    let error = VolumeStore::open(config).await.unwrap_err();
    assert_eq!(error.code(), "volume.io", "{error}");
    assert!(error.to_string().contains(root.path().join("volumes").to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_log_that_others_keep_writing_to_is_given_up() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    memory.others_first.store(true, Ordering::SeqCst);
    let error = host.acquire().await.unwrap_err();
    assert_eq!(error.code(), "volume.interrupted", "{error}");
    assert!(error.is_transient());
    memory.others_first.store(false, Ordering::SeqCst);
    host.store.claim("v", false, Progress::default()).await.unwrap();
    assert!(host.acquire().await.unwrap().claimed);
}
