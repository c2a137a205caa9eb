//! Compressed layers go, and come again for whoever needs them.

use std::path::PathBuf;

use runtime_core::PullPolicy;

use super::*;
use crate::pull::tests::{Manners, Registry, Root, serve};
use crate::{Image, ImageStore, PullOptions, StoreConfig};

fn opened(root: &Root) -> ImageStore {
    ImageStore::open(StoreConfig { drop_blobs: true, ..StoreConfig::new(root.0.path().into()) }).unwrap()
}

fn reference(registry: &Registry) -> String {
    format!("{}/x", registry.address)
}

fn always() -> PullOptions {
    PullOptions { policy: PullPolicy::Always, ..PullOptions::default() }
}

async fn pulled(store: &ImageStore, registry: &Registry) -> Image {
    let image = store.pull(&reference(registry), always()).await.unwrap();
    settled(store).await;
    image
}

/// Makes good what could not be dropped at once: a process that another test starts has the store's lock, too, until it is
/// executed.
async fn settled(store: &ImageStore) {
    store.sweep_owed(Arc::new(|| Ok(Vec::new()))).await.unwrap();
}

/// The compressed layers of an image that are there, and those that were dropped.
fn layers(store: &ImageStore, digest: &str) -> (usize, usize) {
    let paths = &store.0.paths;
    let blobs = Parts::read(paths, digest).unwrap().expect("manifest and config stay").manifest.layers;
    (
        blobs.iter().filter(|blob| paths.blob(blob.hex()).exists()).count(),
        blobs.iter().filter(|blob| is_dropped(paths, blob)).count(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unpacked_is_dropped_and_the_image_is_as_good_as_before() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let store = opened(&root);
    let image = pulled(&store, &registry).await;
    assert_eq!(layers(&store, &image.digest), (0, 2));
    assert_eq!(fs::read(image.layers[1].join("d/g")).unwrap(), b"g");

    let (all, heads) = (registry.count(""), registry.count("head "));
    assert_eq!(store.pull(&reference(&registry), always()).await.unwrap().layers, image.layers);
    assert_eq!((registry.count(""), registry.count("head ")), (all + 1, heads + 1), "one HEAD and no fetch");
    assert_eq!(store.find(&image.digest).await.unwrap().unwrap().layers, image.layers);

    let verified = store.verify(&image.reference).await.unwrap();
    assert_eq!((verified.damaged.len(), verified.uncompared.len()), (0, 2), "{verified:?}");
    assert!(verified.uncompared[0].starts_with("layer sha256:"), "{verified:?}");

    // A store that keeps blobs knows what another one dropped.
    let keeping = root.store();
    assert_eq!(keeping.verify(&image.reference).await.unwrap(), verified);
    let removed = keeping.remove(&image.reference, false, Arc::new(|| Ok(Vec::new()))).await.unwrap();
    assert!(removed.space_reclaimed > 0);
    assert_eq!(root.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_fetches_them_again_or_says_that_it_cannot() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let store = opened(&root);
    let image = pulled(&store, &registry).await;
    let fetched = registry.count("/blobs/");
    let archive = root.0.path().join("saved.tar");
    let names = [image.reference.clone()];
    let save = |path: &PathBuf| store.save(&names, File::create(path).unwrap());
    save(&archive).await.unwrap();
    assert_eq!(registry.count("/blobs/"), fetched + 2);
    settled(&store).await;
    assert_eq!(layers(&store, &image.digest), (0, 2), "dropped once more");
    let other = Root::new().unwrap();
    assert_eq!(other.store().load(&archive).await.unwrap()[0].digest, image.digest);

    // One that is not what it was is no substitute.
    registry.close().await;
    let error = save(&archive).await.unwrap_err();
    assert!(matches!(&error, Error::Dropped { image: of, .. } if *of == image.digest), "{error}");
    assert_eq!((error.code(), error.hint().is_some()), ("image.layer_dropped", true));
    assert_eq!(layers(&store, &image.digest), (0, 2));
    root.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_is_held_to_its_digest() {
    let Some(root) = Root::new() else { return };
    let (good, lying) = (serve(Manners::default()).await, serve(Manners::lying()).await);
    let store = opened(&root);
    let image = pulled(&store, &good).await;
    store.tag(&image.reference, &format!("{}/x:latest", lying.address)).await.unwrap();
    good.close().await;
    let error = store.save(std::slice::from_ref(&image.digest), std::io::sink()).await.unwrap_err();
    let Error::Dropped { source, .. } = &error else { panic!("{error}") };
    assert!(lying.count("/blobs/") > 0 && !source.to_string().is_empty());
    assert_eq!(layers(&store, &image.digest), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn they_stay_while_somebody_holds_the_store_and_go_with_the_next_sweep() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let store = opened(&root);
    let hold = store.hold().await.unwrap();
    let image = store.pull(&reference(&registry), always()).await.unwrap();
    assert_eq!(layers(&store, &image.digest), (2, 0));
    drop(hold);
    settled(&store).await;
    assert_eq!(layers(&store, &image.digest), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_a_power_cut_made_doubtful_is_fetched_again() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let image = pulled(&opened(&root), &registry).await;
    let fetched = registry.count("/blobs/");
    let place = image.layers[0].file_name().unwrap().to_string_lossy().into_owned();
    let before = root.0.path().join("layers/unsynced/an-earlier-boot");
    fs::create_dir_all(&before).unwrap();
    fs::write(before.join(format!("diff-{place}")), "").unwrap();
    let store = opened(&root);
    assert!(store.find(&image.reference).await.unwrap().is_none(), "its blob is gone");
    let again = store.pull(&reference(&registry), PullOptions::default()).await.unwrap();
    settled(&store).await;
    assert_eq!((again.layers, registry.count("/blobs/")), (image.layers, fetched + 1));
    assert_eq!(layers(&store, &image.digest), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_stands_without_its_blob_has_it_again_after_a_pull() {
    let Some(root) = Root::new() else { return };
    let registry = serve(Manners::default()).await;
    let keeping = ImageStore::open(StoreConfig::new(root.0.path().into())).unwrap();
    let image = keeping.pull(&reference(&registry), always()).await.unwrap();
    let lose = || {
        for blob in Parts::read(&keeping.0.paths, &image.digest).unwrap().unwrap().manifest.layers {
            fs::remove_file(keeping.0.paths.blob(blob.hex())).unwrap();
        }
    };
    // Of the image as it is, and of another name of it.
    for forget in [false, true] {
        lose();
        if forget {
            Index::update(&keeping.0.paths, |index| {
                index.retain(|_| false);
                Ok(())
            })
            .unwrap();
        }
        keeping.pull(&reference(&registry), always()).await.unwrap();
        assert_eq!(layers(&keeping, &image.digest), (2, 0));
        assert!(keeping.verify(&image.reference).await.unwrap().damaged.is_empty());
    }
    // Where none are kept they count as dropped.
    lose();
    pulled(&opened(&root), &registry).await;
    assert_eq!(layers(&keeping, &image.digest), (0, 2));
}
