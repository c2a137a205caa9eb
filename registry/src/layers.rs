//! The layers of one image: obtained concurrently, from the network or the store, and settled in order, bottom first.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use runtime_core::LayerPhase;
use rustix::io::Errno;

use crate::dropped;
use crate::durability;
use crate::error::{Error, Result};
use crate::image::{self, Parts};
use crate::index::Index;
use crate::layer::below::Below;
use crate::layer::stream::{self, FEED_PIECES, Job, Source};
use crate::layer::unpack::{Over, Unpacked};
use crate::layer::{dir, finalise};
use crate::locks::ObjectLock;
use crate::manifest::Descriptor;
use crate::place::{self, About, LayerId, Place};
use crate::progress::Events;
use crate::session::Session;
use crate::store::{Inner, TmpDir, blocking};
use crate::transfer::transfer;

/// Where layers come from, and what for.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// Without one only what is here is used.
    pub(crate) session: Option<&'a Session<'a>>,
    pub(crate) events: Option<&'a Events>,
    /// The image is new: that its blobs hold what its configuration says is not known yet, and what stands is no proof. All
    /// its blobs are to be here afterwards.
    pub(crate) enters: bool,
}

/// Makes all layers stand, bottom first.
pub(crate) async fn layers(store: &Arc<Inner>, parts: &Parts, origin: Origin<'_>) -> Result<Vec<(Place, About)>> {
    let Origin { session, .. } = origin;
    let at_once = store.config.limits.concurrent_layers.max(1);
    let at_once = session.and_then(Session::max_connections).map_or(at_once, |most| most.clamp(1, at_once));
    let blobs = &parts.manifest.layers;
    // Concurrent, but in this task: dropping the pull drops all of it.
    // Collected: a lazy iterator of futures that borrow is not seen to be Send for every lifetime (rust-lang/rust#89976).
    let work: Vec<_> = parts.ids.iter().zip(blobs).map(|(id, blob)| obtain(store, id, blob, origin)).collect();
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
        let mut settling = std::pin::pin!(settle(store, id, blob, layer, settled, origin));
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

/// Held while a layer is obtained, also by work that goes on when its pull is dropped.
struct Locks {
    chain: ObjectLock,
    _diff: ObjectLock,
}

/// Gets one layer as far as it goes without the ones below.
async fn obtain(store: &Arc<Inner>, id: &LayerId, blob: &Descriptor, origin: Origin<'_>) -> Result<Obtained> {
    let Origin { session, events, enters } = origin;
    let chain = store.locks.lock(&store.paths.locks, &id.chain.name()).await?;
    if stands(store, id, blob, enters).await? {
        events.inspect(|events| events.layer(blob, LayerPhase::Exists, blob.size));
        return Ok(Obtained::Stands);
    }
    let diff = store.locks.lock(&store.paths.locks, &id.diff.name()).await?;
    // An image with others below may have brought it meanwhile.
    if stands(store, id, blob, enters).await? {
        events.inspect(|events| events.layer(blob, LayerPhase::Exists, blob.size));
        return Ok(Obtained::Stands);
    }
    unpack(store, id, blob, session, events, Locks { chain, _diff: diff }).await.map_err(named(store, blob))
}

/// A disk that is full says for which layer it has no room.
fn named<'a>(store: &'a Inner, blob: &'a Descriptor) -> impl Fn(Error) -> Error + 'a {
    |error| error.of_room_for(&format_args!("layer {}", blob.digest), &store.config.root)
}

/// Whether a layer stands; of an image that enters, also whether it is what `blob` holds.
async fn stands(store: &Arc<Inner>, id: &LayerId, blob: &Descriptor, enters: bool) -> Result<bool> {
    let (id, blob) = (id.clone(), blob.clone());
    blocking(store, move |store| {
        let paths = &store.paths;
        let standing = [id.chain.about(paths)?, id.diff.about(paths)?].into_iter().flatten().collect::<Vec<_>>();
        if standing.is_empty() || !enters {
            return Ok(!standing.is_empty());
        }
        let unpacked_from_it = standing.iter().any(|about| about.blob == blob.digest);
        if dropped::is_lost(paths, &blob) {
            // Where none are kept, it was one of those.
            let is_spare = unpacked_from_it && store.config.drop_blobs;
            if is_spare {
                dropped::mark(paths, blob.hex())?;
            }
            return Ok(is_spare);
        }
        Ok(unpacked_from_it || id.diff.diff_id() == blob.digest || is_another_images(store, &id, &blob)?)
    })
    .await
}

/// Whether an image that has entered has the same blob for the layer: then it was looked into. Blocking.
fn is_another_images(store: &Inner, id: &LayerId, blob: &Descriptor) -> Result<bool> {
    for entry in Index::read(&store.paths)?.entries() {
        let Some(parts) = Parts::read(&store.paths, &entry.digest)? else { continue };
        let mut layers = parts.ids.iter().zip(&parts.manifest.layers);
        if layers.any(|(other, of_it)| other.diff == id.diff && of_it.digest == blob.digest) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Unpacks a layer, from the store's blob or from the network.
async fn unpack(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    session: Option<&Session<'_>>,
    events: Option<&Events>,
    locks: Locks,
) -> Result<Obtained> {
    let slot = store.slots.acquire().await.map_err(|_| Error::Interrupted("waiting for other layers"))?;
    let hex = blob.hex().to_owned();
    let (tmp, stored) = blocking(store, move |store| {
        let tmp = TmpDir::create(&store.paths)?;
        let root = tmp.path().join("root");
        fs::create_dir(&root).map_err(|e| Error::io("making the directory", &root, e))?;
        let blob = store.paths.blob(&hex);
        match File::open(&blob) {
            Ok(file) => Ok((tmp, Some(file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((tmp, None)),
            Err(error) => Err(Error::io("opening", &blob, error)),
        }
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
            // A damaged blob, which the registry has whole; not one that an image has told a wrong diff ID for.
            let is_damaged = matches!(&error, Error::DigestMismatch { expected, .. } if *expected == blob.digest);
            if is_stored && session.is_some() && is_damaged {
                drop(slot);
                return Box::pin(refetch(store, id, blob, session, events, locks)).await;
            }
            return Err(error);
        }
    };
    let fetched = !is_stored;
    let self_contained = finalise::is_self_contained(&unpacked) && unpacked.whiteouts.is_empty();
    let (place, hex, digest) = (id.diff.clone(), blob.hex().to_owned(), blob.digest.clone());
    let (unpacked, locks) = blocking(store, {
        let tmp = Arc::clone(&tmp);
        move |store| {
            if fetched {
                let (from, to) = (tmp.path().join("blob"), store.paths.blob(&hex));
                fs::rename(&from, &to).map_err(|e| Error::io("moving a blob to", &to, e))?;
            }
            if self_contained {
                if place.about(&store.paths)?.is_none() {
                    durability::mark(store, &place)?;
                }
                place.settle(&store.paths, &digest, &unpacked, &tmp.path().join("root"))?;
                tmp.remove_now();
            }
            Ok((unpacked, locks))
        }
    })
    .await?;
    events.inspect(|events| events.layer(blob, LayerPhase::Unpacked, blob.size));
    if self_contained {
        return Ok(Obtained::Stands);
    }
    Ok(Obtained::Pending(Box::new(Pending { unpacked, tmp, _chain: locks.chain })))
}

/// Removes a damaged blob and fetches it anew.
async fn refetch(
    store: &Arc<Inner>,
    id: &LayerId,
    blob: &Descriptor,
    session: Option<&Session<'_>>,
    events: Option<&Events>,
    locks: Locks,
) -> Result<Obtained> {
    let path = store.paths.blob(blob.hex());
    tracing::warn!(blob = %blob.digest, "a blob in the store is damaged and is fetched again");
    let remove = move || fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e));
    let locks = blocking(store, move |_| remove().map(|()| locks)).await?;
    unpack(store, id, blob, session, events, locks).await
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
        over: None,
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
    origin: Origin<'_>,
) -> Result<Vec<(Place, About)>> {
    let Origin { session, events, .. } = origin;
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
            let diff = store.locks.lock(&store.paths.locks, &id.diff.name()).await?;
            match unpack(store, id, blob, session, events, Locks { chain, _diff: diff })
                .await
                .map_err(named(store, blob))?
            {
                Obtained::Pending(pending) => pending,
                Obtained::Stands => return Err(Error::Interrupted("settling a layer")),
            }
        }
    };
    let (id, blob) = (id.clone(), blob.clone());
    blocking(store, move |store| {
        let layer = finish(store, &id, &blob, *pending, &settled).map_err(named(store, &blob))?;
        settled.push(layer);
        Ok(settled)
    })
    .await
}

/// Finalises a pending layer and lets it appear; blocking.
fn finish(
    store: &Inner,
    id: &LayerId,
    blob: &Descriptor,
    pending: Pending,
    settled: &[(Place, About)],
) -> Result<(Place, About)> {
    let Pending { unpacked, tmp, _chain } = pending;
    let Finished { root, unpacked, fits_anywhere } = finalise_over(store, id, blob, unpacked, &tmp, settled)?;
    let place = if fits_anywhere { &id.diff } else { &id.chain };
    // What stands may have been on the disk for long.
    if place.about(&store.paths)?.is_none() {
        durability::mark(store, place)?;
    }
    let about = place.settle(&store.paths, &blob.digest, &unpacked, &root)?;
    tmp.remove_now();
    Ok((place.clone(), about))
}

/// A layer as containers are given it.
pub(crate) struct Finished {
    pub(crate) root: PathBuf,
    unpacked: Unpacked,
    /// It took nothing from the layers below.
    fits_anywhere: bool,
}

/// Makes of a layer that was unpacked for itself, into `root` of `tmp`, what it is over the layers below; blocking.
pub(crate) fn finalise_over(
    store: &Inner,
    id: &LayerId,
    blob: &Descriptor,
    mut unpacked: Unpacked,
    tmp: &Arc<TmpDir>,
    settled: &[(Place, About)],
) -> Result<Finished> {
    let mut root = tmp.path().join("root");
    let os = |root: &Path, source: Errno| Error::io("settling a layer in", root, source);
    let mut below = place::below(&store.paths, settled)?;
    // What it took from there is in it, though nothing of it waits for that any more.
    let depends = finalise::depends_on(&unpacked, &below).map_err(|e| os(&root, e))?;
    if depends {
        root = tmp.path().join("over");
        unpacked = unpack_over(store, id, blob, tmp, &root, unpacked, below)?;
        below = place::below(&store.paths, settled)?;
    }
    let whiteouts = unpacked.whiteouts.len();
    let self_contained = !depends && finalise::is_self_contained(&unpacked);
    let directory = dir::open_root(&root).map_err(|e| Error::io("opening", &root, e))?;
    let unpacked = finalise::finalise(directory, unpacked, &below).map_err(|e| os(&root, e))?;
    let fits_anywhere = self_contained && unpacked.whiteouts.len() == whiteouts;
    Ok(Finished { root, unpacked, fits_anywhere })
}

/// Unpacks a layer's blob in the store for itself, into `root` of `tmp`, which must be new; blocking.
pub(crate) fn unpack_stored(store: &Inner, id: &LayerId, blob: &Descriptor, tmp: &Arc<TmpDir>) -> Result<Unpacked> {
    unpack_blob(store, id, blob, tmp, &tmp.path().join("root"), None)
}

/// Unpacks a layer once more into `root`, from its blob in the store, over the layers below; blocking.
fn unpack_over(
    store: &Inner,
    id: &LayerId,
    blob: &Descriptor,
    tmp: &Arc<TmpDir>,
    root: &Path,
    first: Unpacked,
    below: Below,
) -> Result<Unpacked> {
    let hides_all = first.removals.contains(&(Vec::new(), true));
    let over = Over { below: if hides_all { Below::default() } else { below }, removals: first.removals };
    unpack_blob(store, id, blob, tmp, root, Some(over))
}

fn unpack_blob(
    store: &Inner,
    id: &LayerId,
    blob: &Descriptor,
    tmp: &Arc<TmpDir>,
    root: &Path,
    over: Option<Over>,
) -> Result<Unpacked> {
    fs::create_dir(root).map_err(|e| Error::io("making the directory", root, e))?;
    let path = store.paths.blob(blob.hex());
    let source = Source::Stored(File::open(&path).map_err(|e| Error::io("opening", &path, e))?);
    let job = Job {
        source,
        digest: blob.digest.clone(),
        diff_id: id.diff.diff_id(),
        size: blob.size,
        root: root.to_path_buf(),
        tmp: Arc::clone(tmp),
        limits: store.config.limits.clone(),
        over,
    };
    stream::start(job)?.blocking_recv().map_err(|_| Error::Interrupted("unpacking a layer"))?
}
