//! The images that the suite's registry has.

use sha2::{Digest, Sha256};

use super::MANIFEST_TYPE;
use crate::conformance::tar::{Member, archive};
use crate::spec::CommandSpec;
use crate::{PullPolicy, ServiceSpec};

/// Bytes in the one file of an image, enough for a transfer to be in the middle of it.
const FILE_BYTES: usize = 200_000;

/// An image. Unless it is made of other layers, it has one with one file: nothing in it can be executed.
pub(in crate::conformance) struct Image {
    /// Of its manifest.
    pub(in crate::conformance) digest: String,
    /// Of its config.
    pub(in crate::conformance) id: String,
    pub(super) architecture: &'static str,
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Vec<u8>>,
}

impl Image {
    /// One that differs from another by `text`.
    pub(in crate::conformance) fn new(text: &str) -> Self {
        Self::with_layer_of(text, text)
    }

    /// One whose layer is that of all that have the same `file`.
    pub(in crate::conformance) fn with_layer_of(file: &str, text: &str) -> Self {
        Self::made(vec![layer_of(file)], text, own_architecture())
    }

    /// One for another architecture, by the name that images have for it.
    pub(in crate::conformance) fn for_architecture(architecture: &'static str, text: &str) -> Self {
        Self::made(vec![layer_of(text)], text, architecture)
    }

    /// One of `layers`, each a tar, bottom first.
    pub(in crate::conformance) fn of_layers(layers: Vec<Vec<u8>>, text: &str) -> Self {
        Self::made(layers, text, own_architecture())
    }

    fn made(layers: Vec<Vec<u8>>, text: &str, architecture: &'static str) -> Self {
        let digests: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
        let made_by = digests.iter().map(|digest| serde_json::json!({"created_by": format!("layer {digest}")}));
        let last = serde_json::json!({"created_by": "no layer", "comment": text, "empty_layer": true});
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/conformance"], "Labels": {"text": text}},
            "rootfs": {"type": "layers", "diff_ids": digests},
            "history": made_by.chain([last]).collect::<Vec<_>>(),
        });
        let config = config.to_string().into_bytes();
        let of_layer = |layer: &Vec<u8>| descriptor("application/vnd.oci.image.layer.v1.tar", layer);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(of_layer).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        Self { digest: digest_of(&manifest), id: digest_of(&config), architecture, manifest, config, layers }
    }

    /// Its entry in an index.
    pub(super) fn descriptor(&self) -> serde_json::Value {
        let mut descriptor = descriptor(MANIFEST_TYPE, &self.manifest);
        descriptor["platform"] = serde_json::json!({"architecture": self.architecture, "os": "linux"});
        descriptor
    }

    /// Of its layers, which are not compressed.
    pub(in crate::conformance) fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.len() as u64).sum()
    }

    /// Digests of its layers, bottom first.
    pub(in crate::conformance) fn layer_digests(&self) -> Vec<String> {
        self.layers.iter().map(|layer| digest_of(layer)).collect()
    }

    /// Of its layers and config.
    pub(in crate::conformance) fn size_bytes(&self) -> u64 {
        self.layer_bytes() + self.config.len() as u64
    }
}

/// A layer of one large file.
fn layer_of(file: &str) -> Vec<u8> {
    archive(&[Member::file("conformance", file.repeat(FILE_BYTES.div_ceil(file.len().max(1))))])
}

/// This machine's, as images name it.
pub(in crate::conformance) fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": digest_of(content), "size": content.len()})
}

/// A spec that makes a container of such an image, which cannot be started, without asking the registry.
pub(in crate::conformance) fn container_of(reference: &str) -> ServiceSpec {
    let mut spec = ServiceSpec::new(reference);
    spec.image.pull_policy = PullPolicy::Never;
    spec.command = CommandSpec { entrypoint: Some(vec!["/conformance".to_owned()]), ..CommandSpec::default() };
    spec
}

pub(super) fn digest_of(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
