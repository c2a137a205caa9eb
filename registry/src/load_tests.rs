//! Archives that skopeo makes of a pulled image, and broken ones.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::layer::tar::tests::{header, with_data};
use crate::{ImageStore, StoreConfig};

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: skipped");
    }
    root
}

pub(crate) fn store(root: &Path) -> ImageStore {
    ImageStore::open(StoreConfig::new(root.into())).unwrap()
}

/// A `docker save` archive by hand, its second layer a link to the first, as docker writes equal layers.
pub(crate) fn docker_archive() -> Vec<u8> {
    let layer = [header(b"d/", b'5', 0, |_| {}), with_data(header(b"d/f", b'0', 1, |_| {}), b"f")].concat();
    let diff_id = crate::image::digest_of(&layer);
    let architecture = crate::platform::Platform::host().architecture;
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}","{diff_id}"]}}}}"#
    );
    let manifest =
        r#"[{"Config":"c.json","RepoTags":["example.org/a:1","b:2"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    let file = |name: &[u8], data: &[u8]| with_data(header(name, b'0', data.len() as u64, |_| {}), data);
    let link = header(b"2/layer.tar", b'2', 0, |b| b[157..171].copy_from_slice(b"../1/layer.tar"));
    [
        link,
        file(b"1/layer.tar", &layer),
        file(b"c.json", config.as_bytes()),
        file(b"manifest.json", manifest.as_bytes()),
        vec![0; 1024],
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_and_layouts_give_the_same_image() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let archive = base.path().join("saved.tar");
    std::fs::write(&archive, docker_archive()).unwrap();
    let first = store(&base.path().join("first"));
    let images = first.load(&archive).await.unwrap();
    let names: Vec<&str> = images.iter().map(|image| image.reference.as_str()).collect();
    assert_eq!(names, ["example.org/a:1", "docker.io/library/b:2"]);
    // Its two layers are one, and overlayfs takes no directory twice.
    assert_eq!(images[0].layers.len(), 1);
    assert_eq!(std::fs::read(images[0].layers[0].join("d/f")).unwrap(), b"f");
    assert_eq!(first.list().await.unwrap().len(), 2);
    // skopeo, another reader, makes layouts and archives of it.
    for (i, target) in [
        "oci:l:x",
        "oci:m:example.org/a:1",
        "oci-archive:o.tar:example.org/a:1",
        "docker-archive:d.tar:b:2",
        "oci:t:RC1",
    ]
    .into_iter()
    .enumerate()
    {
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "docker-archive:saved.tar:example.org/a:1", target])
            .current_dir(base.path())
            .status();
        let Ok(copied) = copied else {
            eprintln!("no skopeo: skipped");
            return;
        };
        assert!(copied.success(), "{target}");
        let file = target.split(':').nth(1).unwrap();
        let other = store(&base.path().join(i.to_string()));
        let loaded = other.load(&base.path().join(file)).await.unwrap();
        // A tag that is no repository's name leaves it without one.
        let nameless = format!("<none>@{}", loaded[0].digest);
        let expected =
            ["localhost/x:latest", "example.org/a:1", "example.org/a:1", "docker.io/library/b:2", &nameless][i];
        assert_eq!((loaded.len(), loaded[0].reference.as_str()), (1, expected), "{target}");
        assert_eq!(std::fs::read(loaded[0].layers[0].join("d/f")).unwrap(), b"f", "{target}");
        assert_eq!(loaded[0].config.rootfs(), images[0].config.rootfs(), "{target}");
        let left: Vec<_> = std::fs::read_dir(base.path().join(i.to_string()).join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.as_encoded_bytes().starts_with(b"tmp-"))
            .collect();
        assert!(left.is_empty(), "{target}: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_members_with_one_name_the_last_counts() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    let archive = base.path().join("archive");
    let layer = with_data(header(b"f", b'0', 1, |_| {}), b"f");
    let whole = archive_of("example.org/a:1", &[&layer]);
    std::fs::write(&archive, &whole).unwrap();
    let digest = store.load(&archive).await.unwrap()[0].digest.clone();
    let file = |name: &[u8], data: &[u8]| with_data(header(name, b'0', data.len() as u64, |_| {}), data);
    let twice = [file(b"0.tar", &layer), file(b"0.tar", b"junk"), file(b"manifest.json", b"[]"), whole].concat();
    std::fs::write(&archive, twice).unwrap();
    let images = store.load(&archive).await.unwrap();
    assert_eq!((images.len(), &images[0].digest), (1, &digest));
    // Each of them is looked at.
    let mut many = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let member = header(b"d/", b'5', 0, |_| {});
    (0..100_001).for_each(|_| many.write_all(&member).unwrap());
    std::fs::write(&archive, many.finish().unwrap()).unwrap();
    let error = store.load(&archive).await.unwrap_err();
    assert!(matches!(error, crate::Error::TooLarge { limit: 100_000, .. }), "{error}");
}

/// An archive of one image of these layers.
pub(crate) fn archive_of(name: &str, layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| crate::image::digest_of(layer)).collect();
    let architecture = crate::platform::Platform::host().architecture;
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
    );
    let files: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest = format!(r#"[{{"Config":"c.json","RepoTags":["{name}"],"Layers":{files:?}}}]"#);
    let file = |name: &str, data: &[u8]| with_data(header(name.as_bytes(), b'0', data.len() as u64, |_| {}), data);
    let members = files.iter().zip(layers).map(|(name, layer)| file(name, layer));
    let rest = [file("c.json", config.as_bytes()), file("manifest.json", manifest.as_bytes()), vec![0; 1024]];
    members.chain(rest).collect::<Vec<_>>().concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_takes_from_below_is_each_images_own() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let plain = |name: &[u8], data: &[u8]| with_data(header(name, b'0', data.len() as u64, |_| {}), data);
    let link = |name: &[u8], kind: u8, target: &'static [u8]| {
        header(name, kind, 0, |b| b[157..157 + target.len()].copy_from_slice(target))
    };
    // A hard link to a file further down; an entry beneath what is a link to a directory there.
    let tops = [link(b"linked", b'1', b"file"), plain(b"lib/entry", b"x")];
    let one =
        [plain(b"file", b"from one"), header(b"usr/lib/", b'5', 0, |_| {}), link(b"lib", b'2', b"usr/lib")].concat();
    let two = [plain(b"file", b"from two"), header(b"usr/lib/", b'5', 0, |_| {}), header(b"lib/", b'5', 0, |_| {})];
    let two = two.concat();
    for (number, top) in tops.iter().enumerate() {
        for order in [["one", "two"], ["two", "one"]] {
            let store = store(&base.path().join(format!("{number}{}", order[0])));
            for name in order {
                let below = if name == "one" { &one } else { &two };
                let path = base.path().join("archive");
                std::fs::write(&path, archive_of(&format!("example.org/{name}:1"), &[below, top])).unwrap();
                let layers = store.load(&path).await.unwrap().remove(0).layers;
                let has = |entry: &str| layers.iter().find_map(|layer| std::fs::read_to_string(layer.join(entry)).ok());
                match number {
                    0 => assert_eq!(has("linked"), Some(format!("from {name}")), "{order:?}"),
                    _ if name == "one" => assert_eq!(has("usr/lib/entry").as_deref(), Some("x"), "{order:?}"),
                    _ => assert_eq!(has("lib/entry").as_deref(), Some("x"), "{order:?}"),
                }
            }
        }
    }
    // Where there is no such file the link leads nowhere, whatever another image made of that layer.
    let store = store(&base.path().join("0one"));
    let path = base.path().join("archive");
    std::fs::write(&path, archive_of("example.org/none:1", &[&plain(b"other", b"x"), &tops[0]])).unwrap();
    store.load(&path).await.unwrap_err();
}

/// An archive of two images whose lower layer is the same member, under a name that is no digest.
fn archive_of_two() -> Vec<u8> {
    let layers = [b"0", b"1", b"2"].map(|name| with_data(header(name, b'0', 1, |_| {}), name));
    let architecture = crate::platform::Platform::host().architecture;
    let config = |upper: usize| {
        let diff_ids = [0, upper].map(|number| crate::image::digest_of(&layers[number]));
        format!(
            r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
        )
    };
    let image = |name: &str, upper: usize| {
        format!(
            r#"{{"Config":"{upper}.json","RepoTags":["example.org/{name}:1"],"Layers":["0/layer.tar","{upper}/layer.tar"]}}"#
        )
    };
    let manifest = format!("[{},{}]", image("a", 1), image("b", 2));
    let file = |name: &str, data: &[u8]| with_data(header(name.as_bytes(), b'0', data.len() as u64, |_| {}), data);
    [
        file("0/layer.tar", &layers[0]),
        file("1/layer.tar", &layers[1]),
        file("2/layer.tar", &layers[2]),
        file("1.json", config(1).as_bytes()),
        file("2.json", config(2).as_bytes()),
        file("manifest.json", manifest.as_bytes()),
        vec![0; 1024],
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_one_archive_may_have_a_layer_in_common() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    let archive = base.path().join("archive");
    std::fs::write(&archive, archive_of_two()).unwrap();
    let images = store.load(&archive).await.unwrap();
    assert_eq!((images.len(), &images[0].layers[0]), (2, &images[1].layers[0]));
    assert_eq!(std::fs::read(images[1].layers[0].join("0")).unwrap(), b"0");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_archives_are_typed_errors_and_enter_nothing() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    let good = docker_archive();
    let mut damaged = good.clone();
    // The layer's only file.
    let at = damaged.windows(3).position(|bytes| bytes == b"d/f").unwrap();
    damaged[at + 512] = b'g';
    let loop_of_links = header(b"manifest.json", b'2', 0, |b| b[157..170].copy_from_slice(b"manifest.json"));
    for (what, bytes, code) in [
        ("empty", Vec::new(), "image.invalid_manifest"),
        ("no tar", vec![b'x'; 2000], "image.invalid_manifest"),
        ("by xz", b"\xfd7zXZ\0 and so on".to_vec(), "unsupported"),
        ("cut", good[..2000].to_vec(), "image.invalid_manifest"),
        ("another diff ID", damaged, "image.digest_mismatch"),
        ("links in a circle", loop_of_links, "image.invalid_manifest"),
        ("no image", with_data(header(b"manifest.json", b'0', 2, |_| {}), b"[]"), "image.invalid_manifest"),
        (
            "an index of none",
            with_data(header(b"index.json", b'0', 16, |_| {}), br#"{"manifests":[]}"#),
            "image.invalid_manifest",
        ),
    ] {
        let path = base.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        let error = store.load(&path).await.unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(error.to_string().contains("archive"), "{what}: {error}");
        assert!(store.list().await.unwrap().is_empty(), "{what}");
    }
    let there = || -> Vec<usize> {
        let dirs = ["images/blobs/sha256", "layers/diff", "layers/chain"].map(|dir| base.path().join("root").join(dir));
        dirs.iter().map(|dir| std::fs::read_dir(dir).unwrap().count()).collect()
    };
    assert!(there()[0] > 0, "none of them came as far as the store");
    store.sweep_owed(Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert_eq!(there(), [0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_does_not_wait_for_who_holds_the_store_and_its_content_goes_afterwards() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    let archive = base.path().join("saved.tar");
    std::fs::write(&archive, docker_archive()).unwrap();
    store.load(&archive).await.unwrap();
    let users: Arc<crate::Users> = Arc::new(|| Ok(Vec::new()));
    let blobs = || std::fs::read_dir(base.path().join("root/images/blobs/sha256")).unwrap().count();
    let hold = store.hold().await.unwrap();
    for name in ["example.org/a:1", "b:2"] {
        store.remove(name, false, Arc::clone(&users)).await.unwrap();
    }
    assert!(store.list().await.unwrap().is_empty() && blobs() > 0);
    // Still held: nothing goes.
    store.sweep_owed(Arc::clone(&users)).await.unwrap();
    assert!(blobs() > 0);
    drop(hold);
    store.sweep_owed(Arc::clone(&users)).await.unwrap();
    assert_eq!(blobs(), 0);
    assert!(!base.path().join("root/layers/sweep-owed").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_stays_where_containers_have_it_mounted_whatever_it_says_of_itself() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    // Some 1.3 MB are said of the upper one: each directory with a removal is named.
    let deep = format!("{}/", "d".repeat(240)).repeat(8);
    let entries = |name: &str| -> Vec<u8> {
        let entry = |number: u32| {
            let path = format!("{deep}{number}/{name}");
            let long = header(b"././@LongLink", b'L', path.len() as u64, |_| {});
            [with_data(long, path.as_bytes()), header(b"long", b'0', 0, |_| {})].concat()
        };
        (0..500).flat_map(entry).collect()
    };
    let archive = base.path().join("archive");
    std::fs::write(&archive, archive_of("example.org/a:1", &[&entries("f"), &entries(".wh.f")])).unwrap();
    let upper = store.load(&archive).await.unwrap()[0].layers[1].clone();
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&upper).unwrap());
    let [hex, kind] = [&upper, upper.parent().unwrap()].map(|path| path.file_name().unwrap().display());
    let about = base.path().join(format!("root/layers/about/{kind}-{hex}.json"));
    let (stood, said) = (inode(), std::fs::read(&about).unwrap());
    assert!(said.len() > 1 << 20, "{} bytes", said.len());
    let written = || std::fs::metadata(&about).unwrap().modified().unwrap();
    let before = written();
    assert!(store.find("example.org/a:1").await.unwrap().is_some());
    assert_eq!((inode(), written()), (stood, before), "it was unpacked again");
    std::fs::write(&about, &said[..1000]).unwrap();
    assert!(store.find("example.org/a:1").await.unwrap().is_some());
    assert_eq!((inode(), std::fs::read(&about).unwrap()), (stood, said));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_during_anothers_sweep_is_swept_too() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    let archive = base.path().join("archive");
    for name in ["example.org/a:1", "example.org/b:1"] {
        let layer = with_data(header(&name.as_bytes()[12..13], b'0', 1, |_| {}), b"f");
        std::fs::write(&archive, archive_of(name, &[&layer])).unwrap();
        store.load(&archive).await.unwrap();
    }
    // Enough to go for the first sweep to take longer than a removal's patience.
    let blobs = base.path().join("root/images/blobs/sha256");
    let surplus = 60_000;
    for number in 0..surplus {
        std::fs::File::create(blobs.join(format!("{number:064}"))).unwrap();
    }
    let users: Arc<crate::Users> = Arc::new(|| Ok(Vec::new()));
    let first = tokio::spawn({
        let (store, users) = (store.clone(), Arc::clone(&users));
        async move { store.remove("example.org/a:1", false, users).await }
    });
    // It has read the index by then.
    while blobs.join(format!("{:064}", 0)).exists() && blobs.join(format!("{:064}", surplus - 1)).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    store.remove("example.org/b:1", false, users).await.unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0);
    assert!(!base.path().join("root/layers/sweep-owed").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_synced_also_where_all_layers_are_here() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    let archive = base.path().join("archive");
    let layers = [b"a", b"b"].map(|name| with_data(header(name, b'0', 1, |_| {}), name));
    std::fs::write(&archive, archive_of("example.org/both:1", &[&layers[0], &layers[1]])).unwrap();
    store.load(&archive).await.unwrap();
    let marks = base.path().join("root/layers/unsynced").join(crate::durability::boot_id().unwrap());
    let soon = async |what: &str, is: &dyn Fn() -> bool| {
        let begun = std::time::Instant::now();
        while !is() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{what}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    soon("the layers are not synced", &|| std::fs::read_dir(&marks).unwrap().count() == 0).await;
    std::fs::write(&archive, archive_of("example.org/one:1", &[&layers[0]])).unwrap();
    let digest = store.load(&archive).await.unwrap()[0].digest.clone();
    let manifest = base.path().join("root/images/blobs/sha256").join(&digest["sha256:".len()..]);
    // The kernel by itself gives a file its place on the disk after 30 s.
    let on_disk = || {
        let said = Command::new("filefrag").arg("-v").arg(&manifest).output().unwrap();
        said.status.success() && !String::from_utf8_lossy(&said.stdout).contains("delalloc")
    };
    soon("the manifest is not on the disk", &on_disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_files_of_a_removed_image() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let store = store(&base.path().join("root"));
    let archive = base.path().join("archive");
    let layer = with_data(header(b"f", b'0', 1, |_| {}), b"f");
    std::fs::write(&archive, archive_of("example.org/a:1", &[&layer])).unwrap();
    let stood = store.load(&archive).await.unwrap()[0].layers[0].clone();
    for number in 0..40_000 {
        std::fs::File::create(stood.join(number.to_string())).unwrap();
    }
    let removing = tokio::spawn({
        let store = store.clone();
        async move { store.remove("example.org/a:1", false, Arc::new(|| Ok(Vec::new()))).await }
    });
    while stood.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let hold = store.hold().await.unwrap();
    let in_layers = || std::fs::read_dir(base.path().join("root/layers")).unwrap().flatten();
    let in_trash = || in_layers().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"tmp-"));
    assert!(in_trash(), "the store was held until all was deleted");
    drop(hold);
    removing.await.unwrap().unwrap();
    assert!(!in_trash());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_dropped_keeps_the_store_until_it_has_entered_its_images() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let archive = base.path().join("saved.tar");
    std::fs::write(&archive, docker_archive()).unwrap();
    let root = base.path().join("root");
    let store = store(&root);
    let lock = root.join("layers/locks/index");
    let index = crate::locks::lock_file(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let inode = format!(":{} ", std::os::unix::fs::MetadataExt::ino(&index.metadata().unwrap()));
    let loading = tokio::spawn(async move { store.load(&archive).await.map(drop) });
    let waits = |line: &str| line.contains("->") && line.contains(&inode);
    let begin = std::time::Instant::now();
    while !std::fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
        assert!(!loading.is_finished() && begin.elapsed().as_secs() < 60, "it does not wait for the index");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    loading.abort();
    let _aborted = loading.await;
    let hold = || crate::StoreHold::try_exclusive(&root.join("layers/store.lock")).unwrap();
    assert!(hold().is_none(), "a removal could sweep what is about to be entered");
    drop(index);
    while hold().is_none() {
        assert!(begin.elapsed().as_secs() < 120, "the store is held for ever");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let entered = std::fs::read_to_string(root.join("images/index.json")).unwrap();
    assert!(entered.contains("example.org/a:1") && entered.contains("docker.io/library/b:2"), "{entered}");
}
