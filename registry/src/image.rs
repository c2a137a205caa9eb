//! Images as the store has them.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use runtime_core::ImageDetails;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::healthcheck::Healthcheck;
use crate::index::{Entry, Index};
use crate::limits::Limits;
use crate::manifest::{Config, Document, Manifest, parse_config};
use crate::place::{About, LayerId, Place, below};
use crate::store::Paths;

/// A local image, ready to be mounted.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its full reference.
    pub reference: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Digest of its config: its id.
    pub id: String,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// What of that OCI does not know: how it wants to be checked.
    pub healthcheck: Option<Healthcheck>,
    /// Overlay lower directories, bottom first. Empty for an image without layers.
    pub layers: Vec<PathBuf>,
    /// Bytes of its compressed layers and config.
    pub size_bytes: u64,
    /// The registry was asked for it just now: it was not simply found here.
    pub from_registry: bool,
}

impl From<Image> for ImageDetails {
    fn from(image: Image) -> Self {
        let Image { reference, digest, id, config, layers, size_bytes, healthcheck: _, from_registry: _ } = image;
        Self { reference, digest, id, size_bytes, layers, config: json!(config) }
    }
}

/// A line of the list of images.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StoredImage {
    /// Full reference.
    pub reference: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Digest of its config: its id.
    pub id: String,
    /// Bytes of its compressed layers and config.
    pub size_bytes: u64,
    /// Bytes of those that no other image has.
    pub unique_bytes: u64,
    /// Bytes of those that other images have too.
    pub shared_bytes: u64,
    /// When it was built, as its config says (RFC 3339).
    pub created: Option<String>,
}

/// Manifest and config of a local image, verified.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfiguration,
    pub(crate) healthcheck: Option<Healthcheck>,
    pub(crate) ids: Vec<LayerId>,
}

impl Parts {
    /// Reads them from the blobs; `None` if one is missing or damaged. Blocking.
    pub(crate) fn read(paths: &Paths, digest: &str) -> Result<Option<Self>> {
        // What was accepted when it was pulled is accepted now, whatever the limits are today.
        let limits = Limits { layers: usize::MAX, blob_bytes: u64::MAX, config_bytes: u64::MAX, ..Limits::default() };
        let Some(bytes) = read_blob(paths, digest)? else { return Ok(None) };
        let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, None, digest, &limits) else {
            return Ok(None);
        };
        let Some(bytes) = read_blob(paths, &manifest.config.digest)? else { return Ok(None) };
        Ok(parse_config(&bytes, &manifest).ok().map(|config| Self::new(manifest, config)))
    }

    pub(crate) fn new(manifest: Manifest, config: Config) -> Self {
        let Config { image: config, healthcheck } = config;
        let ids = Place::of_layers(config.rootfs().diff_ids());
        Self { manifest, config, healthcheck, ids }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.manifest.layers.iter().fold(self.manifest.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// Where the layer stands for an image whose lower layers are `settled`; blocking.
pub(crate) fn standing(paths: &Paths, id: &LayerId, settled: &[(Place, About)]) -> Result<Option<(Place, About)>> {
    if let Some(about) = id.chain.about(paths)? {
        return Ok(Some((id.chain.clone(), about)));
    }
    match id.diff.about(paths)? {
        Some(about) if !about.has_whiteouts() || about.fits(&below(paths, settled)?)? => {
            Ok(Some((id.diff.clone(), about)))
        }
        _ => Ok(None),
    }
}

/// All layers, if all stand; blocking.
pub(crate) fn all_standing(paths: &Paths, ids: &[LayerId]) -> Result<Option<Vec<(Place, About)>>> {
    let mut settled = Vec::with_capacity(ids.len());
    for id in ids {
        match standing(paths, id, &settled)? {
            Some(layer) => settled.push(layer),
            None => return Ok(None),
        }
    }
    Ok(Some(settled))
}

/// A small blob's bytes if it is there and is what its name says; blocking.
pub(crate) fn read_blob(paths: &Paths, digest: &str) -> Result<Option<Vec<u8>>> {
    let path = paths.blob(digest.strip_prefix("sha256:").unwrap_or(digest));
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("reading", path, error)),
    };
    Ok((digest_of(&bytes) == digest).then_some(bytes))
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// All references, sorted; blocking.
pub(crate) fn list(paths: &Paths) -> Result<Vec<StoredImage>> {
    let index = Index::read(paths)?;
    let mut parts: HashMap<&str, Option<Parts>> = HashMap::new();
    for entry in index.entries() {
        if !parts.contains_key(entry.digest.as_str()) {
            parts.insert(&entry.digest, Parts::read(paths, &entry.digest)?);
        }
    }
    // In how many images (not references) each blob is.
    let mut users: HashMap<&str, usize> = HashMap::new();
    for parts in parts.values().flatten() {
        let mut digests: Vec<&str> = blobs(&parts.manifest).map(|(digest, _)| digest).collect();
        digests.sort_unstable();
        digests.dedup();
        for digest in digests {
            *users.entry(digest).or_default() += 1;
        }
    }
    let line = |entry: &Entry| {
        let parts = parts.get(entry.digest.as_str()).and_then(Option::as_ref);
        let size_bytes = parts.map_or(0, Parts::size_bytes);
        let unique_bytes = parts.map_or(0, |parts| {
            let mine = |digest: &str| users.get(digest).is_none_or(|count| *count == 1);
            blobs(&parts.manifest)
                .filter(|(digest, _)| mine(digest))
                .fold(0, |sum: u64, (_, size)| sum.saturating_add(size))
        });
        StoredImage {
            reference: entry.reference().to_owned(),
            digest: entry.digest.clone(),
            id: entry.id.clone(),
            size_bytes,
            unique_bytes,
            shared_bytes: size_bytes.saturating_sub(unique_bytes),
            created: parts.and_then(|parts| parts.config.created().clone()),
        }
    };
    let mut images: Vec<StoredImage> = index.entries().iter().map(line).collect();
    images.sort_by(|a, b| a.reference.cmp(&b.reference));
    Ok(images)
}

fn blobs(manifest: &Manifest) -> impl Iterator<Item = (&str, u64)> {
    manifest.layers.iter().chain([&manifest.config]).map(|blob| (blob.digest.as_str(), blob.size))
}
