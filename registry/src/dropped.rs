//! Compressed layers that are not kept: dropped once what they hold is unpacked and on disk, and fetched again for whoever
//! has to have them.
//!
//! An empty file `layers/dropped/<hex>` says of a blob that it was dropped and not lost. A layer's blob goes when the layer
//! stands for every image that has it and a sync has covered that, under the exclusive lock on the store: so no pull that
//! may still read it is under way. Where somebody holds the store it goes with the next pull, or the next removal.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::durability;
use crate::error::{Error, Result};
use crate::gc;
use crate::image::{self, Parts};
use crate::index::Index;
use crate::layer::stream::{FEED_PIECES, Feed};
use crate::locks::StoreHold;
use crate::manifest::Descriptor;
use crate::pull::session;
use crate::reference::Reference;
use crate::session::Session;
use crate::store::{Inner, Paths, TmpDir, blocking};
use crate::transfer::transfer;

/// Drops what need not be kept, if nothing is to be; blocking. Waits for a sync, not for who holds the store.
pub(crate) fn drop_layers(store: &Inner) -> Result<()> {
    if !store.config.drop_blobs {
        return Ok(());
    }
    durability::sync(store);
    let Some(_hold) = StoreHold::try_exclusive(&store.paths.store_lock)? else {
        return gc::owe(&store.paths);
    };
    let index = Index::read(&store.paths)?;
    let mut spare = Spare::default();
    for entry in index.entries() {
        if let Some(parts) = Parts::read(&store.paths, &entry.digest)? {
            spare.add(store, &parts)?;
        }
    }
    for digest in spare.digests() {
        drop_one(&store.paths, digest)?;
    }
    Ok(())
}

/// Which blobs of layers can be spared. Of an image that cannot be read none is named.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    unpacked: BTreeSet<String>,
    needed: BTreeSet<String>,
}

impl Spare {
    /// Adds the layers of an image; blocking.
    pub(crate) fn add(&mut self, store: &Inner, parts: &Parts) -> Result<()> {
        let standing = image::all_standing(&store.paths, &parts.ids)?;
        let unsynced = durability::unsynced(store)?;
        for (number, blob) in parts.manifest.layers.iter().enumerate() {
            let place = standing.as_ref().and_then(|layers| layers.get(number)).map(|(place, _)| place);
            let is_safe = place.is_some_and(|place| !unsynced.contains(place));
            if is_safe { &mut self.unpacked } else { &mut self.needed }.insert(blob.digest.clone());
        }
        Ok(())
    }

    /// Those that no image needs.
    pub(crate) fn digests(&self) -> impl Iterator<Item = &str> {
        self.unpacked.difference(&self.needed).map(String::as_str)
    }
}

/// Drops a blob that may be there, and tells how many bytes of the disk it had; blocking.
pub(crate) fn drop_one(paths: &Paths, digest: &str) -> Result<u64> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    let path = paths.blob(hex);
    let Ok(metadata) = fs::symlink_metadata(&path) else { return Ok(0) };
    mark(paths, hex)?;
    fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
    Ok(metadata.blocks() * 512)
}

/// Whether a blob is not there because it was dropped; blocking.
pub(crate) fn is_dropped(paths: &Paths, blob: &Descriptor) -> bool {
    !paths.blob(blob.hex()).exists() && paths.dropped.join(blob.hex()).exists()
}

/// Whether a blob is not there, and was not dropped; blocking.
pub(crate) fn is_lost(paths: &Paths, blob: &Descriptor) -> bool {
    !paths.blob(blob.hex()).exists() && !paths.dropped.join(blob.hex()).exists()
}

/// Fetches those of `blobs`, layers of the image `digest`, again that were dropped: from the registry of any reference that
/// it has here. The store must be held. Dropping the future leaves the store as it was.
///
/// # Errors
/// [`Error::Dropped`] with what kept the last registry from giving it.
pub(crate) async fn fetch_again(store: &Arc<Inner>, digest: &str, blobs: &[Descriptor]) -> Result<()> {
    let (wanted, image) = (blobs.to_vec(), digest.to_owned());
    let (missing, references) = blocking(store, move |store| {
        let missing: Vec<_> = wanted.into_iter().filter(|blob| is_dropped(&store.paths, blob)).collect();
        if missing.is_empty() {
            return Ok((missing, Vec::new()));
        }
        let index = Index::read(&store.paths)?;
        let of_image = index.entries().iter().filter(|entry| entry.digest == image);
        Ok((missing, of_image.filter_map(|entry| Reference::parse(entry.reference()).ok()).collect()))
    })
    .await?;
    for blob in &missing {
        let mut refused = Error::NotPresent(digest.to_owned());
        let mut came = false;
        for reference in &references {
            let fetched = async { fetch(store, &session(store, reference, None).await?, blob).await };
            match fetched.await {
                Ok(()) => came = true,
                Err(error) => refused = error,
            }
            if came {
                break;
            }
        }
        if !came {
            let (layer, image) = (blob.digest.clone(), digest.to_owned());
            return Err(Error::Dropped { layer, image, source: Box::new(refused) });
        }
    }
    Ok(())
}

/// Says of a blob that it was dropped; blocking.
pub(crate) fn mark(paths: &Paths, hex: &str) -> Result<()> {
    let path = paths.dropped.join(hex);
    fs::write(&path, b"").map_err(|e| Error::io("writing", &path, e))
}

async fn fetch(store: &Arc<Inner>, session: &Session<'_>, blob: &Descriptor) -> Result<()> {
    let tmp = blocking(store, |store| TmpDir::create(&store.paths)).await?;
    let (feed, mut pieces) = tokio::sync::mpsc::channel(FEED_PIECES);
    let (digest, hex) = (blob.digest.clone(), blob.hex().to_owned());
    let written = blocking(store, move |store| {
        let path = tmp.path().join("blob");
        let failed = |e| Error::io("writing", &path, e);
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut hash = Sha256::new();
        let whole = loop {
            match pieces.blocking_recv() {
                Some(Feed::Data(bytes)) => {
                    hash.update(&bytes);
                    file.write_all(&bytes).map_err(failed)?;
                }
                Some(Feed::End) => break true,
                None => break false,
            }
        };
        let found = format!("sha256:{:x}", hash.finalize());
        let outcome = match whole {
            false => Err(Error::Interrupted("fetching a layer")),
            true if found != digest => {
                Err(Error::DigestMismatch { what: "a layer".to_owned(), expected: digest, found })
            }
            true => {
                let to = store.paths.blob(&hex);
                fs::rename(&path, &to).map_err(|e| Error::io("moving a blob to", &to, e))
            }
        };
        tmp.remove_now();
        outcome
    });
    let (fed, written) = futures_util::join!(transfer(session, blob, feed, |_| {}), written);
    fed.and(written)
}

#[cfg(test)]
#[path = "dropped_tests.rs"]
mod tests;
