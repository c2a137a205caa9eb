//! A root that keeps no compressed layers.

use std::fs;

use crate::support::Case;
use crate::support::berth::{Said, berth};
use crate::support::image::{Image, LayerBuilder};
use crate::support::root::Root;
use crate::support::servers::{REGISTRY_PASSWORD, REGISTRY_USER};

crate::tests![what_is_unpacked_is_dropped_runs_and_comes_again_for_a_push_and_a_save];

/// Bytes of a layer that cannot be compressed: what else is in the store is smaller.
const LAYER_BYTES: usize = 3 << 20;

fn blob_bytes(root: &Root) -> u64 {
    let blobs = fs::read_dir(root.dir.join("images/blobs/sha256")).unwrap();
    blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum()
}

async fn what_is_unpacked_is_dropped_runs_and_comes_again_for_a_push_and_a_save(case: Case) {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let content: Vec<u8> = (0..LAYER_BYTES).map(|_| random()).collect();
    let layer = LayerBuilder::new().file("large", 0o644, &content).finish();
    let reference = case.push("dropped", &Image::busybox().layer(layer)).await;
    let root = case.root("dropping");
    let file = case.suite.dir.path().join("drop-blobs.toml");
    let file = file.to_str().unwrap();
    fs::write(file, "[images]\ndrop_blobs = true\n").unwrap();
    let command = |args: &[&str]| {
        let args: Vec<String> = ["--config", file].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let root = root.clone();
        async move { berth(&root, &args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let digest = command(&["pull", "-q", &reference]).await.succeeded();
    assert!(blob_bytes(&root) < 1 << 20, "{} bytes of blobs are kept", blob_bytes(&root));
    let counted = format!("{LAYER_BYTES}\n");
    let run = ["run", "--rm", "--network", "none", &reference, "sh", "-c", "wc -c < /large"];
    assert_eq!(command(&run).await.succeeded(), counted);
    assert_eq!(command(&["pull", "-q", &reference]).await.succeeded(), digest);

    let verified = command(&["image", "verify", &reference]).await.succeeded();
    assert_eq!(verified.matches("cannot be compared").count(), 2, "{verified}");
    let verified = command(&["--json", "image", "verify", &reference]).await.json();
    assert_eq!(
        (&verified[0]["damaged"], verified[0]["uncompared"].as_array().unwrap().len()),
        (&serde_json::json!([]), 2)
    );

    // To where its layers are not yet.
    let target = format!("{}/private/dropped:1", case.suite.registry_auth().await.host);
    let creds = format!("{REGISTRY_USER}:{REGISTRY_PASSWORD}");
    command(&["tag", &reference, &target]).await.succeeded();
    assert_eq!(command(&["push", "--creds", &creds, &target]).await.succeeded(), digest);
    let elsewhere = case.root("elsewhere");
    assert_eq!(berth(&elsewhere, &["pull", "-q", "--creds", &creds, &target]).await.succeeded(), digest);
    let archive = case.suite.dir.path().join("dropped.tar");
    let archive = archive.to_str().unwrap();
    command(&["save", "-o", archive, &reference]).await.succeeded();
    assert!(fs::metadata(archive).unwrap().len() > LAYER_BYTES as u64);
    assert!(blob_bytes(&root) < 1 << 20, "{} bytes of blobs are kept", blob_bytes(&root));

    let said: Said = command(&["rmi", &target, &reference]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(blob_bytes(&root), 0);
    let marks = fs::read_dir(root.dir.join("layers/dropped")).unwrap().count();
    assert_eq!(marks, 0);
}
