//! Manifests, indexes and configurations: parsed with limits, checked for agreement.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::healthcheck::Healthcheck;
use crate::layer::Compression;
use crate::limits::Limits;
use crate::platform::Platform;
use crate::reference::is_sha256;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A blob, by digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<DescriptorPlatform>,
}

impl Descriptor {
    /// The hex of the digest, checked when the document was parsed.
    pub(crate) fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct DescriptorPlatform {
    architecture: String,
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

/// One image: configuration and layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) media_type: String,
}

/// What a manifest request answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Parses what `what` names. `content_type` counts only where the document does not say its type itself.
    pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>, what: &str, limits: &Limits) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidManifest { what: what.to_owned(), reason };
        let raw: Raw = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
        if raw.schema_version != 2 {
            return Err(invalid(format!("schema version {} is not supported, only 2", raw.schema_version)));
        }
        let media_type = raw.media_type.filter(|t| !t.is_empty());
        let media_type =
            media_type.as_deref().or(content_type.filter(|t| t.contains("manifest") || t.contains("index")));
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) if matches!(media_type, None | Some(OCI_MANIFEST | DOCKER_MANIFEST)) => {
                if layers.len() > limits.layers {
                    return Err(Error::TooLarge {
                        what: format!("the number of layers of {what}"),
                        limit: limits.layers as u64,
                        unit: "layers",
                    });
                }
                for descriptor in layers.iter().chain([&config]) {
                    check(descriptor).map_err(invalid)?;
                }
                if config.size > limits.config_bytes {
                    let (limit, what) = (limits.config_bytes, format!("the configuration of {what}"));
                    return Err(Error::TooLarge { what, limit, unit: "bytes" });
                }
                for layer in &layers {
                    if layer.size > limits.blob_bytes {
                        return Err(Error::TooLarge {
                            what: format!("layer {}", layer.digest),
                            limit: limits.blob_bytes,
                            unit: "bytes",
                        });
                    }
                    Compression::of_media_type(&layer.media_type).map_err(invalid)?;
                }
                let media_type = media_type.unwrap_or(OCI_MANIFEST).to_owned();
                Ok(Self::Manifest(Manifest { config, layers, media_type }))
            }
            (None, None, Some(manifests)) if matches!(media_type, None | Some(OCI_INDEX | DOCKER_INDEX)) => {
                for descriptor in &manifests {
                    check(descriptor).map_err(invalid)?;
                }
                Ok(Self::Index(manifests))
            }
            _ => Err(invalid(match media_type {
                Some(other) => {
                    format!("{other:.100} is neither an image manifest nor an index, or its parts do not fit")
                }
                None => "it has neither config and layers nor manifests".to_owned(),
            })),
        }
    }
}

fn check(descriptor: &Descriptor) -> std::result::Result<(), String> {
    if is_sha256(&descriptor.digest) {
        Ok(())
    } else {
        Err(format!("{:.100?} is not a sha256 digest", descriptor.digest))
    }
}

/// The entry of an index for `wanted`. Attestations and entries that are no images are passed over.
pub(crate) fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform, reference: &str) -> Result<&'a Descriptor> {
    let image = |d: &&Descriptor| {
        matches!(d.media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_INDEX)
    };
    let platform = |d: &Descriptor| {
        d.platform.as_ref().map(|p| Platform {
            os: p.os.clone(),
            architecture: p.architecture.clone(),
            variant: p.variant.clone().filter(|v| !v.is_empty()),
        })
    };
    let mut best: Option<(u32, &Descriptor)> = None;
    for descriptor in manifests.iter().filter(image) {
        // An entry without a platform, as tools for one platform write them, is taken if nothing fits better.
        let rank = match platform(descriptor) {
            Some(offered) => wanted.rank(&offered),
            None => Some(1),
        };
        if let Some(rank) = rank.filter(|rank| best.is_none_or(|(best, _)| *rank > best)) {
            best = Some((rank, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor).ok_or_else(|| Error::NoPlatform {
        reference: reference.to_owned(),
        platform: wanted.to_string(),
        available: manifests.iter().take(50).filter_map(platform).map(|p| p.to_string()).collect(),
    })
}

/// A configuration: OCI's part, and docker's.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) image: ImageConfiguration,
    pub(crate) healthcheck: Option<Healthcheck>,
}

/// Parses a configuration, and checks that it and the manifest speak of the same layers.
pub(crate) fn parse_config(bytes: &[u8], manifest: &Manifest) -> Result<Config> {
    let invalid = |reason: String| Error::InvalidManifest { what: manifest.config.digest.clone(), reason };
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers.len() {
        let (config, manifest) = (diff_ids.len(), manifest.layers.len());
        return Err(invalid(format!("the configuration names {config} layers, the manifest {manifest}")));
    }
    if let Some(bad) = diff_ids.iter().find(|id| !is_sha256(id)) {
        return Err(invalid(format!("{bad:.100?} is not a sha256 diff ID")));
    }
    Ok(Config { image: config, healthcheck: Healthcheck::parse(bytes) })
}

/// What a configuration says it runs on.
pub(crate) fn config_platform(config: &ImageConfiguration) -> Platform {
    Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone().filter(|v| !v.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn parse(text: &str) -> Result<Document> {
        Document::parse(text.as_bytes(), None, "x", &Limits { layers: 3, ..Limits::default() })
    }

    fn manifest(media_type: &str, layer: &str, count: usize) -> String {
        let layer = format!(r#"{{"mediaType":"{layer}","digest":"{D}","size":5}}"#);
        let layers = vec![layer; count].join(",");
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"digest":"{D}","size":1}},"layers":[{layers}]}}"#
        )
    }

    #[test]
    fn manifests_of_both_worlds_are_read() {
        for (media_type, layer) in [
            (OCI_MANIFEST, "application/vnd.oci.image.layer.v1.tar+gzip"),
            (OCI_MANIFEST, "application/vnd.oci.image.layer.v1.tar+zstd"),
            (OCI_MANIFEST, "application/vnd.oci.image.layer.v1.tar"),
            (DOCKER_MANIFEST, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
            ("", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        ] {
            assert!(matches!(parse(&manifest(media_type, layer, 2)), Ok(Document::Manifest(m)) if m.layers.len() == 2));
        }
    }

    #[test]
    fn hostile_documents_are_typed_errors() {
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let good = manifest(OCI_MANIFEST, gzip, 1);
        for (text, code) in [
            (manifest(OCI_MANIFEST, gzip, 4), "image.too_large"),
            (manifest(OCI_MANIFEST, "application/octet-stream", 1), "image.invalid_manifest"),
            (manifest("application/vnd.docker.distribution.manifest.v1+json", gzip, 1), "image.invalid_manifest"),
            (good.replace(D, "sha256:../../etc/passwd"), "image.invalid_manifest"),
            (good.replace(D, "md5:00"), "image.invalid_manifest"),
            (good.replace("\"size\":5", "\"size\":-5"), "image.invalid_manifest"),
            (good.replace("\"size\":5", "\"size\":18446744073709551615"), "image.too_large"),
            (good.replace("\"size\":1}", "\"size\":18446744073709551615}"), "image.too_large"),
            (good.replace(":2,", ":1,"), "image.invalid_manifest"),
            (format!("{}[", "[".repeat(100_000)), "image.invalid_manifest"),
            ("{}".into(), "image.invalid_manifest"),
            (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.into(), "image.invalid_manifest"),
        ] {
            assert_eq!(parse(&text).expect_err(&text).code(), code, "{text:.200}");
        }
    }

    #[test]
    fn the_index_entry_of_the_platform_is_chosen() {
        let entry = |arch: &str, n: u32| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":{n},"platform":{{"architecture":"{arch}","os":"linux"}}}}"#
            )
        };
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{},{}]}}"#,
            entry("unknown", 1),
            entry("arm64", 2),
            entry("amd64", 3)
        );
        let Ok(Document::Index(manifests)) = parse(&text) else { panic!("no index") };
        let choose = |p: &str| choose(&manifests, &Platform::parse(p).unwrap(), "r").map(|d| d.size);
        assert_eq!(choose("linux/amd64").unwrap(), 3);
        assert_eq!(choose("linux/arm64/v8").unwrap(), 2);
        assert_eq!(choose("linux/s390x").unwrap_err().code(), "image.no_platform");
    }

    #[test]
    fn configuration_and_manifest_must_agree() {
        let Ok(Document::Manifest(m)) = parse(&manifest(OCI_MANIFEST, "application/vnd.oci.image.layer.v1.tar", 2))
        else {
            panic!("no manifest")
        };
        let config = |ids: &str| {
            format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#)
        };
        let two = format!("\"{D}\",\"{D}\"");
        assert!(parse_config(config(&two).as_bytes(), &m).is_ok());
        for ids in [format!("\"{D}\""), format!("\"{D}\",\"sha256:x/../y\"")] {
            assert_eq!(parse_config(config(&ids).as_bytes(), &m).unwrap_err().code(), "image.invalid_manifest");
        }
    }
}
