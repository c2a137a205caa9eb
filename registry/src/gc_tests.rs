//! Removals beside others who use the store.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::ImageStore;
use crate::image::Image;
use crate::load::tests::{docker_archive, is_root, store};

/// A store with one image, which has two names.
async fn loaded(base: &Path) -> (ImageStore, Image) {
    let (store, archive) = (store(&base.join("root")), base.join("archive"));
    fs::write(&archive, docker_archive()).unwrap();
    let image = store.load(&archive).await.unwrap().remove(0);
    (store, image)
}

async fn names(store: &ImageStore) -> Vec<String> {
    store.list().await.unwrap().into_iter().map(|image| image.reference).collect()
}

fn user_of(image: &Image) -> InUse {
    let Image { reference, digest, layers, .. } = image.clone();
    InUse { user: "c".into(), reference, digest, layers }
}

/// Users who are asked as `answer` says, which is given the number of the call.
fn users(answer: impl Fn(usize) -> io::Result<Vec<InUse>> + Send + Sync + 'static) -> Arc<Users> {
    let calls = Mutex::new(0);
    Arc::new(move || {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        answer(*calls)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_begin_to_use_an_image_while_a_removal_looks_who_does() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (store, _) = loaded(base.path()).await;
    let lock = store.0.paths.store_lock.clone();
    let held = Arc::new(Mutex::new(Vec::new()));
    let looks = Arc::clone(&held);
    let nobody = users(move |_| {
        let file = fs::File::open(&lock).unwrap();
        looks.lock().unwrap().push(rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err());
        Ok(Vec::new())
    });
    store.remove("b:2", false, nobody).await.unwrap();
    assert_eq!(*held.lock().unwrap(), [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_create_in_flight_comes_to_use_is_put_back() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (store, image) = loaded(base.path()).await;
    let before = names(&store).await;
    let hold = store.hold().await.unwrap();
    let of_it = user_of(&image);
    let later = || {
        let of_it = of_it.clone();
        users(move |call| Ok(if call > 1 { vec![of_it.clone()] } else { Vec::new() }))
    };
    let error = store.remove(&image.reference, false, later()).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { users, .. } if users == &["c"]), "{error}");
    let untold = users(|call| if call > 1 { Err(io::Error::other("untold")) } else { Ok(Vec::new()) });
    store.remove(&image.reference, false, untold).await.unwrap_err();
    assert_eq!(names(&store).await, before);
    store.remove(&image.reference, true, later()).await.unwrap();
    assert_eq!(names(&store).await, ["docker.io/library/b:2"]);
    drop(hold);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_containers_image_needs_is_known_before_anything_is_swept() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (store, image) = loaded(base.path()).await;
    let manifest = store.0.paths.blob(image.digest.strip_prefix("sha256:").unwrap());
    let aside = base.path().join("manifest");
    // A manifest that cannot be read, for a reason that may pass.
    fs::rename(&manifest, &aside).unwrap();
    std::os::unix::fs::symlink(&manifest, &manifest).unwrap();
    let blobs = || fs::read_dir(&store.0.paths.blobs).unwrap().count();
    let (there, of_it) = (blobs(), user_of(&image));
    let users = users(move |_| Ok(vec![of_it.clone()]));
    store.remove(&image.digest, true, Arc::clone(&users)).await.unwrap_err();
    assert_eq!((blobs(), names(&store).await.len()), (there, 0), "it was swept");
    // It is owed until it can be.
    fs::rename(&aside, &manifest).unwrap();
    store.sweep_owed(users).await.unwrap();
    assert_eq!(blobs(), there, "manifest, configuration and layer of a container's image");
    store.prune(Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert_eq!(blobs(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_has_its_turn_though_some_creates_are_always_under_way() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (store, _) = loaded(base.path()).await;
    let pruned = Arc::new(AtomicBool::new(false));
    let turns = Arc::new(AtomicUsize::new(0));
    let creates: Vec<_> = (0..4)
        .map(|_| {
            let (lock, pruned, turns) = (store.0.paths.store_lock.clone(), Arc::clone(&pruned), Arc::clone(&turns));
            std::thread::spawn(move || {
                while !pruned.load(Ordering::Relaxed) {
                    let _hold = StoreHold::shared(&lock).unwrap();
                    turns.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                }
            })
        })
        .collect();
    while turns.load(Ordering::Relaxed) < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let nobody: Arc<Users> = Arc::new(|| Ok(Vec::new()));
    let turn = tokio::time::timeout(Duration::from_secs(15), store.prune(nobody)).await;
    pruned.store(true, Ordering::Relaxed);
    creates.into_iter().for_each(|create| create.join().unwrap());
    assert!(turn.expect("it waits for ever").unwrap().space_reclaimed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_long_pull_keeps_creates_waiting_for_moments_only() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (store, _) = loaded(base.path()).await;
    let pull = store.hold().await.unwrap();
    let nobody: Arc<Users> = Arc::new(|| Ok(Vec::new()));
    let pruning = tokio::spawn({
        let store = store.clone();
        async move { store.prune(nobody).await }
    });
    let gate = store.0.paths.store_lock.with_extension("gate");
    let is_shut = || {
        let Ok(file) = fs::File::open(&gate) else { return false };
        rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
    };
    let begun = std::time::Instant::now();
    while !is_shut() {
        assert!(begun.elapsed() < Duration::from_secs(15), "the gate stays open");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let create = tokio::time::timeout(Duration::from_secs(15), store.hold()).await;
    assert!(!pruning.is_finished());
    drop((create.expect("a create waits for the prune, and that for the pull").unwrap(), pull));
    pruning.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_processes_that_were_killed_had_half_written_is_swept() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (store, image) = loaded(base.path()).await;
    let paths = &store.0.paths;
    let said = || fs::read_dir(&paths.about).unwrap().count();
    let before = said();
    let left = [
        paths.images.join("index.json.tmp-0"),
        paths.images.join("oci-layout.tmp-0"),
        paths.about.join(format!("diff-{}.json.tmp-0", "0".repeat(64))),
        paths.about.join(format!("chain-{}.json", "0".repeat(64))),
        paths.blobs.join(format!("{}.tmp-0", "0".repeat(64))),
    ];
    for path in &left {
        fs::write(path, b"{").unwrap();
    }
    store.remove("b:2", false, Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert_eq!(left.iter().filter(|path| path.exists()).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert_eq!((before, said()), (1, 1), "what is said of a layer that stands");
    assert!(image.layers[0].is_dir() && names(&store).await == [image.reference]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_that_cannot_be_read_keeps_is_not_looked_for_by_each_command() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (store, image) = loaded(base.path()).await;
    let blobs = base.path().join("root/images/blobs/sha256");
    fs::remove_file(blobs.join(image.digest.strip_prefix("sha256:").unwrap())).unwrap();
    let looks = Arc::new(AtomicUsize::new(0));
    let last = Arc::clone(&looks);
    let nobody = users(move |call| {
        last.store(call, Ordering::Relaxed);
        Ok(Vec::new())
    });
    for _ in 0..3 {
        store.sweep_owed(Arc::clone(&nobody)).await.unwrap();
    }
    assert_eq!(looks.load(Ordering::Relaxed), 1);
    // It is owed still, and a load begins it anew.
    store.load(&base.path().join("archive")).await.unwrap();
    store.sweep_owed(Arc::clone(&nobody)).await.unwrap();
    assert_eq!(looks.load(Ordering::Relaxed), 2);
    assert!(!base.path().join("root/layers/sweep-owed").exists());
}
