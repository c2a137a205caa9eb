//! Where a layer stands once it is unpacked, and what it says of itself.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::layer::below::Below;
use crate::layer::unpack::Unpacked;
use crate::layer::{dir, finalise};
use crate::store::{Paths, TmpDir, remove_tree, write_whole};

/// Bytes of what a layer says of itself: some two million directories with whiteouts.
const MAX_ABOUT_BYTES: u64 = 256 << 20;

/// `diff/<hex>` or `chain/<hex>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    kind: &'static str,
    hex: String,
}

/// The two names of one layer in one image.
#[derive(Debug, Clone)]
pub(crate) struct LayerId {
    pub(crate) diff: Place,
    pub(crate) chain: Place,
}

/// What a layer says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct About {
    /// Whether the archive lists the root directory.
    pub(crate) root_listed: bool,
    /// Whether everything below is hidden.
    pub(crate) root_opaque: bool,
    /// Directories that hold whiteouts, in base64.
    whiteout_parents: Vec<String>,
    entries: u64,
    bytes: u64,
    /// Digest of the blob that it was unpacked from; empty where an older Berth did that.
    #[serde(default)]
    pub(crate) blob: String,
}

impl Place {
    /// The diff and chain places of an image's layers, bottom first. `diff_ids` were checked to be sha256.
    pub(crate) fn of_layers(diff_ids: &[String]) -> Vec<LayerId> {
        let mut chain: Option<String> = None;
        diff_ids
            .iter()
            .map(|diff_id| {
                let id = match &chain {
                    None => diff_id.clone(),
                    Some(below) => format!("sha256:{:x}", Sha256::digest(format!("{below} {diff_id}"))),
                };
                chain = Some(id.clone());
                let hex = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).to_owned();
                LayerId { diff: Self { kind: "diff", hex: hex(diff_id) }, chain: Self { kind: "chain", hex: hex(&id) } }
            })
            .collect()
    }

    /// Parses [`name`](Self::name).
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (kind, hex) = name.split_once('-')?;
        let kind = ["diff", "chain"].into_iter().find(|known| *known == kind)?;
        crate::reference::is_sha256(&format!("sha256:{hex}")).then(|| Self { kind, hex: hex.to_owned() })
    }

    /// `diff-<hex>`: its name where all kinds lie together.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.kind, self.hex)
    }

    /// `sha256:…`, for a place of the kind `diff`: the diff ID.
    pub(crate) fn diff_id(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    /// The overlay lower directory.
    pub(crate) fn path(&self, paths: &Paths) -> PathBuf {
        paths.layers.join(self.kind).join(&self.hex)
    }

    fn about_path(&self, paths: &Paths) -> PathBuf {
        paths.about.join(format!("{}.json", self.name()))
    }

    /// What the layer says of itself, if it stands here whole; blocking.
    pub(crate) fn about(&self, paths: &Paths) -> Result<Option<About>> {
        if !self.path(paths).is_dir() {
            return Ok(None);
        }
        let path = self.about_path(paths);
        let read = fs::File::open(&path).and_then(|file| {
            let mut text = Vec::new();
            file.take(MAX_ABOUT_BYTES).read_to_end(&mut text).map(|_| text)
        });
        match read {
            Ok(text) => {
                let about = serde_json::from_slice(&text);
                Ok(about.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "it is made again")).ok())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("reading", &path, error)),
        }
    }

    /// Lets the tree `from`, unpacked from `blob`, appear here. One that stands here already stays, for containers may be mounted from it:
    /// if what it says of itself is lost, that alone is written anew. Of several who settle the same layer at once one is
    /// first. Blocking.
    pub(crate) fn settle(&self, paths: &Paths, blob: &str, unpacked: &Unpacked, from: &PathBuf) -> Result<About> {
        if let Some(standing) = self.about(paths)? {
            return Ok(standing);
        }
        let mut parents: Vec<&[u8]> = unpacked.whiteouts.iter().map(|path| dir::split(path).0).collect();
        parents.sort_unstable();
        parents.dedup();
        let about = About {
            root_listed: unpacked.root_listed,
            root_opaque: unpacked.root_opaque,
            whiteout_parents: parents.into_iter().map(|path| STANDARD_NO_PAD.encode(path)).collect(),
            entries: unpacked.entries,
            bytes: unpacked.bytes,
            blob: blob.to_owned(),
        };
        let text = serde_json::to_vec(&about)
            .map_err(|e| Error::Damaged { path: self.about_path(paths), reason: e.to_string() })?;
        if text.len() as u64 > MAX_ABOUT_BYTES {
            let what = format!("the list of directories with removals of layer {}", self.name());
            return Err(Error::TooLarge { what, limit: MAX_ABOUT_BYTES, unit: "bytes" });
        }
        write_whole(&self.about_path(paths), &text)?;
        let path = self.path(paths);
        if !path.is_dir()
            && let Err(error) = fs::rename(from, &path)
            && !path.is_dir()
        {
            return Err(Error::io("moving a layer to", &path, error));
        }
        Ok(about)
    }

    /// Takes the layer out of the store; what it was is left to be deleted at the path that is returned: in `trash`, else
    /// where the next open deletes it. Without one it needs no room on the disk. Blocking.
    pub(crate) fn discard(&self, paths: &Paths, trash: Option<&TmpDir>) -> Result<PathBuf> {
        let path = self.path(paths);
        let of_its_own = || TmpDir::without_owner(paths, &self.name());
        let gone = trash.map_or_else(of_its_own, |trash| trash.path().join(self.name()));
        // One that was begun before, and not ended.
        remove_tree(&gone).map_err(|e| Error::io("removing", &gone, e))?;
        match fs::rename(&path, &gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("removing", &path, error));
            }
            _ => {}
        }
        for path in [self.about_path(paths), paths.roots.join(self.name())] {
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            if let Err(error) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(Error::io("removing", &path, error));
            }
        }
        Ok(gone)
    }
}

impl About {
    /// Whether the layer's whiteouts all have something to act on over `below`.
    pub(crate) fn fits(&self, below: &Below) -> Result<bool> {
        let parents: Vec<Vec<u8>> =
            self.whiteout_parents.iter().filter_map(|text| STANDARD_NO_PAD.decode(text).ok()).collect();
        // The check goes by parents: a name is put behind each.
        let paths: Vec<Vec<u8>> = parents.iter().map(|parent| dir::join(parent, b"x")).collect();
        finalise::whiteouts_fit(paths.iter().map(Vec::as_slice), below)
            .map_err(|e| Error::io("looking at", "the layers below", e))
    }

    /// Whether it has whiteouts at all.
    pub(crate) fn has_whiteouts(&self) -> bool {
        !self.whiteout_parents.is_empty()
    }
}

/// The layers below the next one, nearest first, cut where one hides the rest. Blocking.
pub(crate) fn below(paths: &Paths, settled: &[(Place, About)]) -> Result<Below> {
    let mut roots: Vec<OwnedFd> = Vec::new();
    for (place, about) in settled.iter().rev() {
        let path = place.path(paths);
        roots.push(dir::open_root(&path).map_err(|e| Error::io("opening", &path, e))?);
        if about.root_opaque {
            break;
        }
    }
    Ok(Below::new(roots))
}

/// The overlay lower directories of an image, bottom first. Blocking.
///
/// Overlayfs takes the attributes of the merged root from the topmost layer. If that does not list its root, an empty
/// directory with the right ones is put on top.
pub(crate) fn lower_directories(paths: &Paths, settled: &[(Place, About)]) -> Result<Vec<PathBuf>> {
    let first = settled.iter().rposition(|(_, about)| about.root_opaque).unwrap_or(0);
    let mut layers: Vec<PathBuf> = settled[first..].iter().map(|(place, _)| place.path(paths)).collect();
    if let Some(at) = settled.iter().rposition(|(_, about)| about.root_listed)
        && at + 1 < settled.len()
    {
        let (place, _) = &settled[at];
        let path = paths.roots.join(place.name());
        if !path.is_dir() {
            make_root(paths, place, &path)?;
        }
        layers.push(path);
    }
    // Overlayfs refuses a directory that is named twice, and builders make equal layers (empty ones above all). All that
    // the lower copy of a layer gives is hidden by the upper one.
    let mut seen = HashSet::new();
    layers = layers.into_iter().rev().filter(|path| seen.insert(path.clone())).collect();
    layers.reverse();
    Ok(layers)
}

fn make_root(paths: &Paths, place: &Place, path: &PathBuf) -> Result<()> {
    let tmp = TmpDir::create(paths)?;
    let made = tmp.path().join("root");
    fs::create_dir(&made).map_err(|e| Error::io("making the directory", &made, e))?;
    let original = place.path(paths);
    let copied = dir::open_root(&original)
        .and_then(|from| dir::open_root(&made).map(|to| (from, to)))
        .and_then(|(from, to)| finalise::copy_root_attributes(&from, &to));
    copied.map_err(|e| Error::io("copying attributes to", &made, std::io::Error::other(e.to_string())))?;
    match fs::rename(&made, path) {
        // Another process was faster: the same.
        Err(_) if path.is_dir() => Ok(()),
        other => other.map_err(|e| Error::io("moving a directory to", path, e)),
    }
}
