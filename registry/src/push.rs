//! Pushing: blobs that the registry lacks, then the manifest that names them.

use std::fs::File;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::header::HeaderValue;
use runtime_core::{LayerPhase, PullEvent, RegistryAuth};
use tokio::sync::mpsc::UnboundedSender;

use crate::client::Endpoint;
use crate::credentials;
use crate::dropped;
use crate::error::{Error, Result};
use crate::image::{Parts, read_blob};
use crate::index::Index;
use crate::locks::StoreHold;
use crate::manifest::Descriptor;
use crate::progress::Events;
use crate::reference::Reference;
use crate::store::{Inner, blocking};

/// How an image is pushed.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Credentials; without them docker's configuration is looked at.
    pub auth: Option<RegistryAuth>,
    /// Where to tell how it goes. A receiver that has gone is no error.
    pub progress: Option<UnboundedSender<PullEvent>>,
}

/// See [`ImageStore::push`](crate::ImageStore::push).
pub(crate) async fn push(store: &Arc<Inner>, text: &str, options: PushOptions) -> Result<String> {
    let reference = Reference::parse(text)?;
    if reference.digest().is_some() {
        let reason = "a tag is needed, and no digest: a push gives the registry's tag its content".to_owned();
        return Err(Error::InvalidReference { reference: text.to_owned(), reason });
    }
    let events = Events(options.progress);
    let wanted = reference.clone();
    let (hold, digest, document, parts) = blocking(store, move |store| {
        let hold = StoreHold::shared(&store.paths.store_lock)?;
        let not_present = || Error::NotPresent(wanted.to_string());
        let digest = Index::read(&store.paths)?.of_reference(&wanted).ok_or_else(not_present)?.digest.clone();
        let document = read_blob(&store.paths, &digest)?.ok_or_else(not_present)?;
        let parts = Parts::read(&store.paths, &digest)?.ok_or_else(not_present)?;
        Ok((hold, digest, document, parts))
    })
    .await?;
    events.resolved(&digest, &parts.manifest);
    let registry = reference.registry();
    let credentials = credentials::find(options.auth.as_ref(), registry, reference.repository()).await?;
    let (config, limits) = (store.config.registries.get(registry).cloned().unwrap_or_default(), &store.config.limits);
    let endpoint = Endpoint::new(&store.clients, config, limits.clone(), &reference, None, credentials).for_push();
    let at_once = endpoint.max_connections().unwrap_or(limits.concurrent_layers).max(1);
    let mut blobs = parts.manifest.layers.clone();
    blobs.push(parts.manifest.config.clone());
    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    blobs.dedup_by(|a, b| a.digest == b.digest);
    // Collected: a lazy iterator of futures that borrow is not seen to be Send for every lifetime (rust-lang/rust#89976).
    let work: Vec<_> = blobs.iter().map(|blob| send(store, &endpoint, &digest, blob, &events)).collect();
    stream::iter(work).buffer_unordered(at_once).try_collect::<Vec<()>>().await?;
    let media_type = HeaderValue::from_str(&parts.manifest.media_type)
        .map_err(|e| Error::InvalidManifest { what: digest.clone(), reason: e.to_string() })?;
    endpoint.send_manifest(media_type, document).await?;
    drop(hold);
    blocking(store, |store| dropped::drop_layers(store)).await?;
    events.done(&digest);
    Ok(digest)
}

/// Sends one blob of the image `digest`, if it is not there.
async fn send(
    store: &Arc<Inner>,
    endpoint: &Endpoint<'_>,
    digest: &str,
    blob: &Descriptor,
    events: &Events,
) -> Result<()> {
    if endpoint.has_blob(&blob.digest).await? {
        events.layer(blob, LayerPhase::Exists, blob.size);
        return Ok(());
    }
    events.layer(blob, LayerPhase::Uploading, 0);
    dropped::fetch_again(store, digest, std::slice::from_ref(blob)).await?;
    let file = open(store, blob).await?;
    endpoint.send_blob(blob, file, &|arrived| events.layer(blob, LayerPhase::Uploading, arrived)).await?;
    events.layer(blob, LayerPhase::Uploaded, blob.size);
    Ok(())
}

/// A blob of the store.
async fn open(store: &Arc<Inner>, blob: &Descriptor) -> Result<File> {
    let (path, digest, size) = (store.paths.blob(blob.hex()), blob.digest.clone(), blob.size);
    blocking(store, move |_| match File::open(&path) {
        Ok(file) => {
            let found = file.metadata().map_err(|e| Error::io("looking at", &path, e))?.len();
            if found == size { Ok(file) } else { Err(Error::SizeMismatch { what: digest, expected: size, found }) }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::NotPresent(digest)),
        Err(error) => Err(Error::io("opening", &path, error)),
    })
    .await
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
