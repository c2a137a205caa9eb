//! Files of a host's own about a volume that cannot be read.

use std::fs;
use std::sync::Arc;

use super::{Host, Memory, code};
use crate::{AcquireOptions, MountedBy, VolumeStore, VolumesConfig};

#[tokio::test]
async fn a_volume_whose_state_is_damaged_hides_no_other_and_can_be_removed() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    for name in ["a", "v", "z"] {
        let data = host.store.acquire(name, "web", AcquireOptions::default()).await.unwrap().path;
        fs::write(data.join("file"), name.repeat(7)).unwrap();
        host.store.release(name, "web").await.unwrap();
    }
    let directory = host.store.inner_root().join("v");
    fs::write(directory.join("state.json"), "{\"users\": nonsense").unwrap();
    let told = host.store.list().await.unwrap();
    let names: Vec<_> = told.iter().map(|status| status.name.as_str()).collect();
    assert_eq!(names, ["a", "v", "z"]);
    assert!(told[0].last_error.is_none() && told[2].last_error.is_none());
    // Nobody knows what of it is in S3.
    assert_eq!((told[1].bytes_at_risk, told[1].size_bytes, told[1].generation), (7, Some(7), None));
    assert!(told[1].last_error.as_ref().unwrap().contains("state.json"), "{told:?}");

    let error = host.store.remove("v", false, false).await.unwrap_err();
    assert_eq!((error.code(), error.volume()), ("volume.corrupt", Some("v")));
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("`berth volume rm -f v`") && hint.contains(directory.join("data").to_str().unwrap()),
        "{hint}"
    );
    assert_eq!(code(host.store.status("v").await), "volume.corrupt");
    assert!(host.store.prune_local(&Default::default()).await.unwrap().deleted.len() == 2 && directory.exists());
    host.store.remove("v", false, true).await.unwrap();
    assert!(!directory.exists());
    // As the hint says: what S3 holds is there again.
    let data = host.acquire().await.unwrap().path;
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "vvvvvvv");
    host.store.release("v", "web").await.unwrap();
    // With its history, too.
    fs::write(directory.join("state.json"), "").unwrap();
    host.store.remove("v", true, true).await.unwrap();
    assert!(!directory.exists());
    assert!(!memory.objects.lock().unwrap().keys().any(|key| key.starts_with("p/v/")));
}

#[tokio::test]
async fn a_damaged_journal_says_the_same() {
    let host = Host::new("one", &Arc::new(Memory::default())).await;
    host.acquire().await.unwrap();
    host.write("x").await;
    host.store.release("v", "web").await.unwrap();
    fs::write(host.store.inner_root().join("v/commit.json"), "{").unwrap();
    let error = host.store.sync("v").await.unwrap_err();
    assert!(error.hint().unwrap().contains("`berth volume rm -f v`"), "{error}");
    host.store.remove("v", false, true).await.unwrap();
    assert!(!host.store.inner_root().join("v").exists());
}

#[tokio::test]
async fn beneath_who_has_it_mounted_it_is_not_removed_by_force() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("one", &memory).await;
    host.acquire().await.unwrap();
    host.write("x").await;
    fs::write(host.store.inner_root().join("v/state.json"), "{").unwrap();
    let mounted = Arc::new(std::sync::Mutex::new(vec!["web-rep-0".to_owned()]));
    let asked = mounted.clone();
    let known = MountedBy::new(move |volume| match volume {
        "v" => asked.lock().unwrap().clone(),
        other => panic!("asked for {other}"),
    });
    let config = VolumesConfig { mounted_by: Some(known), ..super::config(host._root.path(), "one") };
    let store = VolumeStore::open_with(config, memory.clone()).await.unwrap();
    for remote in [false, true] {
        let error = store.remove("v", remote, true).await.unwrap_err();
        assert!(error.code() == "volume.in_use" && error.to_string().contains("web-rep-0"), "{error}");
    }
    assert_eq!(fs::read_to_string(host.store.inner_root().join("v/data/file")).unwrap(), "x");
    mounted.lock().unwrap().clear();
    store.remove("v", false, true).await.unwrap();
    assert!(!host.store.inner_root().join("v").exists());
}
