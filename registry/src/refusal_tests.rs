//! What a registry, a file or a caller does wrong, each told by its code, and nothing half-made left.

use std::path::Path;
use std::sync::Arc;

use super::{Manners, Root, gzip, serve};
use crate::image::digest_of;
use crate::layer::tar::tests::{header, with_data};
use crate::{Error, ImageStore, PullOptions, StoreConfig};

/// Pulls from a registry of such manners into a store whose patience is one second.
async fn refused(root: &Root, manners: Manners) -> (String, Error) {
    let registry = serve(manners).await;
    let mut config = StoreConfig::new(root.0.path().into());
    config.limits.no_progress_seconds = 1;
    let store = ImageStore::open(config).unwrap();
    let pulled = store.pull(&format!("{}/x", registry.address), PullOptions::default()).await;
    assert!(store.list().await.unwrap().is_empty());
    (registry.address, pulled.unwrap_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_falls_silent_is_given_up() {
    let Some(root) = Root::new() else { return };
    // At once; and in the middle of a layer, the only answer that is so long.
    for silent_after in [0, 20_000] {
        let (address, error) = refused(&root, Manners { silent_after: Some(silent_after), ..Manners::default() }).await;
        assert_eq!(error.code(), "registry.no_progress", "{error}");
        assert!(error.to_string().contains(&address) && error.to_string().ends_with("for 1 s"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_to_another_machine_is_refused_before_it_is_tried() {
    let Some(root) = Root::new() else { return };
    // An address for documentation: nobody is there.
    let manners = Manners { redirect_to: Some("192.0.2.1:1".into()), ..Manners::default() };
    let (_, error) = refused(&root, manners).await;
    assert_eq!(error.code(), "registry.plain_http", "{error}");
    assert!(error.to_string().contains("http://192.0.2.1:1/"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_protocol_has_not_is_quoted() {
    let Some(root) = Root::new() else { return };
    let manners = Manners { status: Some("418 I'm a teapot"), ..Manners::default() };
    let (address, error) = refused(&root, manners).await;
    assert_eq!(error.code(), "registry.unexpected_answer", "{error}");
    assert!(error.to_string().contains(&address) && error.to_string().contains("418"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_size_than_announced_is_refused() {
    let Some(root) = Root::new() else { return };
    let (address, error) = refused(&root, Manners { too_long: true, ..Manners::default() }).await;
    assert_eq!(error.code(), "image.size_mismatch", "{error}");
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_no_archive_is_refused() {
    let Some(root) = Root::new() else { return };
    let (address, error) = refused(&root, Manners { no_archive: true, ..Manners::default() }).await;
    assert_eq!(error.code(), "image.invalid_layer", "{error}");
    assert!(error.to_string().contains(&address) && error.to_string().contains("sha256:"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_grows_beyond_all_measure_is_refused() {
    let Some(root) = Root::new() else { return };
    let (address, error) = refused(&root, Manners { zeros: true, ..Manners::default() }).await;
    assert_eq!(error.code(), "image.too_large", "{error}");
    assert!(error.to_string().contains("1100 to 1") && error.to_string().contains(&address), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_named_and_a_missing_archive_too() {
    let Some(root) = Root::new() else { return };
    let store = root.store();
    let error = store.load(Path::new("/no/such/archive.tar")).await.unwrap_err();
    assert_eq!(error.code(), "store.io", "{error}");
    assert!(error.to_string().contains("/no/such/archive.tar"), "{error}");
    let index = root.0.path().join("images/index.json");
    std::fs::write(&index, "{").unwrap();
    let error = store.list().await.unwrap_err();
    assert_eq!(error.code(), "store.damaged", "{error}");
    assert!(error.to_string().contains(index.to_str().unwrap()), "{error}");
}

/// A `docker save` archive of an image of one file, named `name`.
fn archive(name: &str, config: &str, layer: &[u8]) -> Vec<u8> {
    let manifest = format!(r#"[{{"Config":"c.json","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
    let file = |name: &[u8], data: &[u8]| with_data(header(name, b'0', data.len() as u64, |_| {}), data);
    [
        file(b"layer.tar", layer),
        file(b"c.json", config.as_bytes()),
        file(b"manifest.json", manifest.as_bytes()),
        vec![0; 1024],
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn digits_that_begin_two_images_are_ambiguous() {
    let Some(root) = Root::new() else { return };
    let store = root.store();
    let layer = with_data(header(b"f", b'0', 1, |_| {}), b"f");
    let diff_id = digest_of(&layer);
    let architecture = crate::platform::Platform::host().architecture;
    let config = |number: u32| {
        format!(
            r#"{{"author":"{number}","architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        )
    };
    // The id of an image is its configuration's digest: some hundred make two that begin alike.
    let mut seen = std::collections::HashMap::new();
    let (digits, one, two) = (0..)
        .find_map(|number| {
            let digits = digest_of(config(number).as_bytes())["sha256:".len()..][..4].to_owned();
            let other = seen.insert(digits.clone(), number)?;
            Some((digits, config(other), config(number)))
        })
        .unwrap();
    for (name, config) in [("example.org/one:1", one), ("example.org/two:1", two)] {
        let file = root.0.path().join("archive.tar");
        std::fs::write(&file, archive(name, &config, &layer)).unwrap();
        store.load(&file).await.unwrap();
    }
    let error = store.find(&digits).await.unwrap_err();
    assert_eq!(error.code(), "image.ambiguous", "{error}");
    for image in store.list().await.unwrap() {
        assert!(error.to_string().contains(&image.id), "{error}");
        assert_eq!(store.find(&image.digest).await.unwrap().unwrap().digest, image.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_means_its_image_however_that_is_compressed() {
    let Some(root) = Root::new() else { return };
    let store = root.store();
    let layer = with_data(header(b"f", b'0', 1, |_| {}), b"f");
    let (diff_id, architecture) = (digest_of(&layer), crate::platform::Platform::host().architecture);
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    for (name, layer) in [("example.org/plain:1", layer.clone()), ("example.org/packed:1", gzip(&layer))] {
        let file = root.0.path().join("archive.tar");
        std::fs::write(&file, archive(name, &config, &layer)).unwrap();
        store.load(&file).await.unwrap();
    }
    let images = store.list().await.unwrap();
    assert!(images.len() == 2 && images[0].digest != images[1].digest && images[0].id == images[1].id, "{images:?}");
    let id = images[0].id["sha256:".len()..].to_owned();
    for name in [&id[..12], &id] {
        assert_eq!(store.find(name).await.unwrap().unwrap().id, images[0].id);
    }
    let packed = images.iter().find(|image| image.reference.contains("packed")).unwrap();
    let gone = store.remove(&packed.digest["sha256:".len()..][..12], false, Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert_eq!(gone.deleted[0], packed.reference);
    assert_eq!(store.list().await.unwrap().len(), 1, "a digest means one of them");
    let file = root.0.path().join("archive.tar");
    store.load(&file).await.unwrap();
    // Of two repositories, as docker.
    let refused = store.remove(&id[..12], false, Arc::new(|| Ok(Vec::new()))).await.unwrap_err();
    assert!(refused.code() == "image.several_names" && refused.to_string().contains("packed"), "{refused}");
    assert_eq!(store.list().await.unwrap().len(), 2);
    store.remove(&id[..12], true, Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_panics_is_told_and_removes_nothing() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let store = root.store();
    let image = store.pull(&format!("{}/x", registry.address), PullOptions::default()).await.unwrap();
    let error = store.remove(&image.reference, false, Arc::new(|| panic!("of a caller"))).await.unwrap_err();
    assert_eq!(error.code(), "internal", "{error}");
    assert_eq!(store.list().await.unwrap().len(), 1);
}
