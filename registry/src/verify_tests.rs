//! Images that are whole, and each way in which a part of one may not be.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::layer::tar::tests::{header, with_data};
use crate::{Image, ImageStore, StoreConfig};

/// Three layers; the upper ones take an implied directory, a hard link and a link to a directory from below.
fn archive() -> Vec<u8> {
    let link = |name: &[u8], flag: u8, to: &'static [u8]| {
        header(name, flag, 0, move |b| b[157..157 + to.len()].copy_from_slice(to))
    };
    let file = |name: &[u8], data: &[u8]| with_data(header(name, b'0', data.len() as u64, |_| {}), data);
    let directory = |name: &[u8]| header(name, b'5', 0, |_| {});
    let layers = [
        [directory(b"./"), directory(b"d/"), file(b"d/f", b"content"), file(b"d/old", b""), link(b"s", b'2', b"d")]
            .concat(),
        [file(b"d/g", b"g"), file(b"d/.wh.old", b""), link(b"h", b'1', b"d/f")].concat(),
        [file(b"s/through", b"t"), link(b"same", b'1', b"s/through")].concat(),
    ];
    let diff_ids: Vec<String> = layers.iter().map(|layer| image::digest_of(layer)).collect();
    let config = serde_json::json!({
        "architecture": crate::platform::Platform::host().architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [
            {"created": "2020-01-01T00:00:00Z", "created_by": "COPY a"},
            {"created_by": "ENV x", "empty_layer": true},
            {"created_by": "COPY b", "comment": "why"},
        ],
    });
    let manifest = serde_json::json!([{"Config": "c", "RepoTags": ["example.org/a:1"], "Layers": ["0", "1", "2"]}]);
    let mut out = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        out.extend(file(i.to_string().as_bytes(), layer));
    }
    out.extend(file(b"c", config.to_string().as_bytes()));
    out.extend(file(b"manifest.json", manifest.to_string().as_bytes()));
    out.extend([0; 1024]);
    out
}

async fn loaded(base: &Path) -> Option<(ImageStore, Image)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: skipped");
        return None;
    }
    let file = base.join("archive.tar");
    fs::write(&file, archive()).unwrap();
    let store = ImageStore::open(StoreConfig::new(base.join("root"))).unwrap();
    let image = store.load(&file).await.unwrap().remove(0);
    Some((store, image))
}

async fn damage(store: &ImageStore) -> Vec<String> {
    let verified = store.verify("example.org/a:1").await.unwrap();
    verified.damaged.into_iter().map(|damage| format!("{}: {}", damage.part, damage.reason)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_image_has_no_damage_and_nothing_is_left_of_looking() {
    let base = tempfile::tempdir().unwrap();
    let Some((store, image)) = loaded(base.path()).await else { return };
    assert_eq!(damage(&store).await, [""; 0]);
    let verified = store.verify(&image.digest).await.unwrap();
    assert_eq!((verified.digest, verified.size_bytes), (image.digest, image.size_bytes));
    let left = fs::read_dir(base.path().join("root/layers")).unwrap();
    assert!(!left.flatten().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"tmp-")));
    assert_eq!(store.verify("example.org/none:1").await.unwrap_err().code(), "image.not_present");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_an_unpacked_layer_is_found() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 7] = [
        ("\"d/f\" has other content", |layer| {
            let file = layer.join("d/f");
            let time = fs::metadata(&file).unwrap().modified().unwrap();
            fs::write(&file, "Content").unwrap();
            File::options().append(true).open(&file).unwrap().set_modified(time).unwrap();
        }),
        ("\"d/f\" has another size", |layer| {
            let file = layer.join("d/f");
            let time = fs::metadata(&file).unwrap().modified().unwrap();
            fs::write(&file, "content and more").unwrap();
            File::options().append(true).open(&file).unwrap().set_modified(time).unwrap();
        }),
        ("\"d/f\" has another mode", |layer| {
            fs::set_permissions(layer.join("d/f"), fs::Permissions::from_mode(0o4777)).unwrap();
        }),
        ("\"d/f\" has another owner", |layer| std::os::unix::fs::chown(layer.join("d/f"), Some(5), None).unwrap()),
        ("\"d/f\" is missing", |layer| fs::remove_file(layer.join("d/f")).unwrap()),
        ("\"d/new\" does not belong", |layer| fs::write(layer.join("d/new"), "").unwrap()),
        ("\"d/f\" has other extended attributes", |layer| {
            let file = File::open(layer.join("d/f")).unwrap();
            rustix::fs::fsetxattr(file, c"user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        }),
    ];
    for (expected, change) in changes {
        let base = tempfile::tempdir().unwrap();
        let Some((store, image)) = loaded(base.path()).await else { return };
        change(&image.layers[0]);
        let found = damage(&store).await;
        assert!(found.len() == 1 && found[0].starts_with("layer sha256:"), "{expected}: {found:?}");
        assert!(found[0].contains(expected), "{expected}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_missing_blobs_are_named() {
    let base = tempfile::tempdir().unwrap();
    let Some((store, image)) = loaded(base.path()).await else { return };
    let parts = Parts::read(&store.0.paths, &image.digest).unwrap().unwrap();
    let blob = |n: usize| store.0.paths.blob(parts.manifest.layers[n].hex());
    let mut bytes = fs::read(blob(1)).unwrap();
    bytes[600] ^= 1;
    fs::write(blob(1), bytes).unwrap();
    fs::remove_file(blob(2)).unwrap();
    let found = damage(&store).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with(&format!("layer {}: ", parts.manifest.layers[1].digest)), "{found:?}");
    assert!(found[1].ends_with("its blob is missing"), "{found:?}");
    fs::write(store.0.paths.blob(parts.manifest.config.hex()), "{}").unwrap();
    let found = damage(&store).await;
    assert_eq!(found, [format!("config {}: missing, or not what its digest says", image.id)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_tells_of_each_layer_the_newest_first() {
    let base = tempfile::tempdir().unwrap();
    let Some((store, image)) = loaded(base.path()).await else { return };
    let steps = store.history("example.org/a:1").await.unwrap();
    let told: Vec<_> = steps.iter().map(|step| (step.created_by.as_deref(), step.layer.is_some())).collect();
    // The configuration tells of two layers; the third is there all the same.
    assert_eq!(told, [(None, true), (Some("COPY b"), true), (Some("ENV x"), false), (Some("COPY a"), true)]);
    assert_eq!(steps[1].comment.as_deref(), Some("why"));
    let layers: u64 = steps.iter().map(|step| step.size_bytes).sum();
    assert!(layers > 0 && layers < image.size_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_loads_as_the_same_image_and_equal_images_make_equal_archives() {
    let base = tempfile::tempdir().unwrap();
    let Some((store, image)) = loaded(base.path()).await else { return };
    store.tag("example.org/a:1", "example.org/b:2").await.unwrap();
    let saved = |name: &'static str, images: &[&str]| {
        let file = base.path().join(name);
        let images: Vec<String> = images.iter().map(|image| (*image).to_owned()).collect();
        let (store, out) = (store.clone(), File::create(&file).unwrap());
        async move {
            store.save(&images, out).await.unwrap();
            file
        }
    };
    let archive = saved("two.tar", &["example.org/a:1", "example.org/b:2"]).await;
    let again = saved("again.tar", &["example.org/a:1", "example.org/b:2"]).await;
    assert_eq!(fs::read(&archive).unwrap(), fs::read(again).unwrap());
    let other = ImageStore::open(StoreConfig::new(base.path().join("other"))).unwrap();
    let loaded = other.load(&archive).await.unwrap();
    let names: Vec<&str> = loaded.iter().map(|image| image.reference.as_str()).collect();
    assert_eq!(names, ["example.org/a:1", "example.org/b:2"]);
    assert!(loaded.iter().all(|one| one.digest == image.digest && one.id == image.id));
    // Named by its content it has no name.
    let unnamed = saved("unnamed.tar", &["sha256", &image.digest][1..]).await;
    let third = ImageStore::open(StoreConfig::new(base.path().join("third"))).unwrap();
    assert_eq!(third.load(&unnamed).await.unwrap()[0].reference, format!("<none>@{}", image.digest));
    let error = store.save(&["example.org/none:1".to_owned()], std::io::sink()).await.unwrap_err();
    assert_eq!(error.code(), "image.not_present");
    // What is damaged does not go out as if it were whole.
    let parts = Parts::read(&store.0.paths, &image.digest).unwrap().unwrap();
    let blob = store.0.paths.blob(parts.manifest.layers[0].hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = store.save(&["example.org/a:1".to_owned()], std::io::sink()).await.unwrap_err();
    assert_eq!(error.code(), "image.digest_mismatch");
}
