//! Pulling: what is missing is fetched, what is here is not; layers come concurrently and are settled in order.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::sync::Arc;

use futures_util::StreamExt as _;
use runtime_core::{PullPolicy, RegistryAuth};
use tokio::sync::mpsc::UnboundedSender;

use crate::client::Session;
use crate::credentials;
use crate::durability;
use crate::error::{Error, Result};
use crate::image::{self, Image, Parts, digest_of};
use crate::index::{Entry, Index};
use crate::layer::finalise::{self, FinaliseError};
use crate::layer::stream::{self, FEED_PIECES, Job, Source};
use crate::layer::{dir, unpack::Unpacked};
use crate::limits::MAX_INDEX_DEPTH;
use crate::locks::{ObjectLock, StoreHold};
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::place::{self, About, LayerId, Place};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Inner, TmpDir, blocking, write_whole};
use crate::transfer::transfer;

/// How an image is pulled.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// When the registry is asked.
    pub policy: PullPolicy,
    /// Credentials; without them docker's configuration is looked at.
    pub auth: Option<RegistryAuth>,
    /// `OS/ARCH[/VARIANT]` instead of this machine's.
    pub platform: Option<String>,
    /// Where to tell how it goes. A receiver that has gone is no error.
    pub progress: Option<UnboundedSender<PullEvent>>,
}

/// How a pull goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The manifest is known.
    Resolved {
        /// Its digest.
        digest: String,
        /// Digest and size of each layer's blob, bottom first.
        layers: Vec<(String, u64)>,
    },
    /// One layer.
    Layer {
        /// Digest of its blob.
        digest: String,
        /// What is being done.
        phase: LayerPhase,
        /// Bytes that arrived.
        bytes: u64,
        /// Bytes of the blob.
        total: u64,
    },
    /// The image is there.
    Done {
        /// Digest of its manifest.
        digest: String,
    },
}

/// Where a layer is in a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerPhase {
    /// It was here already, or another pull fetched it.
    Exists,
    /// It arrives and is unpacked meanwhile.
    Downloading,
    /// It is whole, verified and on disk.
    Unpacked,
}

/// See [`ImageStore::find`](crate::ImageStore::find).
pub(crate) async fn find(store: &Arc<Inner>, name: &str) -> Result<Option<Image>> {
    let name = name.to_owned();
    let entry = blocking(store, move |store| Ok(Index::read(&store.paths)?.find(&name)?.cloned())).await?;
    match entry {
        Some(entry) => complete(store, entry).await,
        None => Ok(None),
    }
}

/// The image of an entry, its layers unpacked from local blobs where they are missing; `None` if that cannot be.
async fn complete(store: &Arc<Inner>, entry: Entry) -> Result<Option<Image>> {
    let digest = entry.digest.clone();
    let read = blocking(store, move |store| {
        let Some(parts) = Parts::read(&store.paths, &digest)? else { return Ok(None) };
        let standing = image::all_standing(&store.paths, &parts.ids)?;
        Ok(Some((parts, standing)))
    });
    let Some((parts, standing)) = read.await? else { return Ok(None) };
    let settled = match standing {
        Some(settled) => settled,
        None => {
            let hold_store = Arc::clone(store);
            let _hold = blocking(&hold_store, |store| StoreHold::shared(&store.paths.store_lock)).await?;
            match layers(store, &parts, None, None).await {
                Ok(settled) => settled,
                Err(error @ (Error::NotPresent(_) | Error::DigestMismatch { .. })) => {
                    tracing::info!(image = entry.reference(), %error, "a local image is not whole any more");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    };
    let reference = entry.reference().to_owned();
    assemble(store, reference, entry.digest, parts, settled).await.map(Some)
}

async fn assemble(
    store: &Arc<Inner>,
    reference: String,
    digest: String,
    parts: Parts,
    settled: Vec<(Place, About)>,
) -> Result<Image> {
    let layers = blocking(store, move |store| place::lower_directories(&store.paths, &settled)).await?;
    let size_bytes = parts.size_bytes();
    Ok(Image { reference, digest, id: parts.manifest.config.digest, config: parts.config, layers, size_bytes })
}

/// See [`ImageStore::pull`](crate::ImageStore::pull).
pub(crate) async fn pull(store: &Arc<Inner>, text: &str, options: PullOptions) -> Result<Image> {
    let reference = Reference::parse(text)?;
    let wanted = options.platform.as_deref().map(Platform::parse).transpose()?;
    if options.policy != PullPolicy::Always {
        let local = local(store, &reference, text, wanted.as_ref()).await?;
        match (local, options.policy) {
            (Some(image), _) => return Ok(image),
            (None, PullPolicy::Never) => return Err(Error::NotPresent(reference.to_string())),
            (None, _) => {}
        }
    }
    let hold = blocking(store, |store| StoreHold::shared(&store.paths.store_lock)).await?;
    let session = session(store, &reference, options.auth.clone()).await?;
    let events = Events(options.progress);
    if let Some(image) = unchanged(store, &session, &reference, wanted.as_ref()).await? {
        events.done(&image.digest);
        return Ok(image);
    }
    let wanted = wanted.unwrap_or_else(Platform::host);
    let resolved = resolve(store, &session, &reference, &wanted).await?;
    events.resolved(&resolved);
    let config = config(store, &session, &resolved.manifest).await?;
    let runs_on = manifest::config_platform(&config);
    if options.platform.is_some() && wanted.rank(&runs_on).is_none() {
        let (reference, platform) = (reference.to_string(), wanted.to_string());
        return Err(Error::NoPlatform { reference, platform, available: vec![runs_on.to_string()] });
    }
    let parts = Parts::new(resolved.manifest.clone(), config);
    let settled = layers(store, &parts, Some(&session), Some(&events)).await?;
    let entry = Entry::new(
        &reference.to_string(),
        &resolved.digest,
        resolved.size,
        &resolved.manifest,
        resolved.index_digest.as_deref(),
    );
    blocking(store, move |store| {
        Index::update(&store.paths, |index| {
            index.put(entry);
            Ok(())
        })?;
        durability::sync_in_background(store);
        Ok(())
    })
    .await?;
    let image = assemble(store, reference.to_string(), resolved.digest, parts, settled).await?;
    drop(hold);
    events.done(&image.digest);
    Ok(image)
}

/// The local image of a reference, if it is whole and of the platform asked for.
async fn local(
    store: &Arc<Inner>,
    reference: &Reference,
    text: &str,
    wanted: Option<&Platform>,
) -> Result<Option<Image>> {
    let (reference, name) = (reference.clone(), text.to_owned());
    let entry = blocking(store, move |store| {
        let index = Index::read(&store.paths)?;
        let by_reference = index.of_reference(&reference).cloned();
        // What `run` is given may be an id, too; a registry is only asked if it is none.
        Ok(by_reference.or_else(|| index.find(&name).ok().flatten().cloned()))
    });
    let Some(entry) = entry.await? else { return Ok(None) };
    let image = complete(store, entry).await?;
    Ok(image.filter(|image| fits(image, wanted)))
}

fn fits(image: &Image, wanted: Option<&Platform>) -> bool {
    wanted.is_none_or(|wanted| wanted.rank(&manifest::config_platform(&image.config)).is_some())
}

async fn session<'a>(store: &'a Arc<Inner>, reference: &Reference, auth: Option<RegistryAuth>) -> Result<Session<'a>> {
    let registry = reference.registry().to_owned();
    let config = store.config.registries.get(&registry).cloned().unwrap_or_default();
    if !config.mirrors.is_empty() {
        return Err(Error::Unsupported(format!("mirrors (configured for {registry})")));
    }
    let credentials = blocking(store, move |_| credentials::find(auth.as_ref(), &registry)).await?;
    Ok(Session::new(&store.clients, config, store.config.limits.clone(), reference, credentials))
}

/// The local image, if a HEAD request says that the registry has the same.
async fn unchanged(
    store: &Arc<Inner>,
    session: &Session<'_>,
    reference: &Reference,
    wanted: Option<&Platform>,
) -> Result<Option<Image>> {
    let name = reference.clone();
    let entry = blocking(store, move |store| Ok(Index::read(&store.paths)?.of_reference(&name).cloned())).await?;
    let Some(entry) = entry else { return Ok(None) };
    let head = match session.head_manifest(reference.manifest_key()).await {
        Ok(head) => head,
        // Some registries answer HEAD wrongly; what GET says counts.
        Err(Error::Registry { .. } | Error::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let same = head.is_some_and(|head| head == entry.digest || entry.chosen_from() == Some(&head));
    if !same || entry.reference() != reference.to_string() {
        return Ok(None);
    }
    let image = complete(store, entry).await?;
    Ok(image.filter(|image| match wanted {
        Some(_) => fits(image, wanted),
        None => fits(image, Some(&Platform::host())),
    }))
}

/// A manifest, fetched and verified.
struct Resolved {
    digest: String,
    size: u64,
    manifest: Manifest,
    index_digest: Option<String>,
}

async fn resolve(
    store: &Arc<Inner>,
    session: &Session<'_>,
    reference: &Reference,
    wanted: &Platform,
) -> Result<Resolved> {
    let mut key = reference.manifest_key().to_owned();
    let mut expected = reference.digest().map(str::to_owned);
    let mut index_digest = None;
    for _ in 0..=MAX_INDEX_DEPTH {
        let (bytes, content_type) = session.manifest(&key).await?;
        let digest = digest_of(&bytes);
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::DigestMismatch {
                what: format!("the manifest of {reference}"),
                expected,
                found: digest,
            });
        }
        let what = reference.to_string();
        let document = Document::parse(&bytes, content_type.as_deref(), &what, &store.config.limits)?;
        let size = bytes.len() as u64;
        keep_blob(store, &digest, bytes).await?;
        match document {
            Document::Manifest(manifest) => return Ok(Resolved { digest, size, manifest, index_digest }),
            Document::Index(manifests) => {
                key.clone_from(&manifest::choose(&manifests, wanted, &what)?.digest);
                expected = Some(key.clone());
                index_digest.get_or_insert(digest);
            }
        }
    }
    let limit = MAX_INDEX_DEPTH as u64;
    Err(Error::TooLarge { what: format!("the nesting of indexes of {reference}"), limit, unit: "levels" })
}

async fn config(
    store: &Arc<Inner>,
    session: &Session<'_>,
    manifest: &Manifest,
) -> Result<oci_spec::image::ImageConfiguration> {
    let digest = manifest.config.digest.clone();
    let stored = blocking(store, {
        let digest = digest.clone();
        move |store| image::read_blob(&store.paths, &digest)
    });
    if let Some(bytes) = stored.await? {
        return manifest::parse_config(&bytes, manifest);
    }
    let bytes = session.small_blob(&digest, store.config.limits.config_bytes).await?;
    let found = digest_of(&bytes);
    if found != digest {
        return Err(Error::DigestMismatch { what: "the configuration".into(), expected: digest, found });
    }
    let config = manifest::parse_config(&bytes, manifest)?;
    keep_blob(store, &digest, bytes).await?;
    Ok(config)
}

async fn keep_blob(store: &Arc<Inner>, digest: &str, bytes: Vec<u8>) -> Result<()> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest).to_owned();
    blocking(store, move |store| write_whole(&store.paths.blob(&hex), &bytes)).await
}

/// Makes all layers stand, bottom first. Without a session only what is here is used.
async fn layers(
    store: &Arc<Inner>,
    parts: &Parts,
    session: Option<&Session<'_>>,
    events: Option<&Events>,
) -> Result<Vec<(Place, About)>> {
    let at_once = store.config.limits.concurrent_layers.max(1);
    let at_once = session.and_then(Session::max_connections).map_or(at_once, |most| most.clamp(1, at_once));
    let blobs = &parts.manifest.layers;
    // Concurrent, but in this task: dropping the pull drops all of it.
    // Collected: a lazy iterator of futures that borrow is not seen to be Send for every lifetime (rust-lang/rust#89976).
    let work: Vec<_> = parts.ids.iter().zip(blobs).map(|(id, blob)| obtain(store, id, blob, session, events)).collect();
    let mut obtained = std::pin::pin!(futures_util::stream::iter(work).buffered(at_once));
    let mut settled: Vec<(Place, About)> = Vec::with_capacity(blobs.len());
    let mut ready = VecDeque::new();
    let mut more = true;
    while settled.len() < blobs.len() {
        let Some(layer) = ready.pop_front() else {
            match obtained.next().await {
                Some(layer) => ready.push_back(layer?),
                None => return Err(Error::Interrupted("obtaining layers")),
            }
            continue;
        };
        let (id, blob) = (&parts.ids[settled.len()], &blobs[settled.len()]);
        let mut settling = std::pin::pin!(settle(store, id, blob, layer, settled, session, events));
        // The other layers go on meanwhile; one of them may hold a lock that this one waits for.
        settled = loop {
            tokio::select! {
                result = &mut settling => break result?,
                next = obtained.next(), if more => match next {
                    Some(layer) => ready.push_back(layer?),
                    None => more = false,
                },
            }
        };
    }
    Ok(settled)
}

/// A layer that is here, or that waits for the ones below.
enum Obtained {
    /// It stands, as far as can be said without the layers below.
    Stands,
    /// It is self-contained and was put in its place.
    Pending(Box<Pending>),
}

struct Pending {
    unpacked: Unpacked,
    tmp: Arc<TmpDir>,
    /// Held until the layer stands, so that others wait for it.
    _chain: ObjectLock,
}

/// Gets one layer as far as it goes without the ones below.
async fn obtain(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    session: Option<&Session<'_>>,
    events: Option<&Events>,
) -> Result<Obtained> {
    let chain = store.locks.lock(&store.paths.locks, &id.chain.name()).await?;
    if stands(store, id).await? {
        events.inspect(|events| events.layer(blob, LayerPhase::Exists, blob.size));
        return Ok(Obtained::Stands);
    }
    unpack(store, id, blob, session, events, chain).await
}

async fn stands(store: &Arc<Inner>, id: &LayerId) -> Result<bool> {
    let id = id.clone();
    blocking(store, move |store| Ok(id.chain.about(&store.paths)?.is_some() || id.diff.about(&store.paths)?.is_some()))
        .await
}

/// Unpacks a layer, from the store's blob or from the network.
async fn unpack(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    session: Option<&Session<'_>>,
    events: Option<&Events>,
    chain: ObjectLock,
) -> Result<Obtained> {
    let diff = store.locks.lock(&store.paths.locks, &id.diff.name()).await?;
    let slot = store.slots.acquire().await.map_err(|_| Error::Interrupted("waiting for other layers"))?;
    let hex = blob.hex().to_owned();
    let (tmp, stored) = blocking(store, move |store| {
        let tmp = TmpDir::create(&store.paths)?;
        let root = tmp.path().join("root");
        fs::create_dir(&root).map_err(|e| Error::io("making the directory", &root, e))?;
        Ok((tmp, File::open(store.paths.blob(&hex)).ok()))
    })
    .await?;
    let is_stored = stored.is_some();
    let ran = match (stored, session) {
        (Some(file), _) => run(store, id, blob, &tmp, Input::Stored(file), events).await,
        (None, Some(session)) => run(store, id, blob, &tmp, Input::Network(session), events).await,
        (None, None) => Err(Error::NotPresent(format!("layer {}", blob.digest))),
    };
    let unpacked = match ran {
        Ok(unpacked) => unpacked,
        Err(error) => {
            blocking(store, move |_| {
                tmp.remove_now();
                Ok(())
            })
            .await?;
            if is_stored && session.is_some() && matches!(error, Error::DigestMismatch { .. }) {
                // A damaged blob: the registry has it whole.
                drop(slot);
                return Box::pin(refetch(store, id, blob, session, events, chain, diff)).await;
            }
            return Err(error);
        }
    };
    let fetched = !is_stored;
    let self_contained = finalise::is_self_contained(&unpacked) && unpacked.whiteouts.is_empty();
    let (place, hex) = (id.diff.clone(), blob.hex().to_owned());
    let unpacked = blocking(store, {
        let tmp = Arc::clone(&tmp);
        move |store| {
            if fetched {
                let (from, to) = (tmp.path().join("blob"), store.paths.blob(&hex));
                fs::rename(&from, &to).map_err(|e| Error::io("moving a blob to", &to, e))?;
            }
            if self_contained {
                durability::mark(store, &place)?;
                place.settle(&store.paths, &unpacked, &tmp, &tmp.path().join("root"))?;
                tmp.remove_now();
            }
            Ok(unpacked)
        }
    })
    .await?;
    events.inspect(|events| events.layer(blob, LayerPhase::Unpacked, blob.size));
    if self_contained {
        return Ok(Obtained::Stands);
    }
    drop(diff);
    Ok(Obtained::Pending(Box::new(Pending { unpacked, tmp, _chain: chain })))
}

/// Removes a damaged blob and fetches it anew.
async fn refetch(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    session: Option<&Session<'_>>,
    events: Option<&Events>,
    chain: ObjectLock,
    diff: ObjectLock,
) -> Result<Obtained> {
    let path = store.paths.blob(blob.hex());
    tracing::warn!(blob = %blob.digest, "a blob in the store is damaged and is fetched again");
    blocking(store, move |_| fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))).await?;
    drop(diff);
    unpack(store, id, blob, session, events, chain).await
}

enum Input<'a> {
    Stored(File),
    Network(&'a Session<'a>),
}

/// Runs one layer's stream to its end.
async fn run(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    tmp: &Arc<TmpDir>,
    input: Input<'_>,
    events: Option<&Events>,
) -> Result<Unpacked> {
    let (feed, source, session) = match input {
        Input::Stored(file) => (None, Source::Stored(file), None),
        Input::Network(session) => {
            let path = tmp.path().join("blob");
            let file = blocking(store, move |_| File::create_new(&path).map_err(|e| Error::io("creating", &path, e)));
            let (feed, take) = tokio::sync::mpsc::channel(FEED_PIECES);
            (Some(feed), Source::Network(take, file.await?), Some(session))
        }
    };
    let job = Job {
        source,
        digest: blob.digest.clone(),
        diff_id: id.diff.diff_id(),
        size: blob.size,
        root: tmp.path().join("root"),
        tmp: Arc::clone(tmp),
        limits: store.config.limits.clone(),
    };
    let answer = stream::start(job)?;
    if let (Some(feed), Some(session)) = (feed, session) {
        let report = |bytes| {
            events.inspect(|events| events.layer(blob, LayerPhase::Downloading, bytes));
        };
        report(0);
        if let Err(error) = transfer(session, blob, feed, report).await {
            // The threads end now that nothing feeds them; until then they still write.
            let _ = answer.await;
            return Err(error);
        }
    }
    answer.await.map_err(|_| Error::Interrupted("unpacking a layer"))?
}

/// Puts a layer in its place over the ones below, which all stand, and adds it to them.
async fn settle(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    obtained: Obtained,
    mut settled: Vec<(Place, About)>,
    session: Option<&Session<'_>>,
    events: Option<&Events>,
) -> Result<Vec<(Place, About)>> {
    let pending = match obtained {
        Obtained::Pending(pending) => pending,
        Obtained::Stands => {
            let id_here = id.clone();
            let found;
            (settled, found) = blocking(store, move |store| {
                let found = image::standing(&store.paths, &id_here, &settled)?;
                Ok((settled, found))
            })
            .await?;
            if let Some(layer) = found {
                settled.push(layer);
                return Ok(settled);
            }
            // It stands for other images, but does not fit on these layers: a copy of its own.
            let chain = store.locks.lock(&store.paths.locks, &id.chain.name()).await?;
            match unpack(store, id, blob, session, events, chain).await? {
                Obtained::Pending(pending) => pending,
                Obtained::Stands => return Err(Error::Interrupted("settling a layer")),
            }
        }
    };
    let (id, blob) = (id.clone(), blob.digest.clone());
    blocking(store, move |store| {
        let layer = finish(store, &id, &blob, *pending, &settled)?;
        settled.push(layer);
        Ok(settled)
    })
    .await
}

/// Finalises a pending layer and lets it appear; blocking.
fn finish(
    store: &Inner,
    id: &LayerId,
    blob: &str,
    pending: Pending,
    settled: &[(Place, About)],
) -> Result<(Place, About)> {
    let Pending { unpacked, tmp, _chain } = pending;
    let root = tmp.path().join("root");
    let below = place::below(&store.paths, settled)?;
    let whiteouts = unpacked.whiteouts.len();
    let self_contained = finalise::is_self_contained(&unpacked);
    let directory = dir::open_root(&root).map_err(|e| Error::io("opening", &root, e))?;
    let unpacked = finalise::finalise(directory, unpacked, &below).map_err(|error| match error {
        FinaliseError::Invalid(reason) => Error::InvalidLayer { layer: blob.to_owned(), reason },
        FinaliseError::Os(source) => Error::io("settling a layer in", &root, source),
    })?;
    let place = if self_contained && unpacked.whiteouts.len() == whiteouts { &id.diff } else { &id.chain };
    durability::mark(store, place)?;
    let about = place.settle(&store.paths, &unpacked, &tmp, &root)?;
    tmp.remove_now();
    Ok((place.clone(), about))
}

struct Events(Option<UnboundedSender<PullEvent>>);

impl Events {
    fn send(&self, event: PullEvent) {
        if let Some(sender) = &self.0 {
            // Nobody listens any more: the pull goes on.
            let _ = sender.send(event);
        }
    }

    fn resolved(&self, resolved: &Resolved) {
        let layers = resolved.manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
        self.send(PullEvent::Resolved { digest: resolved.digest.clone(), layers });
    }

    fn layer(&self, blob: &Descriptor, phase: LayerPhase, bytes: u64) {
        self.send(PullEvent::Layer { digest: blob.digest.clone(), phase, bytes, total: blob.size });
    }

    fn done(&self, digest: &str) {
        self.send(PullEvent::Done { digest: digest.to_owned() });
    }
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
