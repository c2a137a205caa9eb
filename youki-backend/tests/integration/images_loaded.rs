//! Loads that come to nothing: what they had put into the store by then goes.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::Case;
use crate::support::berth::command;
use crate::support::case::eventually;
use crate::support::image::{INDEX, Image, LayerBuilder, MANIFEST, descriptor, digest_of};
use crate::support::root::Root;

crate::tests![
    a_load_that_fails_takes_away_what_it_had_put_in,
    what_a_load_that_was_killed_had_put_in_goes_with_the_next,
];

/// An image with a layer that no other has.
fn with_layer(text: &str) -> Image {
    Image::busybox().layer(LayerBuilder::new().file(text, 0o644, text.as_bytes()).finish())
}

/// An OCI layout of these images.
fn layout(case: &Case, word: &str, images: &[(&str, &Image)]) -> PathBuf {
    let dir = case.suite.dir.path().join(format!("layout-{word}"));
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let keep = |content: &[u8]| std::fs::write(blobs.join(&digest_of(content)["sha256:".len()..]), content).unwrap();
    let mut manifests = Vec::new();
    for (name, image) in images {
        let (config, manifest) = image.documents();
        image.layers.iter().for_each(|layer| keep(&layer.gzip));
        keep(&config);
        keep(&manifest);
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        manifests.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    dir
}

/// Blobs and unpacked layers.
fn content(root: &Root) -> BTreeSet<PathBuf> {
    let dirs = ["images/blobs/sha256", "layers/diff", "layers/chain"].map(|dir| root.dir.join(dir));
    dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

/// A root with an image that stays.
async fn with_an_image(case: &Case) -> (Root, BTreeSet<PathBuf>) {
    let root = case.root("root");
    case.berth_on(&root, &["pull", "-q", case.suite.busybox().await]).await.succeeded();
    let before = content(&root);
    assert!(!before.is_empty());
    (root, before)
}

async fn a_load_that_fails_takes_away_what_it_had_put_in(case: Case) {
    let (root, before) = with_an_image(&case).await;
    let mut broken = with_layer("broken");
    broken.layers.last_mut().unwrap().diff_id = digest_of(b"something else");
    let dir =
        layout(&case, "fails", &[("example.org/whole:1", &with_layer("whole")), ("example.org/broken:1", &broken)]);
    let said = case.berth_on(&root, &["--json", "load", "-i", dir.to_str().unwrap()]).await;
    assert_eq!(said.refused(1).0, "image.digest_mismatch");
    assert_eq!(content(&root), before, "the command left them");

    let runtime = youki_backend::YoukiRuntime::open(Root { keeper: false, ..root.clone() }.config()).await.unwrap();
    assert_eq!(runtime.load(&dir).await.unwrap_err().code(), "image.digest_mismatch");
    assert_eq!(content(&root), before, "an agent left them");
    let runtime: &dyn runtime_core::Runtime = &runtime;
    assert_eq!(runtime.load_images(&dir).await.unwrap_err().code(), "image.digest_mismatch");
    assert_eq!(content(&root), before, "the trait left them");
    case.berth_on(&root, &["run", "--rm", "--network", "none", case.suite.busybox().await, "true"]).await.succeeded();
}

/// Whether a process waits for the lock on `file`.
fn is_waited_for(file: &Path) -> bool {
    let inode = format!(":{} ", std::fs::metadata(file).unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("->") && line.contains(&inode))
}

async fn what_a_load_that_was_killed_had_put_in_goes_with_the_next(case: Case) {
    let (root, before) = with_an_image(&case).await;
    let dir = layout(&case, "killed", &[("example.org/killed:1", &with_layer("killed"))]);
    // All is unpacked by the time that it wants to enter the image.
    let path = root.dir.join("layers/locks/index");
    let index = std::fs::File::create(&path).unwrap();
    rustix::fs::flock(&index, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut load = command(&root).arg("load").arg("-i").arg(&dir).kill_on_drop(true).spawn().unwrap();
    eventually("it waits for the index", || async { is_waited_for(&path) }).await;
    load.kill().await.unwrap();
    drop(index);
    let put_in: BTreeSet<_> = content(&root).difference(&before).cloned().collect();
    assert!(!put_in.is_empty(), "it was killed before it had put anything in");

    let other = layout(&case, "next", &[("example.org/next:1", &with_layer("next"))]);
    case.berth_on(&root, &["load", "-q", "-i", other.to_str().unwrap()]).await.succeeded();
    let there = content(&root);
    assert!(there.is_disjoint(&put_in) && there.len() > before.len(), "{there:?} with {put_in:?}");
}
