//! `index.json`: which references there are. Read whole, changed under a lock, replaced by rename once it is on the disk.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::locks::lock_file;
use crate::manifest::{Manifest, OCI_INDEX};
use crate::reference::{Reference, is_sha256};
use crate::reserve;
use crate::store::{BESIDE, Paths, write_durably};

/// Where a layout keeps the reference.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CHOSEN_FROM: &str = "dev.berth.image.index";
/// What the reference of an image begins with that has no name; its digest follows.
pub(crate) const NAMELESS: &str = "<none>@";
/// Fewest hex digits that name an image.
const MIN_PREFIX: usize = 4;
/// What the layout's specification wants in `oci-layout`.
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    schema_version: u32,
    #[serde(default = "oci_index")]
    media_type: String,
    manifests: Vec<Entry>,
}

fn oci_index() -> String {
    OCI_INDEX.to_owned()
}

/// One reference and the manifest it stands for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    media_type: String,
    pub(crate) digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// Digest of the config: the image's id, so that it is found without reading each manifest.
    #[serde(default, rename = "dev.berth.id")]
    pub(crate) id: String,
}

impl Entry {
    pub(crate) fn new(reference: &str, digest: &str, size: u64, manifest: &Manifest, index: Option<&str>) -> Self {
        let mut annotations = BTreeMap::from([(REF_NAME.to_owned(), reference.to_owned())]);
        annotations.extend(index.map(|digest| (CHOSEN_FROM.to_owned(), digest.to_owned())));
        Self {
            media_type: manifest.media_type.clone(),
            digest: digest.to_owned(),
            size,
            annotations,
            id: manifest.config.digest.clone(),
        }
    }

    /// The full reference.
    pub(crate) fn reference(&self) -> &str {
        self.annotations.get(REF_NAME).map_or("", String::as_str)
    }

    /// Whether it was loaded without a name.
    fn is_nameless(&self) -> bool {
        self.reference().starts_with(NAMELESS)
    }

    /// The repository that it is called by, if it has a name.
    pub(crate) fn repository(&self) -> Option<String> {
        let name = Reference::parse(self.reference()).ok()?;
        Some(format!("{}/{}", name.registry(), name.repository()))
    }

    pub(crate) fn set_reference(&mut self, reference: &str) {
        self.annotations.insert(REF_NAME.to_owned(), reference.to_owned());
    }

    /// The digest of the index that the manifest was chosen from.
    pub(crate) fn chosen_from(&self) -> Option<&str> {
        self.annotations.get(CHOSEN_FROM).map(String::as_str)
    }

    /// Whether `digest` names it: its manifest, or the index it came from.
    fn has_digest(&self, digest: &str) -> bool {
        self.digest == digest || self.chosen_from() == Some(digest)
    }
}

impl Index {
    /// Writes `oci-layout` and an empty index where there is none.
    pub(crate) fn create_if_missing(paths: &Paths) -> Result<()> {
        let layout = paths.images.join("oci-layout");
        if layout.exists() && paths.index.exists() {
            return Ok(());
        }
        Self::update(paths, |_| if layout.exists() { Ok(()) } else { write_durably(&layout, LAYOUT) })
    }

    /// Removes what writers that were killed have left beside it; blocking.
    pub(crate) fn remove_left_over(paths: &Paths) -> Result<()> {
        let _nobody_writes = lock_file(&paths.locks.join("index"), FlockOperation::LockExclusive)?;
        let entries = std::fs::read_dir(&paths.images).map_err(|e| Error::io("listing", &paths.images, e))?;
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_name().to_string_lossy().contains(BESIDE) {
                std::fs::remove_file(entry.path()).map_err(|e| Error::io("removing", entry.path(), e))?;
            }
        }
        Ok(())
    }

    /// What there is now; blocking.
    pub(crate) fn read(paths: &Paths) -> Result<Self> {
        let text = match std::fs::read(&paths.index) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::empty()),
            Err(error) => return Err(Error::io("reading", &paths.index, error)),
        };
        let damaged = |reason: String| Error::Damaged { path: paths.index.clone(), reason };
        let index: Self = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        match index.manifests.iter().find(|entry| !is_sha256(&entry.digest)) {
            Some(entry) => Err(damaged(format!("{:.100?} is no sha256 digest", entry.digest))),
            None => Ok(index),
        }
    }

    /// Changes it; if `change` fails it stays as it is. Blocking.
    pub(crate) fn update<T>(paths: &Paths, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        Self::change(paths, change, |text| write_durably(&paths.index, text))
    }

    /// The same for a change that takes entries away, or puts back what one took: it succeeds also on a full disk.
    pub(crate) fn shrink<T>(paths: &Paths, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        Self::change(paths, change, |text| reserve::with(paths, || write_durably(&paths.index, text)))
    }

    fn change<T>(
        paths: &Paths,
        change: impl FnOnce(&mut Self) -> Result<T>,
        write: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<T> {
        let _lock = lock_file(&paths.locks.join("index"), FlockOperation::LockExclusive)?;
        let mut index = Self::read(paths)?;
        let result = change(&mut index)?;
        let text = serde_json::to_vec_pretty(&index)
            .map_err(|e| Error::Damaged { path: paths.index.clone(), reason: e.to_string() })?;
        write(&text)?;
        Ok(result)
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.manifests
    }

    /// Puts an entry in, in place of the one of that reference. One without a name is there for content that has none.
    pub(crate) fn put(&mut self, entry: Entry) {
        let is_same = |other: &Entry| other.digest == entry.digest;
        if entry.is_nameless() && self.manifests.iter().any(|other| is_same(other) && !other.is_nameless()) {
            return;
        }
        self.manifests
            .retain(|other| other.reference() != entry.reference() && !(is_same(other) && other.is_nameless()));
        self.manifests.push(entry);
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) {
        self.manifests.retain(keep);
    }

    /// The entry of a full reference.
    pub(crate) fn of_reference(&self, reference: &Reference) -> Option<&Entry> {
        let text = reference.to_string();
        if let Some(entry) = self.manifests.iter().find(|entry| entry.reference() == text) {
            return Some(entry);
        }
        // name@digest is also what was pulled by tag, as long as it is that content.
        let digest = reference.digest()?;
        self.manifests.iter().find(|entry| {
            entry.has_digest(digest)
                && Reference::parse(entry.reference()).is_ok_and(|known| {
                    (known.registry(), known.repository()) == (reference.registry(), reference.repository())
                })
        })
    }

    /// The entry that `name` means: a digest, a reference, or leading hex digits.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&Entry>> {
        if is_sha256(name) {
            return Ok(self.manifests.iter().find(|entry| entry.has_digest(name) || entry.id == name));
        }
        let reference = Reference::parse(name);
        if let Some(entry) = reference.as_ref().ok().and_then(|reference| self.of_reference(reference)) {
            return Ok(Some(entry));
        }
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = digits.len() >= MIN_PREFIX
            && digits.len() <= 64
            && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex {
            return reference.map(|_| None);
        }
        let meant = |entry: &Entry| [&entry.digest, &entry.id].into_iter().find(|it| begins(it, digits)).cloned();
        // One configuration may have several manifests: its layers are compressed in another way.
        let matches: BTreeSet<String> = self.manifests.iter().filter_map(meant).collect();
        if matches.len() > 1 {
            return Err(Error::Ambiguous { prefix: name.to_owned(), matches: matches.into_iter().collect() });
        }
        Ok(self.manifests.iter().find(|entry| meant(entry).is_some()))
    }

    fn empty() -> Self {
        Self { schema_version: 2, media_type: oci_index(), manifests: Vec::new() }
    }
}

/// Whether `name` is the ID of an image, or its beginning: then all manifests that have it are meant.
pub(crate) fn names_id(name: &str, entry: &Entry) -> bool {
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    begins(&entry.id, digits) && !begins(&entry.digest, digits)
}

fn begins(digest: &str, digits: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| hex.starts_with(digits))
}

/// Whether `name` names content rather than a reference: then all its references are meant.
pub(crate) fn names_content(name: &str, entry: &Entry) -> bool {
    Reference::parse(name).map_or(true, |reference| reference.to_string() != entry.reference())
}
